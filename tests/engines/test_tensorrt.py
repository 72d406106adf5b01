"""Real TensorRT-RTX engines of tiny models of all families, built without a GPU and looked into."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny import random_weights

from arforge.cli import main
from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob, build
from arforge.engines.tensorrt_layers import (
    Layer,
    attention_kernels,
    check_layers,
    expected,
    is_int8_product,
    load_layers,
)
from arforge.engines.tensorrt_library import load_builder
from arforge.engines.trtexec import dry_run
from arforge.engines.verify import verify_bundle
from arforge.export import exporter
from arforge.export.families import par
from arforge.export.families.par import PARConfig
from arforge.runner import EngineError, open_bundle
from arforge.runner.backends import tensorrt_library
from arforge.runner.backends.tensorrt_identity import build_command, check_identity
from arforge.runner.bundle import BuiltEngine, Bundle
from arforge.runner.errors import BundleError, VerificationError

RTX = "tensorrt-rtx"


def entry_of(bundle: Bundle, precision: str) -> BuiltEngine:
    return next(e for e in bundle.engines if (e.target, e.precision) == (RTX, precision))


def layers_of(bundle: Bundle, identity: dict[str, Any]) -> list[Layer]:
    return load_layers(bundle.path(identity["layers"]).read_bytes())


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_fp16_engine_updates_its_caches_in_place_and_fuses_attention(rtx_bundle: Path) -> None:
    opened = open_bundle(rtx_bundle)
    opened.check_hashes()
    identity = opened.engine(RTX, "fp16")
    assert identity["library"] == f"{RTX} {load_builder(RTX).version}"
    assert identity["compute_capabilities"] == ["8.6", "12.0"]
    assert identity["device"] == "sm86+sm120"
    assert identity["attention"]["lowering"] == "fused"
    assert (identity["widths"], identity["filters"]) == ([1, 2, 4], False)
    assert [profile["width"] for profile in identity["profiles"]] == [1, 2, 4]
    assert identity["decoder_reason"] is None
    assert opened.path(identity["decoder"]).stat().st_size > 1e6
    cache = 2 * opened.model.kv_heads * identity["slots"] * opened.model.head_size * 2  # bytes
    copied = 2 * opened.model.layers * cache  # of each layer keys and values, above width 1
    assert identity["copied_cache_bytes"] == [0, copied, copied]
    assert identity["cache_order"] == "rows heads slots size"
    layers = layers_of(opened, identity)
    for profile in (0, 1, 2):
        mine = [layer for layer in layers if layer.profile == profile]
        assert len(attention_kernels(mine)) == opened.model.layers
        written = {tensor.name for layer in mine for tensor in layer.outputs if "cache" in tensor.name}
        read = {tensor.name for layer in mine for tensor in layer.inputs if "cache" in tensor.name}
        names = {f"new_{kind}_cache_{index}" for kind in ("key", "value") for index in range(opened.model.caches)}
        assert written == read == names  # what is read is what was written: nothing reads the input itself


def test_an_int8_engine_has_integer_products(rtx_bundle: Path) -> None:
    import onnx_ir as ir

    opened = open_bundle(rtx_bundle)
    identity = opened.engine(RTX, "int8")
    wanted = expected(ir.load(opened.path(identity["lowered"])), opened.model.caches)
    assert len(wanted.quantized) == 5 * opened.model.layers + 1  # all products, and none of attention's
    assert not wanted.low
    layers = layers_of(opened, identity)
    assert check_layers(layers, wanted, len(identity["profiles"])) == []
    for profile in range(len(identity["profiles"])):
        products = [layer for layer in layers if layer.profile == profile and is_int8_product(layer)]
        assert {name for layer in products for name in layer.origin} >= set(wanted.quantized)
    assert identity["types"] == "half"


def test_random_order_has_a_profile_for_each_pair(rtx_arpg_bundle: Path) -> None:
    opened = open_bundle(rtx_arpg_bundle)
    identity = opened.engine(RTX, "fp16")
    kinds = {(p["width"], p["queries"]) for p in identity["profiles"]}
    assert len(kinds) == len(identity["profiles"]) == 5  # three of the schedule's steps, two where cells are known
    assert identity["attention"]["lowering"] == "decomposed"
    assert "several layers read one cache" in identity["attention"]["reason"]
    shapes = {
        (layer.profile, tensor.name): tensor.shape
        for layer in layers_of(opened, identity)
        for tensor in (*layer.inputs, *layer.outputs)
        if tensor.name in ("tokens", "next_tokens")
    }
    for index, profile in enumerate(identity["profiles"]):
        assert shapes[index, "tokens"] == (2, profile["width"])
        assert shapes[index, "next_tokens"] == (1, profile["queries"])


def test_par_builds_with_filters_for_two_batches_in_bf16(tmp_path: Path) -> None:
    config = PARConfig(dim=40, n_layer=1, n_head=2, grid=(4, 4), vocab_size=32, num_classes=10, multiple_of=32)
    torch.save(random_weights(config, seed=4, family=par.FAMILY), tmp_path / "tiny.pt")
    path = tmp_path / "par.bundle"
    exporter.export_bundle(exporter.ExportJob(par.FAMILY, config, tmp_path / "tiny.pt", None, path))
    built = build(BuildJob(path, RTX, "bf16", images=[2, 1], filters=True))
    identity = open_bundle(path).engine(RTX, "bf16")
    assert identity == built.identity
    assert identity["attention"]["lowering"] == "fused"  # heads of 20 are padded to 24
    assert [(p["images"], p["width"]) for p in identity["profiles"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert identity["decoder"] is None
    assert identity["decoder_reason"] == "the bundle has no image tokenizer"
    lines: list[str] = []
    verify_bundle(path, lines.append, target=RTX)
    assert any("inputs and outputs as the format says" in line and "network" in line for line in lines)


def test_the_engine_is_replaced_with_its_files(rtx_copy: Path) -> None:
    before = open_bundle(rtx_copy)
    old = before.engine(RTX, "fp16")
    build(BuildJob(rtx_copy, RTX, "fp16", ["8.6", "12.0"], ["ntp"], attention="decomposed"))
    after = open_bundle(rtx_copy)
    after.check_hashes()
    new = after.engine(RTX, "fp16")
    assert (new["attention"]["lowering"], new["attention"]["reason"]) == ("decomposed", "as asked")
    assert len(after.engines) == len(before.engines)
    assert not {old[part] for part in ("engine", "layers", "lowered")} & after.files.keys()
    assert {path for path in snapshot(rtx_copy) if path != "manifest.json"} == set(after.files)


def test_a_failed_build_leaves_the_bundle_as_it_was(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(bundle_copy)
    monkeypatch.setattr(tensorrt, "check_layers", lambda *_: ["profile 0: attention is not one kernel"])
    with pytest.raises(EngineError, match="built another engine than was asked: profile 0: attention"):
        build(BuildJob(bundle_copy, RTX, "fp16", schedules=["ntp"]))
    assert snapshot(bundle_copy) == before


def test_what_a_cut_build_has_left_goes(bundle_copy: Path) -> None:
    before = snapshot(bundle_copy)
    for name in ("graphs/fp16/weights/model.weights", "engines/tensorrt-rtx-fp16-rtx/step-0123456789ab.engine"):
        (bundle_copy / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle_copy / name).write_bytes(b"half of it")
    open_bundle(bundle_copy)  # such files do no harm
    with pytest.raises(EngineError, match="needs steps of 3"):
        build(BuildJob(bundle_copy, RTX, "fp16", widths=[1]))
    assert snapshot(bundle_copy) == before


def test_two_builds_at_once_take_no_turns(bundle_copy: Path) -> None:
    from arforge.runner.bundle.writer import changing

    with changing(bundle_copy), pytest.raises(BundleError, match="another process is changing"):
        build(BuildJob(bundle_copy, RTX, "fp16"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, r"target tensorrt-rtx has no precision 'fp8': use fp32, fp16, bf16, int8"),
        ({"compute_capabilities": ["9.0"]}, r"does not build for compute capability 9\.0: use 7\.5, 8\.0"),
        ({"precision": "bf16", "compute_capabilities": ["7.5"]}, r"compute capability 7\.5 has no bf16: use fp16"),
        ({"strip_weights": True}, "strips weights on a machine with a GPU only"),
        ({"precision": "int8"}, "no int8 graphs: make them with `arforge calibrate`"),
        ({"precision": "fp32", "attention": "fused"}, "attention cannot be fused: .* fp16 and bf16 alone"),
    ],
)
def test_wishes_that_cannot_be_met(bundle_copy: Path, options: dict[str, Any], message: str) -> None:
    before = snapshot(bundle_copy)
    with pytest.raises(EngineError, match=message):
        build(BuildJob(**{"bundle": bundle_copy, "target": RTX, "precision": "fp16", **options}))
    assert snapshot(bundle_copy) == before


@pytest.fixture
def forget() -> Iterator[None]:
    """Load libraries anew in this test, and after it."""
    for load in (load_builder, tensorrt_library.load_library):
        load.cache_clear()
    yield
    for load in (load_builder, tensorrt_library.load_library):
        load.cache_clear()


@pytest.mark.usefixtures("forget")
def test_tensorrt_proper_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    with pytest.raises(
        EngineError, match=r"tensorrt is not installed: pip install 'arforge\[tensorrt\]'.*NVIDIA's own"
    ):
        build(BuildJob(bundle, "tensorrt", "fp16"))


@pytest.mark.usefixtures("forget")
def test_a_missing_or_old_library_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_library.MINIMUM, RTX, (99, 0))
    with pytest.raises(EngineError, match=r"tensorrt-rtx 1\..* is too old, 99\.0 is needed: pip install 'arforge\[t"):
        build(BuildJob(bundle, RTX, "fp16"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(EngineError, match=r"tensorrt-rtx is not installed: pip install 'arforge\[tensorrt-rtx\]'"):
        build(BuildJob(bundle, RTX, "fp16"))


@pytest.mark.usefixtures("forget")
def test_one_process_takes_one_of_the_two_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    load_builder(RTX)
    fake = type("Fake", (), {"__version__": "11.4", "ILogger": object})
    monkeypatch.setattr(tensorrt_library, "import_library", lambda target: fake)
    with pytest.raises(EngineError, match="has loaded the other TensorRT: build for tensorrt in a process of its own"):
        load_builder.__wrapped__("tensorrt")


def test_an_engine_of_another_graph_library_or_gpu_is_refused(rtx_bundle: Path) -> None:
    opened = open_bundle(rtx_bundle)
    identity = opened.engine(RTX, "fp16")
    check_identity(opened, identity, identity["library"], "8.6")
    check_identity(opened, identity, None, None)
    again = (
        f"rebuild it with `arforge build {rtx_bundle} --target tensorrt-rtx --precision fp16 --compute-capability 8.6 "
    )
    with pytest.raises(EngineError, match=r"was built by tensorrt-rtx 1\..*, here is tensorrt-rtx 9\.9: " + again):
        check_identity(opened, identity, "tensorrt-rtx 9.9", None)
    with pytest.raises(EngineError, match=r"for compute capability 8\.6, 12\.0, here is a GPU .* 8\.9: " + again):
        check_identity(opened, identity, None, "8.9")
    with pytest.raises(EngineError, match="was built from another graph than .*step.onnx: " + again):
        check_identity(opened, {**identity, "graph_sha256": "0" * 64}, None, None)
    with pytest.raises(EngineError, match="was built from other weights than .*graphs/none: " + again):
        check_identity(opened, {**identity, "weights": "graphs/none"}, None, None)
    for capability, fine in (("8.6", True), ("12.1", True), ("10.0", True), ("7.5", False)):
        anywhere = {**identity, "compute_capabilities": []}
        if fine:
            check_identity(opened, anywhere, None, capability)
        else:
            with pytest.raises(EngineError, match=r"for compute capability 8\.6 and later, here is"):
                check_identity(opened, anywhere, None, capability)


def test_the_command_of_an_identity_builds_its_like(rtx_bundle: Path) -> None:
    identity = open_bundle(rtx_bundle).engine(RTX, "fp16")
    assert build_command(Path("b"), identity) == (
        "arforge build b --target tensorrt-rtx --precision fp16 --compute-capability 8.6 --compute-capability 12.0 "
        "--schedule zipar:4 --width 1 --width 2 --width 4 --images 1 --no-filters"
    )
    other = {
        **identity,
        "filters": True,
        "strip_weights": True,
        "options": {**identity["options"], "attention": "fused"},
    }
    assert build_command(Path("b"), other).endswith("--attention fused --filters --strip-weights")


def test_verification_looks_into_every_engine(rtx_bundle: Path) -> None:
    lines: list[str] = []
    verify_bundle(rtx_bundle, lines.append, target=RTX)
    for precision in ("fp16", "int8"):
        mine = [line for line in lines if line.startswith(f"engine {RTX} {precision}")]
        assert any(
            "4 caches updated in place, attention fused" in line and "1 casts to float32" in line for line in mine
        )
        assert len([line for line in mine if ": profile " in line]) == (3 if precision == "fp16" else 2)
    assert any("products: 9 int8" in line for line in lines)
    assert any("most likely token as fp32's for" in line for line in lines)
    assert not [line for line in lines if line.startswith("engine onnxruntime")]


def tamper(root: Path, precision: str, **fields: Any) -> Bundle:
    """Change an engine's identity behind the manifest's back."""
    opened = open_bundle(root)
    path = opened.path(entry_of(opened, precision).path)
    text = json.dumps({**json.loads(path.read_text()), **fields}, indent=1) + "\n"
    path.write_text(text)
    return opened


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"slots": 8}, VerificationError, "cache key_cache_0 has the shape .*expected"),
        ({"types": "float"}, VerificationError, "cache key_cache_0 is HALF, expected FLOAT"),
        ({"filters": True}, VerificationError, "its inputs are .*expected .*top_k"),
        (
            {"attention": {"lowering": "decomposed", "reason": "x"}},
            VerificationError,
            "attention is not decomposed, as its identity says",
        ),
        ({"library": "tensorrt-rtx 1.0"}, EngineError, "was built by tensorrt-rtx 1.0, here is"),
    ],
)
def test_verification_finds_what_does_not_fit(
    rtx_copy: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    from arforge.engines.tensorrt_verify import verify_engine

    opened = tamper(rtx_copy, "fp16", **fields)
    with pytest.raises(error, match=message):
        verify_engine(opened, entry_of(opened, "fp16"), lambda line: None)


def test_verification_finds_layers_that_are_wrong(rtx_copy: Path) -> None:
    from arforge.engines.tensorrt_verify import verify_engine

    opened = open_bundle(rtx_copy)
    path = opened.path(opened.engine(RTX, "int8")["layers"])
    path.write_text(path.read_text().replace('"Int8"', '"Half"'))
    with pytest.raises(VerificationError, match="product .* does not run on int8"):
        verify_engine(opened, entry_of(opened, "int8"), lambda line: None)


@pytest.mark.usefixtures("forget")
def test_without_the_library_verification_says_so(rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arforge.engines.tensorrt_verify import verify_engine

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    opened, lines = open_bundle(rtx_bundle), list[str]()
    verify_engine(opened, entry_of(opened, "int8"), lines.append, required=False)
    assert any("its network was not parsed, since tensorrt-rtx is not installed" in line for line in lines)
    assert any("profile 0" in line for line in lines)
    with pytest.raises(EngineError, match="not installed"):
        verify_engine(opened, entry_of(opened, "int8"), lines.append, required=True)


def test_a_target_without_engine_is_not_verified(bundle: Path) -> None:
    with pytest.raises(EngineError, match="has no tensorrt engine: build it with `arforge build"):
        verify_bundle(bundle, lambda line: None, target="tensorrt")


@pytest.mark.usefixtures("forget")
def test_a_dry_run_prints_commands_and_needs_no_library(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings", "polygraphy"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = bundle_copy.with_name("graphs")
    step, table, decoder = dry_run(BuildJob(bundle_copy, RTX, "fp16", ["8.6", "8.9"], ["zipar:4"]), folder)
    words = step.split()
    assert words[0] == "tensorrt_rtx"
    options = dict(word.removeprefix("--").split("=", 1) for word in words[1:] if "=" in word)
    assert options["computeCapabilities"] == "86,89"
    assert "--skipInference" in words
    slots = 80  # what zipar:4 needs, zeros included
    given = [word for word in words if word.startswith("--optShapes=")]
    free = "tokens:2x{0},positions:2x{0},mask:1x1x{0}x{1},uniforms:1x{0},guidance:1x{0}"
    assert given == [f"--optShapes={free.format(width, slots)}" for width in (1, 2, 3)]
    assert [word for word in words if word.startswith("--profile=")] == ["--profile=0", "--profile=1", "--profile=2"]
    assert "tokens:1x8x8" in decoder
    assert "--profile=2" in table
    opened = open_bundle(bundle_copy)
    opened.check_hashes()
    assert not (bundle_copy / "graphs/fp16").exists()
    shutil.rmtree(bundle_copy)  # the device needs the lowered graph and its weights alone
    import onnx

    onnx.checker.check_model(folder / options["onnx"])
    assert {path.suffix for path in (folder / "graphs/fp16").rglob("*") if path.is_file()} == {".onnx", ".weights"}


def test_a_dry_run_for_tensorrt(bundle_copy: Path) -> None:
    step, table, _ = dry_run(
        BuildJob(bundle_copy, "tensorrt", "fp32", schedules=["ntp"], images=[1, 2], strip_weights=True)
    )
    words = step.split()
    assert words[0] == "trtexec"
    assert {"--noTF32", "--stripWeights", "--refit", "--profile=1"} <= set(words)
    assert any(word.startswith("--maxShapes=tokens:4x1,") and "key_cache_0:4x4x64x16" in word for word in words)
    assert "--optShapes=known:4x65,fault:2,fault_call:2,drawn:2," in table
    assert "--stripWeights" not in table
    with pytest.raises(EngineError, match="leave --compute-capability out"):
        dry_run(BuildJob(bundle_copy, "tensorrt", "fp16", ["8.6"]))


def test_inspect_shows_what_an_engine_was_built_for(rtx_bundle: Path, rtx_arpg_bundle: Path) -> None:
    text = CliRunner().invoke(main, ["inspect", str(rtx_bundle)]).output
    assert re.search(r"tensorrt-rtx fp16 for sm86\+sm120: tensorrt-rtx 1\.\d.*, widths 1, 2, 4$", text, re.MULTILINE)
    assert re.search(r"^    3 profiles, \d+ slots, attention fused \(.*\), without top-k", text, re.MULTILINE)
    text = CliRunner().invoke(main, ["inspect", str(rtx_arpg_bundle)]).output
    assert "attention decomposed (several layers read one cache" in text
