from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from arforge.cli import main
from arforge.runner import open_bundle


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
    code, output = invoke("build", bundle_copy, "--target", "tensorrt", "--schedule", "zipar:4", "--dry-run")
    assert code == 0, output
    step, decoder = output.splitlines()
    assert step.startswith("trtexec --onnx=graphs/fp16/step-tensorrt-")
    assert decoder.startswith("trtexec --onnx=graphs/fp32/decoder.onnx")
    assert [engine.target for engine in open_bundle(bundle_copy).engines] == ["onnxruntime"]


@pytest.mark.parametrize(
    "options",
    [
        ("--images", "2"),
        ("--schedule", "ntp"),
        ("--compute-capability", "8.6"),
        ("--attention", "fused"),
        ("--no-filters",),
        ("--strip-weights",),
        ("--dry-run",),
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
