from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from oracle import Decoder
from safetensors.torch import save_file
from tiny import CONFIG, VQ_CONFIG, random_weights
from torch import Tensor

from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle, open_image_tokenizer
from arforge.export.families.llamagen import FAMILY, default_schedules
from arforge.export.image_tokenizers.vq import VQModel
from arforge.export.verify import check_provenance, check_weights, stored_weights
from arforge.runner import BundleError, Runner, ScheduleError, open_bundle
from arforge.runner.bundle import sha256_of
from arforge.runner.errors import CheckpointError

SMALL = replace(CONFIG, n_layer=1, grid=(3, 4))
EMBEDDINGS = ("tok_embeddings.weight", "cls_embedding.embedding_table.weight")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def small_checkpoint(folder: Path, name: str = "small.pt") -> Path:
    torch.save({"model": random_weights(SMALL, seed=8)}, folder / name)
    return folder / name


def test_facts_of_a_bundle_are_those_of_its_checkpoint(
    bundle: Path, checkpoint: Path, tokenizer_checkpoint: Path
) -> None:
    opened = open_bundle(bundle)
    opened.check_hashes()
    model, provenance = opened.model, opened.provenance
    weights = torch.load(checkpoint)["model"]
    assert model.parameters == sum(tensor.numel() for tensor in weights.values())
    assert model.config == {**asdict(CONFIG), "grid": [8, 8]}
    assert (model.class_condition.first_class, model.position_rows, model.kv_heads, model.head_size) == (32, 65, 4, 16)
    assert provenance["checkpoint"]["sha256"] == sha256_of(checkpoint)
    assert provenance["tokenizer"]["sha256"] == sha256_of(tokenizer_checkpoint)
    assert provenance["checkpoint"]["name"] == "tiny.pt"
    assert {"torch", "onnx"} <= set(provenance["versions"])
    assert str(checkpoint.parent) not in (bundle / "manifest.json").read_text()


def test_every_file_of_a_bundle_is_listed_and_schedules_are_stored(bundle: Path) -> None:
    opened = open_bundle(bundle)
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files - {"manifest.json"} == set(opened.files)
    assert list(opened.specifications) == ["ntp", "zipar:4", "zipar:2"]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((24, 24), ["ntp", "zipar:16", "zipar:12", "zipar:8", "zipar:4", "zipar:2"]),
        ((16, 16), ["ntp", "zipar:12", "zipar:8", "zipar:4", "zipar:2"]),
        ((4, 6), ["ntp", "zipar:4", "zipar:2"]),
        ((5, 1), ["ntp"]),
    ],
)
def test_default_schedules_fit_the_grid(grid: tuple[int, int], expected: list[str]) -> None:
    assert default_schedules(replace(CONFIG, grid=grid)) == expected


def test_stored_weights_are_the_checkpoints(bundle: Path, weights: dict[str, Tensor]) -> None:
    stored = stored_weights(bundle / "graphs/fp32/step.onnx")
    assert torch.equal(stored["tok_embeddings.weight"], torch.cat([weights[name] for name in EMBEDDINGS]))
    for name, tensor in weights.items():
        if name not in EMBEDDINGS:
            assert torch.equal(stored[name], tensor), name


@pytest.fixture(scope="module")
def halves() -> dict[str, Tensor]:
    """bfloat16 and float16 side by side, as no author mixes them, to try both in one export."""
    weights = random_weights(SMALL, seed=8)
    return {
        name: tensor.to(torch.float16 if "feed_forward" in name else torch.bfloat16) for name, tensor in weights.items()
    }


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory, halves: dict[str, Tensor]) -> Path:
    """Exported from a checkpoint in two parts."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "parts").mkdir()
    for part in (0, 1):
        name = f"half-0000{part + 1}-of-00002.safetensors"
        save_file(dict(list(halves.items())[part::2]), folder / "parts" / name)
    spellings = ["zipar:2", "zipar:2,holes=published"]
    lines: list[str] = []
    job = ExportJob(FAMILY, SMALL, folder / "parts", None, folder / "half.bundle", spellings)
    export_bundle(job, lines.append)
    assert lines[0] == ("parts: read its 2 parts, half-00001-of-00002.safetensors to half-00002-of-00002.safetensors")
    onnxruntime.build(folder / "half.bundle")
    return folder / "half.bundle"


def test_half_precision_checkpoints_export_their_widened_values(half_bundle: Path, halves: dict[str, Tensor]) -> None:
    stored = stored_weights(half_bundle / "graphs/fp32/step.onnx")
    widened = {name: tensor.float() for name, tensor in halves.items()}
    for name, tensor in widened.items():
        if name not in EMBEDDINGS:
            assert stored[name].dtype == torch.float32
            assert torch.equal(stored[name], tensor), name
    assert torch.equal(stored["tok_embeddings.weight"], torch.cat([widened[name] for name in EMBEDDINGS]))


def test_a_bundle_of_half_precision_weights_gives_the_published_tokens(
    half_bundle: Path, halves: dict[str, Tensor]
) -> None:
    with Runner.open(half_bundle, threads=1) as runner:
        found = runner.generate([2, 7], schedule="zipar:2", guidance=2.0, greedy=True).tokens
    decoder = Decoder(halves, SMALL.n_head, SMALL.grid)
    np.testing.assert_array_equal(found, oracle.zipar(decoder, [2, 7], window=2, guidance=2.0))


def test_a_bundle_names_every_part_of_its_checkpoint_and_their_precision(half_bundle: Path) -> None:
    opened, folder = open_bundle(half_bundle), half_bundle.parent / "parts"
    recorded = opened.provenance["checkpoint"]
    assert [file["name"] for file in recorded["files"]] == names(folder)
    assert [file["sha256"] for file in recorded["files"]] == [sha256_of(folder / name) for name in names(folder)]
    for given in (folder, folder / names(folder)[1]):
        assert check_provenance(opened, given).startswith("the bundle was made from this file, sha256")
    assert check_weights(opened, folder) > 0
    assert opened.model.source_precision == "fp16"  # most of the bytes


def test_of_an_image_tokenizers_weights_the_averaged_ones_are_taken(tmp_path: Path, tokenizer_model: VQModel) -> None:
    state = tokenizer_model.state_dict()
    torch.save({"model": {name: 2 * tensor for name, tensor in state.items()}, "ema": state}, tmp_path / "x.pt")
    opened = open_image_tokenizer(tmp_path / "x.pt", 32)
    assert (opened.kind.kind, opened.config, opened.checkpoint.table) == ("vq", VQ_CONFIG, "ema")
    assert opened.checkpoint.notes == ("took its weights 'ema'; --image-tokenizer-weights model takes 'model'",)
    assert open_image_tokenizer(tmp_path / "x.pt", 32, "model").checkpoint.table == "model"


def test_two_spellings_of_a_schedule_are_stored_once(half_bundle: Path) -> None:
    entries = open_bundle(half_bundle).schedules
    assert [entry.specification for entry in entries] == ["zipar:2"]


def refused(job: ExportJob, error: type[Exception], message: str) -> None:
    """The export fails, and leaves its folder as it was."""
    before = names(job.output.parent)
    with pytest.raises(error, match=message):
        export_bundle(job)
    assert names(job.output.parent) == before


def test_weights_that_are_no_numbers_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    weights = random_weights(SMALL, seed=8)
    weights["layers.0.ffn_norm.weight"][3] = torch.nan
    torch.save({"model": weights}, tmp_path / "nan.pt")
    job = ExportJob(FAMILY, SMALL, tmp_path / "nan.pt", None, tmp_path / "nan.bundle")
    refused(job, CheckpointError, "tensor layers.0.ffn_norm.weight holds non-finite values: the checkpoint is damaged")


def test_arguments_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, checkpoint: Path, bundle_copy: Path
) -> None:
    target = tmp_path / "new.bundle"
    refused(ExportJob(FAMILY, CONFIG, tmp_path / "none.pt", None, target), CheckpointError, "no checkpoint at")
    refused(
        ExportJob(FAMILY, replace(CONFIG, n_layer=3), checkpoint, None, target), CheckpointError, r"missing layers\.2\."
    )
    refused(
        ExportJob(FAMILY, replace(CONFIG, vocab_size=33), checkpoint, None, target),
        CheckpointError,
        r"expected \[33, 64\]",
    )
    refused(
        ExportJob(FAMILY, CONFIG, checkpoint, None, target, schedules=["zipar:9"]),
        ScheduleError,
        "does not fit a grid of 8x8",
    )
    refused(
        ExportJob(FAMILY, CONFIG, checkpoint, None, target, schedules=["spiral"]), ScheduleError, "unknown schedule"
    )
    refused(ExportJob(FAMILY, CONFIG, checkpoint, None, bundle_copy), BundleError, "exists: .*--overwrite")
    refused(ExportJob(FAMILY, CONFIG, checkpoint, None, checkpoint), BundleError, "is not a bundle")


def test_tokenizers_that_do_not_fit_are_refused(
    tmp_path: Path, checkpoint: Path, tokenizer_model: VQModel, weights: dict[str, Tensor]
) -> None:
    state = tokenizer_model.state_dict()
    cases = {
        "other codes": (
            {**state, "quantize.embedding.weight": torch.zeros(64, 8)},
            "has 64 codes, the model 32 tokens: use the tokenizer that the model was trained with",
        ),
        "a model": (weights, r"is not a VQ tokenizer checkpoint \(missing .*It looks like a llamagen checkpoint"),
        "cut": (
            {name: tensor for name, tensor in state.items() if name != "decoder.conv_out.bias"},
            r"is not a VQ tokenizer checkpoint of these dimensions: missing decoder.conv_out.bias",
        ),
        "more": ({**state, "decoder.extra": torch.zeros(1)}, "unexpected decoder.extra"),
        "other width": (
            {**state, "post_quant_conv.bias": torch.zeros(32)},
            r"post_quant_conv.bias is \[32\], expected",
        ),
        "odd channels": (with_channels(state, 48), "48 channels are not a multiple of 32"),
        "strange names": (
            {**state, "encoder.conv_blocks.x.res": torch.zeros(1)},
            "is not a VQ tokenizer checkpoint|unexpected encoder.conv_blocks.x.res",
        ),
        "a scalar": (
            {**state, "encoder.conv_in.weight": torch.tensor(1.0)},
            "is not a VQ tokenizer checkpoint|is \\[\\]",
        ),
        "a flat codebook": (
            {**state, "quantize.embedding.weight": torch.zeros(256)},
            "is not a VQ tokenizer checkpoint|quantize.embedding.weight is",
        ),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"model": content}, path)
        refused(ExportJob(FAMILY, CONFIG, checkpoint, path, tmp_path / "new.bundle"), CheckpointError, message)


def with_channels(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    return {**state, "encoder.conv_in.weight": torch.zeros(channels, 3, 3, 3)}


KILLED = """
import sys
from pathlib import Path
from tiny import CONFIG
from dataclasses import replace
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY

def report(line):
    if line.startswith("writing schedules"):
        print("half-way", flush=True)
        sys.stdin.read()

config = replace(CONFIG, n_layer=1, grid=(3, 4))
export_bundle(ExportJob(FAMILY, config, Path(sys.argv[1]), None, Path(sys.argv[2]), overwrite=True), report)
"""


@pytest.mark.usefixtures("programs_trace_once")
def test_a_killed_export_leaves_the_old_bundle_and_the_next_export_works(bundle_copy: Path) -> None:
    checkpoint = small_checkpoint(bundle_copy.parent)
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(bundle_copy)]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{os.environ['PYTHONPATH']}"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half-way\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [path for path in bundle_copy.parent.iterdir() if path.name.endswith(".partial")]
    assert [path.stat().st_mode for path in left[0].rglob("model.weights")]
    old = open_bundle(bundle_copy)
    old.check_hashes()
    assert old.model.grid == (8, 8)
    export_bundle(ExportJob(FAMILY, SMALL, checkpoint, None, bundle_copy, overwrite=True))
    assert open_bundle(bundle_copy).model.grid == (3, 4)
    assert names(bundle_copy.parent) == ["copy.bundle", "small.pt"]
