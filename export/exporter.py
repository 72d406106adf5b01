"""From a checkpoint to a bundle."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from arforge.export import weights
from arforge.export.checkpoint import Checkpoint, check_shapes, looks_like, open_checkpoint
from arforge.export.config import variant_of
from arforge.export.families.family import Family
from arforge.export.image_tokenizers import graphs as tokenizer
from arforge.export.image_tokenizers.vq import GROUPS, VQConfig, VQModel
from arforge.export.layers import pad_heads, pad_weight, padded_head, rotary_table
from arforge.export.step_graph import trace_step, without_logits
from arforge.export.trace import fake_module
from arforge.runner.bundle import (
    ClassCondition,
    Graph,
    ImageTokenizerFacts,
    Manifest,
    ModelFacts,
    SamplerDefaults,
    StoredSchedule,
    sha256_of,
)
from arforge.runner.bundle.writer import file_facts, staged, write_manifest
from arforge.runner.errors import CheckpointError
from arforge.runner.report import Report
from arforge.runner.schedules import file as schedule_file
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import compile_schedule, parse, require_order, require_specials
from arforge.version import VERSION as ARFORGE_VERSION

PRECISION = "fp32"
LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")
PUBLISHED = SamplerDefaults(guidance=2.0, temperature=1.0, top_k=0, top_p=1.0)  # of LlamaGen on ImageNet


@dataclass(frozen=True)
class Job:
    """What to export. `tokenizer` may be None: such a bundle gives tokens only."""

    family: Family
    config: Any  # of the family's class
    checkpoint: Path
    tokenizer: Path | None
    output: Path
    schedules: Sequence[str] = ()
    sampler: SamplerDefaults = PUBLISHED
    overwrite: bool = False


def export_bundle(job: Job, report: Report = lambda line: None) -> None:
    """Write the bundle `job.output`, whole or not at all.

    Raises CheckpointError for a checkpoint that does not fit, ScheduleError for a schedule that does not, and
    BundleError where the output cannot be written.
    """
    family, config = job.family, job.config
    wanted = dict.fromkeys(str(parse(text)) for text in job.schedules or family.schedules(config))
    schedules = [compile_schedule(text, config.grid) for text in wanted]
    for schedule in schedules:
        require_order(schedule.specification, family.order)
        require_specials(schedule, config.transition_tokens)
    decoder_weights = open_checkpoint(job.checkpoint)
    check_shapes(decoder_weights, family.checkpoint_shapes(config), family.name)
    images = None if job.tokenizer is None else open_tokenizer(job.tokenizer, config)
    with staged(job.output, job.overwrite) as stage:
        report(f"tracing the step graph ({config.n_layer} layers)")
        graphs = export_decoder(job, decoder_weights, stage, report)
        if images is not None:
            report("exporting the image tokenizer")
            graphs += export_tokenizer(*images, stage)
        report("writing schedules and hashes")
        stored = write_schedules(schedules, stage)
        manifest = Manifest(
            model=model_facts(family, config),
            image_tokenizer=None if images is None else image_tokenizer_facts(images[0], config.grid),
            text_tokenizer=None,
            graphs=tuple(graphs),
            files=file_facts(stage),
            schedules=tuple(stored),
            sampler=job.sampler,
            engines=(),
            provenance=provenance(job),
        )
        write_manifest(stage, manifest)


def open_tokenizer(path: Path, config: Any) -> tuple[VQConfig, Checkpoint]:
    """Open a tokenizer checkpoint and read its dimensions off it. Raises CheckpointError where it does not fit."""
    checkpoint = open_checkpoint(path)
    try:
        found = VQConfig.infer(checkpoint.shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path} is not a VQ tokenizer checkpoint (missing {error}). {looks_like(checkpoint, 'VQ tokenizer')}"
        ) from error
    if found.channels % GROUPS:
        raise CheckpointError(f"{path}: {found.channels} channels are not a multiple of {GROUPS}")
    model, _ = fake_module(lambda: VQModel(found))
    check_shapes(checkpoint, {k: tuple(v.shape) for k, v in model.state_dict().items()}, "VQ tokenizer")
    if found.codebook_size != config.vocab_size:
        raise CheckpointError(
            f"{path} has {found.codebook_size} codes, the model {config.vocab_size} tokens: "
            "use the tokenizer that the model was trained with"
        )
    return found, checkpoint


def export_decoder(job: Job, checkpoint: Checkpoint, stage: Path, report: Report) -> list[Graph]:
    config = job.config
    head_size = config.head_size
    decoder, mode = fake_module(lambda: pad_heads(job.family.module(config), head_size))
    with mode:
        full = trace_step(decoder, model_facts(job.family, config))
    models = {"step": without_logits(full), "step-logits": full}
    tables = dict(zip(("cosine", "sine"), rotary_table(config.grid, config.head_size, config.rope_base), strict=True))

    def source(name: str) -> Any:
        tensor = tables[name] if name in tables else job.family.parameter(checkpoint, name)
        return pad_weight(name, tensor, head_size)

    report("writing the decoder's weights")
    return write_graphs(models, "decoder.", "model.weights", source, stage)


def export_tokenizer(config: VQConfig, checkpoint: Checkpoint, stage: Path) -> list[Graph]:
    model, mode = fake_module(lambda: VQModel(config))
    assert isinstance(model, VQModel)
    with mode:
        models = {"decoder": tokenizer.trace_decoder(model), "encoder": tokenizer.trace_encoder(model)}
    return write_graphs(models, "model.", "tokenizer.weights", checkpoint.tensor, stage)


def write_graphs(
    models: dict[str, ir.Model], prefix: str, file: str, source: weights.Source, stage: Path
) -> list[Graph]:
    """Write graphs that share one weights file beside them; returns their manifest entries."""
    folder = stage / "graphs" / PRECISION
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    layout = weights.layout_of(list(models.values()), prefix)
    weights.write(folder / "weights" / file, layout, source)
    entries = []
    for name, model in models.items():
        weights.bind(model, layout, prefix, f"weights/{file}")
        ir.save(model, folder / f"{name}.onnx")
        path = f"graphs/{PRECISION}"
        entries.append(Graph(name, PRECISION, f"{path}/{name}.onnx", f"{path}/weights/{file}"))
    return entries


def write_schedules(schedules: Sequence[Schedule], stage: Path) -> list[StoredSchedule]:
    (stage / "schedules").mkdir()
    entries = []
    for schedule in schedules:
        name = schedule.specification.replace(":", "-").replace(",", "_").replace("=", "-")
        path = f"schedules/{name}.schedule"
        (stage / path).write_bytes(schedule_file.dump(schedule))
        steps, slots = len(schedule.steps), schedule.slots
        entries.append(StoredSchedule(schedule.specification, path, steps, slots, schedule.widths))
    return entries


def model_facts(family: Family, config: Any) -> ModelFacts:
    return ModelFacts(
        family=family.name,
        variant=variant_of(family, config),
        config=asdict(config),
        order=family.order,
        grid=config.grid,
        vocabulary=config.vocab_size,
        dim=config.dim,
        condition=ClassCondition(config.num_classes, config.first_class, config.null_class),
        specials=tuple(config.first_special + index for index in range(config.transition_tokens)),
        row_end=None,
        labels=None,
        source_precision="fp32",
        queries=family.queries,
        positions="grid",
        position_rows=1 + config.cells,
        layers=config.n_layer,
        caches=config.caches,
        kv_heads=config.kv_heads,
        head_size=padded_head(config.head_size),
        parameters=sum(math.prod(shape) for shape in family.checkpoint_shapes(config).values()),
    )


def image_tokenizer_facts(config: VQConfig, grid: tuple[int, int]) -> ImageTokenizerFacts:
    height, width = (side * config.downsampling for side in grid)
    return ImageTokenizerFacts("vq", config.codebook_size, config.codebook_width, config.downsampling, (height, width))


def provenance(job: Job) -> dict[str, Any]:
    """Where the bundle comes from: source files by name and sha256, versions, command line, time."""

    def file(path: Path) -> dict[str, Any]:
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}

    return {
        "arforge": ARFORGE_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "checkpoint": file(job.checkpoint),
        "tokenizer": None if job.tokenizer is None else file(job.tokenizer),
        "versions": {name: version(name) for name in LIBRARIES},
        "python": sys.version.split()[0],
    }
