"""Real TensorRT-RTX engines of a model that takes prompts, built without a GPU and looked into."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_gpu import FakeGpu, fake_library

from arforge.cli import main
from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_layers import attention_kernels, load_layers
from arforge.engines.tensorrt_run import compare_engine
from arforge.engines.trtexec import dry_run
from arforge.engines.verify import verify_bundle
from arforge.runner import EngineError, open_bundle
from arforge.runner.backends.tensorrt_identity import build_command

RTX = "tensorrt-rtx"


def test_engines_have_profiles_for_prompts_and_fused_attention(rtx_text_bundle: Path) -> None:
    opened = open_bundle(rtx_text_bundle)
    opened.check_hashes()
    identity = opened.engine(RTX, "fp16")
    assert identity["prefill_widths"] == [8, 32]
    assert [(p["images"], p["width"], p["condition"]) for p in identity["profiles"]] == [
        (1, 1, 1),
        (1, 4, 1),
        (1, 8, 119),
        (1, 32, 119),
    ]
    layers = load_layers(opened.path(identity["layers"]).read_bytes())
    for profile in range(4):
        mine = [layer for layer in layers if layer.profile == profile]
        assert len(attention_kernels(mine)) == opened.model.layers  # with a mask a row
    shapes = {
        (layer.profile, tensor.name): tensor.shape
        for layer in layers
        for tensor in (*layer.inputs, *layer.outputs)
        if tensor.name in ("tokens", "condition")
    }
    assert shapes[0, "tokens"] == (2, 1)
    assert shapes[3, "tokens"] == (2, 32)
    assert shapes[3, "condition"] == (2, 119, 64)
    assert open_bundle(rtx_text_bundle).engine(RTX, "bf16")["types"] == "bfloat16"


def test_verification_looks_into_them(rtx_text_bundle: Path) -> None:
    lines: list[str] = []
    verify_bundle(rtx_text_bundle, lines.append, target=RTX)
    assert any("fp16" in line and "width 32, up to 119 rows of a prompt" in line for line in lines)
    assert any("int8" in line and "products: 9 int8" in line for line in lines)
    assert len([line for line in lines if "4 caches updated in place, attention fused" in line]) == 3
    assert any("most likely token as fp32's for" in line for line in lines)


def test_fp16_agrees_with_onnx_runtime_step_by_step(
    rtx_text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `verify` on a machine with a GPU, here with a stand-in for it."""
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    bundle, gpu = open_bundle(rtx_text_bundle), FakeGpu()
    identity = bundle.engine(RTX, "fp16")
    library = fake_library(gpu, identity["library"].split()[1])
    library.trt.add(bundle, identity)
    found = compare_engine(bundle, identity, library, "zipar:4", gpu)  # type: ignore[arg-type]
    assert found.steps == 16
    assert found.same_step_tokens > 0.9


def test_the_command_of_an_identity_and_inspect_name_the_passes(rtx_text_bundle: Path) -> None:
    opened = open_bundle(rtx_text_bundle)
    command = build_command(Path("b"), opened.engine(RTX, "fp16"))
    assert "--width 1 --width 4 --prefill-width 8 --prefill-width 32 --images 1" in command
    text = CliRunner().invoke(main, ["inspect", str(rtx_text_bundle)]).output
    assert re.search(r"^    4 profiles, \d+ slots, prompts in passes of 8, 32, attention fused", text, re.MULTILINE)
    assert "prompts of up to 120 tokens" in text
    assert "features of 48 numbers a token; captions are cleaned as in training; without a text encoder" in text


def test_a_dry_run_names_the_shapes_of_prompts(text_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "copy.bundle"))
    words = dry_run(BuildJob(root, RTX, "fp16", schedules=["ntp"], filters=False))[0].split()
    given = [word for word in words if word.startswith("--optShapes=")]
    free = "tokens:2x{0},positions:2x{0},mask:2x1x{0}x184,condition:2x{1}x64,uniforms:1x{0},guidance:1x{0}"
    assert given == [f"--optShapes={free.format(*kind)}" for kind in ((1, 1), (65, 119))]


def test_wishes_that_do_not_fit(text_bundle: Path, bundle: Path) -> None:
    with pytest.raises(EngineError, match="takes classes, not prompts: leave --prefill-width out"):
        tensorrt.build(BuildJob(bundle, RTX, "fp16", prefill_widths=[8]))
    given = ["build", str(text_bundle), "--prefill-width", "8"]
    found = CliRunner().invoke(main, given)
    assert found.exit_code != 0
    assert "--prefill-width is for TensorRT: leave it out for --target onnxruntime" in found.output
