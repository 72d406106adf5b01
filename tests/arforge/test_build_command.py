from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from arforge.cli import main
from arforge.runner import open_bundle
from arforge.runner.bundle import sha256_of


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.output


def test_an_engine_for_tensorrt_rtx_is_built_verified_and_named(bundle_copy: Path) -> None:
    options = ("--target", "tensorrt-rtx", "--schedule", "ntp", "--compute-capability", "8.9", "--filters")
    code, output = invoke("build", bundle_copy, *options)
    assert code == 0, output
    assert "built tensorrt-rtx fp16 for sm89: tensorrt-rtx 1." in output
    assert "1 profiles up to 1 images of width 1, 64 slots, attention fused" in output
    identity = open_bundle(bundle_copy).engine("tensorrt-rtx", "fp16")
    assert identity["filters"]
    code, output = invoke("verify", bundle_copy, "--target", "tensorrt-rtx", "--no-torch")
    assert code == 0, output
    assert "ok  engine tensorrt-rtx fp16 sm89: network: 4 caches updated in place, attention fused" in output
    code, output = invoke("verify", bundle_copy, "--target", "tensorrt", "--no-torch")
    assert code == 1
    assert "has no tensorrt engine" in output


def test_a_dry_run_builds_nothing(bundle_copy: Path) -> None:
    before = everything(bundle_copy)
    words = ("build", bundle_copy, "--target", "tensorrt", "--schedule", "zipar:4", "--dry-run")
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "nothing is written: --graphs FOLDER" in result.stderr
    assert everything(bundle_copy) == before
    step, table, decoder = result.stdout.splitlines()
    assert step.startswith("trtexec --onnx=graphs/fp16/step-tensorrt-")
    assert table.startswith("trtexec --onnx=graphs/fp16/table-")
    assert decoder.startswith("trtexec --onnx=graphs/fp32/decoder.onnx")
    assert [engine.target for engine in open_bundle(bundle_copy).engines] == ["onnxruntime"]


def test_a_dry_run_leaves_its_graphs_where_it_is_told(bundle_copy: Path, tmp_path: Path) -> None:
    before, folder = everything(bundle_copy), tmp_path / "new graphs"
    words = ("build", bundle_copy, "--target", "tensorrt", "--precision", "fp32", "--schedule", "ntp", "--dry-run")
    code, output = invoke(*words, "--graphs", folder)
    assert code == 0, output
    assert f"the graphs are in {folder}: run the commands there" in output
    assert everything(bundle_copy) == before
    named = {word.removeprefix("--onnx=") for word in output.split() if word.startswith("--onnx=")}
    assert named == {path for path in everything(folder) if path.endswith(".onnx")}
    assert all((folder / path).stat().st_nlink == 1 for path in everything(folder))  # no part of the bundle
    code, output = invoke(*words, "--graphs", folder)
    assert (code, output) == (1, f"Error: {folder} is there already: name a new folder for the graphs\n")
    code, output = invoke(*words[:-1], "--graphs", tmp_path / "other")
    assert code == 1
    assert "--graphs goes with --dry-run" in output


def test_a_dry_run_for_the_tensorrt_of_a_jetson(bundle_copy: Path, tmp_path: Path) -> None:
    words = ("build", bundle_copy, "--target", "tensorrt", "--schedule", "ntp", "--tensorrt-version", "10.3")
    code, output = invoke(*words, "--dry-run", "--graphs", tmp_path / "graphs")
    assert code == 0, output
    step, decoder, *_ = output.splitlines()
    assert "--stronglyTyped --noTF32" in step
    assert "--stronglyTyped" in decoder
    assert f"the graphs are in {tmp_path / 'graphs'}: run the commands there" in output
    code, output = invoke(*words)
    assert code == 1
    assert "--tensorrt-version goes with --dry-run and --target tensorrt: a build asks the library here" in output
    code, output = invoke(*words, "--dry-run", "--caches", "in-place")
    assert code == 1
    assert "tensorrt 10.3 updates no cache in place, 10.15 and later do" in output


def everything(root: Path) -> dict[str, str]:
    """All files, by what they hold."""
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        ("--images", "2"),
        ("--schedule", "ntp"),
        ("--compute-capability", "8.6"),
        ("--attention", "fused"),
        ("--caches", "read-only"),
        ("--tensorrt-version", "10.3"),
        ("--no-filters",),
        ("--strip-weights",),
        ("--dry-run",),
        ("--graphs", "new"),
    ],
)
def test_options_of_tensorrt_are_not_taken_silently(bundle: Path, options: tuple[str, ...]) -> None:
    code, output = invoke("build", bundle, "--target", "onnxruntime", *options)
    assert code == 1
    name = "--filters" if options[0] == "--no-filters" else options[0]
    assert f"{name} is for TensorRT: leave it out for --target onnxruntime" in output


def test_a_precision_that_the_target_lacks_is_refused(bundle: Path) -> None:
    code, output = invoke("build", bundle, "--precision", "bf16")
    assert code == 1
    assert "target onnxruntime has no precision 'bf16'" in output


def test_int8_for_onnx_runtime_is_made_from_float32_weights(bundle_copy: Path) -> None:
    code, output = invoke("build", bundle_copy, "--precision", "int8", "--quantization", "blocks")
    assert code == 0, output
    assert "built onnxruntime int8 for cpu: onnxruntime 1." in output
    images = ("--class", "1", "--output", bundle_copy.with_name("one.png"))
    code, output = invoke("run", bundle_copy, "--precision", "int8", "--threads", "1", *images)
    assert code == 0, output
    measured = ("--precision", "int8", "--schedule", "ntp", "--max-steps", "2", "--threads", "1", "--layers")
    code, output = invoke("profile", bundle_copy, *measured)
    assert code == 0, output
    assert "MatMulNBits" in output


def test_quantisation_is_not_taken_silently_where_there_is_no_choice(bundle: Path) -> None:
    code, output = invoke("build", bundle, "--quantization", "blocks")
    assert code == 1
    assert "quantization 'blocks' with precision fp32" in output
    code, output = invoke("build", bundle, "--target", "tensorrt-rtx", "--quantization", "static")
    assert code == 1
    assert "--quantization is for ONNX Runtime" in output
