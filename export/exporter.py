"""From a checkpoint to a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from arforge.export import facts, weights
from arforge.export.checkpoint import Checkpoint, open_checkpoint
from arforge.export.families.family import Configuration, Family
from arforge.export.image_tokenizers import graphs as image_graphs
from arforge.export.image_tokenizers.attention import attend_in_blocks, blocks_for
from arforge.export.image_tokenizers.bands import bands_for, decode_in_bands
from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizer
from arforge.export.image_tokenizers.opening import OpenedImageTokenizer, open_image_tokenizer
from arforge.export.layers import pad_heads, pad_values
from arforge.export.noise import drawing_step
from arforge.export.recognition import check_shapes, part_of
from arforge.export.rows import Values
from arforge.export.step_graph import trace_condition, trace_step
from arforge.export.storage import Storage, storage_of, store, store_unrounded
from arforge.export.text_encoders.text_encoder import TextEncoder, check_precision, open_text_encoder
from arforge.export.trace import fake_module
from arforge.runner.bundle import (
    Captions,
    Condition,
    FeaturesCondition,
    Graph,
    Manifest,
    ModelFacts,
    Precision,
    SamplerDefaults,
    StoredSchedule,
)
from arforge.runner.bundle.names import TEXT_TOKENIZER
from arforge.runner.bundle.writer import file_facts, staged, write_manifest
from arforge.runner.errors import CheckpointError
from arforge.runner.report import Report
from arforge.runner.schedules import file as schedule_file
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import compile_schedule, parse, require_order, require_specials

PRECISION = "fp32"
DECODER, IMAGES = "decoder.", "model."  # before the names of weights in a traced step, and in an image tokenizer


@dataclass(frozen=True)
class ExportJob:
    """What to export. `image_tokenizer` may be None: such a bundle gives tokens only."""

    family: Family[Any]
    config: Configuration  # of the family's class
    checkpoint: Path
    image_tokenizer: Path | None
    output: Path
    schedules: Sequence[str] = ()
    sampler: SamplerDefaults | None = None  # None: the family's
    overwrite: bool = False
    labels: tuple[str, ...] | None = None  # a name a class
    weights: str | None = None  # which of the checkpoint's; None: the trained ones before the averaged
    image_tokenizer_weights: str | None = None  # None: the averaged ones before the trained
    text_encoder: Path | None = None  # a folder; None: such a bundle takes features of prompts, not prompts
    text_precision: str = PRECISION  # what its weights are stored as: fp32 or bf16
    captions: Captions | None = None  # "clean" or "raw", where requests do not say; None: the family's
    precision: Precision | None = None  # what the decoder's weights are stored as; None: the checkpoint's
    block: int | None = None  # inputs that share a scale, of int8 and int4; None: the usual


def export_bundle(job: ExportJob, report: Report = lambda line: None) -> None:
    """Write the bundle `job.output`, whole or not at all.

    Raises CheckpointError for a checkpoint that does not fit, ScheduleError for a schedule that does not, and
    BundleError where the output cannot be written.
    """
    family, config = job.family, job.config
    wanted = dict.fromkeys(str(parse(text)) for text in job.schedules or family.schedules(config))
    for text in wanted:
        require_order(text, family.order)
    schedules = [compile_schedule(text, config.grid, row_end=family.row_end) for text in wanted]
    for schedule in schedules:
        require_specials(schedule, len(family.specials(config)), family.row_end)
    words = facts.words_of(family, config, job.checkpoint)
    condition = facts.condition_of(family, config, words, job.captions)
    facts.check_labels(job.labels, condition)
    checkpoint = part_of(open_checkpoint(job.checkpoint, job.weights), family)
    check_shapes(checkpoint, family.checkpoint_shapes(config), family.name)
    storage = storage_of(job.precision, checkpoint.precision, job.block)
    images = None
    if job.image_tokenizer is not None:
        images = open_image_tokenizer(job.image_tokenizer, config.vocab_size, job.image_tokenizer_weights)
    texts = None
    if job.text_encoder is not None:
        texts = open_text_encoder_of(job.text_encoder, family.name, condition, job.text_precision)
    for note in [*notes_on(checkpoint, images, texts), *words.notes]:
        report(note)
    image_facts = None if images is None else facts.image_tokenizer_facts(images.kind, images.config, config.grid)
    with staged(job.output, job.overwrite) as stage:
        report(f"tracing the step graph ({config.n_layer} layers)")
        model = facts.model_facts(family, config, checkpoint, job.precision, job.labels, condition)
        sampler = job.sampler or family.sampler(config)
        graphs = export_decoder(family, config, model, checkpoint, storage, sampler, stage, report)
        if family.condition_module is not None:
            graphs += export_condition(family, config, model, checkpoint, storage, stage)
        if images is not None:
            report("exporting the image tokenizer")
            graphs += export_image_tokenizer(images, stage, config.cells)
        text_tokenizer = None if words.data is None else write_text_tokenizer(words.data, stage)
        if texts is not None:
            report(f"exporting the text encoder ({texts.layers} layers)")
            text_graphs, text_tokenizer = export_text_encoder(texts, stage, job.text_precision)
            graphs += text_graphs
        report("writing schedules and hashes")
        stored = write_schedules(schedules, stage)
        manifest = Manifest(
            model=model,
            image_tokenizer=image_facts,
            text_tokenizer=text_tokenizer,
            graphs=tuple(graphs),
            files=file_facts(stage),
            schedules=tuple(stored),
            sampler=sampler,
            engines=(),
            provenance=facts.provenance(
                checkpoint, images.checkpoint if images else None, texts.checkpoint if texts else None
            ),
        )
        write_manifest(stage, manifest)


def notes_on(checkpoint: Checkpoint, images: OpenedImageTokenizer | None, texts: TextEncoder | None) -> Iterator[str]:
    """What was chosen and left out of the files, each by its name."""
    for opened in [checkpoint, *([images.checkpoint] if images else [])]:
        yield from (f"{opened.path.name}: {note}" for note in opened.notes)
    if texts is not None:
        yield from (f"{texts.checkpoint.path.name}: {note}" for note in texts.notes)


def open_text_encoder_of(path: Path, family: str, condition: Condition, precision: str) -> TextEncoder:
    """Open the folder of a text encoder for a model of that condition.

    Raises CheckpointError if the model reads no features, or others, and as `open_text_encoder` does.
    """
    if not isinstance(condition, FeaturesCondition):
        raise CheckpointError(f"{family} models read no features of prompts: leave the text encoder {path} out")
    check_precision(precision)
    return open_text_encoder(path, condition.width)


def export_decoder(
    family: Family[Any],
    config: Configuration,
    model: ModelFacts,
    checkpoint: Checkpoint,
    storage: Storage,
    sampler: SamplerDefaults,
    stage: Path,
    report: Report,
) -> list[Graph]:
    head_size = config.head_size
    decoder, mode = fake_module(lambda: pad_heads(family.module(config), head_size))
    with mode:
        full = trace_step(decoder, model)
    tables = family.tables(config)

    def source(name: str) -> Values:
        values = tables[name] if name in tables else family.parameter(config, checkpoint, name)
        return pad_values(name, values, head_size, bool(decoder.interleaved))

    store(full, storage, lambda name: source(name.removeprefix(DECODER)).dtype)
    models = {sampler.graph: drawing_step(full, sampler.kind), "step-logits": full}
    report("writing the decoder's weights")
    return write_graphs(models, DECODER, "model.weights", source, stage)


def export_condition(
    family: Family[Any],
    config: Configuration,
    model: ModelFacts,
    checkpoint: Checkpoint,
    storage: Storage,
    stage: Path,
) -> list[Graph]:
    """Write the graph that makes rows of a condition; in blocks are the decoder's weights alone."""
    assert family.condition_module is not None
    build = family.condition_module
    module, mode = fake_module(lambda: build(config))
    with mode:
        traced = trace_condition(module, model)
    store(traced, storage.without_blocks, lambda name: checkpoint.rows(name).dtype)
    return write_graphs({"condition": traced}, "", "condition.weights", checkpoint.rows, stage)


def export_image_tokenizer(opened: OpenedImageTokenizer, stage: Path, cells: int) -> list[Graph]:
    """Write its graphs, whose memory is bounded for images of so many cells."""
    model, mode = fake_module(opened.module)
    assert isinstance(model, ImageTokenizer)
    with mode:
        models = {"decoder": image_graphs.trace_decoder(model)}
        if opened.config.encoder:
            models["encoder"] = image_graphs.trace_encoder(model)
    for graph in models.values():
        attend_in_blocks(graph, blocks_for(cells))
    decode_in_bands(models["decoder"], bands_for(models["decoder"], cells))
    for graph in models.values():
        store_unrounded(graph, lambda name: opened.dtype(name.removeprefix(IMAGES)))
    return write_graphs(models, IMAGES, "tokenizer.weights", opened.parameter, stage)


def export_text_encoder(opened: TextEncoder, stage: Path, precision: str = PRECISION) -> tuple[list[Graph], str]:
    """Write the graph `text` and the tokenizer; returns the graph's manifest entry and the tokenizer's path.

    `precision`: what weights are stored as, fp32 or bf16; they compute in float32. Raises CheckpointError for another.
    """
    graph = opened.graph(precision)
    graphs = write_graphs({"text": graph}, "", "text.weights", opened.parameter, stage, precision)
    return graphs, write_text_tokenizer(opened.tokenizer, stage)


def write_text_tokenizer(data: bytes, stage: Path) -> str:
    """Write a `tokenizer.json`; returns its path in the bundle."""
    (stage / TEXT_TOKENIZER).parent.mkdir(exist_ok=True)
    (stage / TEXT_TOKENIZER).write_bytes(data)
    return TEXT_TOKENIZER


def write_graphs(
    models: dict[str, ir.Model],
    prefix: str,
    file: str,
    source: weights.Source,
    stage: Path,
    precision: str = PRECISION,
) -> list[Graph]:
    """Write graphs that share one weights file beside them; returns their manifest entries."""
    folder = stage / "graphs" / precision
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    layout = weights.layout_of(list(models.values()), prefix)
    weights.write(folder / "weights" / file, layout, source)
    entries = []
    for name, model in models.items():
        weights.bind(model, layout, prefix, f"weights/{file}")
        ir.save(model, folder / f"{name}.onnx")
        path = f"graphs/{precision}"
        entries.append(Graph(name, precision, f"{path}/{name}.onnx", f"{path}/weights/{file}"))
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
