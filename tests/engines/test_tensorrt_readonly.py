"""Engines that only read their caches: the graph beside the bundle's, the builder's layers, and what verify says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from fake_gpu import FakeGpu, fake_library
from fake_trtexec import READ_BY_TENSORRT_10_3
from made_once import made_once

from arforge.engines import tensorrt
from arforge.engines.opset_20 import OPSET
from arforge.engines.tensorrt import GRAPH, BuildJob
from arforge.engines.tensorrt_graph import decoder_graph, lower_for_tensorrt, write_model
from arforge.engines.tensorrt_layers import Expected, Layer, Tensor, check_layers, expected, load_layers
from arforge.engines.tensorrt_run import compare_engine
from arforge.engines.tensorrt_verify import verify_engine
from arforge.runner import EngineError, open_bundle
from arforge.runner.bundle import Bundle
from arforge.runner.bundle.writer import changing
from arforge.runner.errors import VerificationError
from arforge.runner.step_graph import cache_names, update_name

RTX = "tensorrt-rtx"
SLOTS, ROWS, WIDTH = 24, 2, 3
BUNDLES = ("bundle", "noise_bundle", "grouped_bundle", "arpg_bundle", "par_bundle", "text_bundle", "ids_bundle")


def step_inputs(bundle: Bundle, write_index: tuple[int, int], width: int = WIDTH) -> dict[str, Any]:
    """A step of one guided image with random caches, in which rows write at places of their own."""
    random, model = np.random.default_rng(0), bundle.model
    shape = (ROWS, model.kv_heads, SLOTS, model.head_size)
    given: dict[str, Any] = {name: random.standard_normal(shape, np.float32) for name in cache_names(model.caches)}
    seen = [np.tril(np.ones((width, SLOTS), bool), first) for first in write_index]
    given |= {
        "tokens": random.integers(0, model.ids, (ROWS, width)),
        "positions": random.integers(0, model.position_rows, (ROWS, width)),
        "write_index": np.array(write_index),
        "mask": np.stack(seen)[:, None] & (random.random(SLOTS) > 0.2),  # slots of prompts that rows do not have
        "uniforms": random.random((1, width), np.float32),
        "noise": random.random((1, width, model.vocabulary), np.float32),
        "guidance": np.full((1, width), 2, np.float32),
        "temperature": np.float32([1.3]),
        "top_k": np.array([7]),
        "top_p": np.float32([0.8]),
        "query_positions": random.integers(1, model.position_rows, (ROWS, width)),
        "condition": random.standard_normal((ROWS, 2, model.dim), np.float32),
    }
    given["mask"][:, :, :, max(write_index) + width :] = False
    return given


def run(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # caches that are not bound in place
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, {value.name: given[value.name] for value in session.get_inputs()})
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("width", [1, WIDTH])
@pytest.mark.parametrize("name", BUNDLES)
def test_the_graph_gives_what_the_bundles_does(name: str, width: int, request: pytest.FixtureRequest) -> None:
    """Rows have masks of their own where the model has prompts, and write where they are."""
    opened = open_bundle(request.getfixturevalue(name))
    own = name in ("text_bundle", "ids_bundle")
    given = step_inputs(opened, (5, 2) if own else (5, 5), width)
    if not own:
        given["mask"][1] = given["mask"][0]
    with changing(opened.root) as bundle:  # which takes the file away again
        lowered = lower_for_tensorrt(bundle, "fp32", SLOTS, 1, filters=True, attention="auto", read_only=True)
        path, *others = write_model(lowered.model, bundle.root / "graphs/fp32", GRAPH)
        assert not others  # float32 weights lie in the bundle
        onnx.checker.check_model(path, full_check=True)
        found = run(path, given if own else given | {"mask": given["mask"][:1]})
        ops = {node.op_type for node in lowered.model.graph.all_nodes()}
        assert lowered.model.opset_imports == {"": OPSET}
    assert ops <= READ_BY_TENSORRT_10_3
    wanted = run(opened.graph(opened.sampler.graph, "fp32"), given)
    assert found["next_tokens"].tolist() == wanted["next_tokens"].tolist()
    for cache in cache_names(opened.model.caches):
        for row, first in enumerate(given["write_index"]):
            written = wanted[f"new_{cache}"][row, :, first : first + width]
            np.testing.assert_allclose(found[update_name(cache)][row], written, atol=1e-5)
    assert not path.exists()


def test_the_graph_makes_masks_of_its_own_too(bundle: Path) -> None:
    """Of images that run ahead on drafts: rows at other places, without a mask from outside."""
    opened = open_bundle(bundle)
    given = step_inputs(opened, (9, 4))
    slots = np.arange(SLOTS)
    given["mask"] = np.stack([slots <= first + np.arange(WIDTH)[:, None] for first in (9, 4)])[:, None]
    with changing(opened.root) as changed:
        lowered = lower_for_tensorrt(changed, "fp32", SLOTS, 1, True, "auto", own_mask=True, read_only=True)
        path, *_ = write_model(lowered.model, changed.root / "graphs/fp32", GRAPH)
        found = run(path, given)
    wanted = run(opened.graph("step", "fp32"), given)
    assert found["next_tokens"].tolist() == wanted["next_tokens"].tolist()
    for row, first in enumerate((9, 4)):
        written = wanted["new_value_cache_1"][row, :, first : first + WIDTH]
        np.testing.assert_allclose(found["value_update_1"][row], written, atol=1e-5)


def test_what_the_cache_holds_at_the_steps_own_slots_is_not_seen(bundle: Path) -> None:
    """It is written behind the step: before it lies there what an earlier request left."""
    opened = open_bundle(bundle)
    given = step_inputs(opened, (5, 5))
    with changing(opened.root) as changed:
        lowered = lower_for_tensorrt(changed, "fp32", SLOTS, 1, True, "auto", read_only=True)
        path, *_ = write_model(lowered.model, changed.root / "graphs/fp32", GRAPH)
        given["mask"] = given["mask"][:1]
        found = []
        for value in (0.0, 1e3):
            for cache in cache_names(2):
                given[cache][:, :, 5 : 5 + WIDTH] = value
            found.append(run(path, given))
        seen = int(np.flatnonzero(given["mask"][0, 0, 0, :5])[0])  # counter-check
        given["key_cache_0"][:, :, seen] = 1e3
        other = run(path, given)
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])
    assert (other["key_update_1"] != found[0]["key_update_1"]).any()


@pytest.mark.parametrize("name", ["bundle", "text_bundle"])
def test_the_image_decoder_in_opset_20_gives_the_same_pixels(name: str, request: pytest.FixtureRequest) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    tokens = {"tokens": np.random.default_rng(1).integers(0, 32, (2, *opened.model.grid))}
    with changing(opened.root) as changed:
        path, new = decoder_graph(changed, older=True)
        assert new[0] == path
        onnx.checker.check_model(path, full_check=True)
        found = run(path, tokens)["images"]
        model = ir.load(path)
    assert model.opset_imports == {"": OPSET}
    assert {node.op_type for node in model.graph.all_nodes()} <= READ_BY_TENSORRT_10_3
    difference = found.astype(int) - run(opened.graph("decoder", "fp32"), tokens)["images"]
    assert np.abs(difference).max() <= 1


def test_attention_of_what_is_no_cache_is_refused(bundle: Path) -> None:
    from arforge.engines.tensorrt_readonly import read_only_caches

    opened = open_bundle(bundle)
    model = ir.load(opened.graph("step", "fp32"))
    with pytest.raises(EngineError, match="does not write each cache once"):
        read_only_caches(model, 3, SLOTS)
    (first, _) = (node for node in model.graph if node.op_type == "Attention")
    scatter = first.inputs[1]
    assert scatter is not None
    first.replace_input_with(1, scatter.producer().inputs[0])  # type: ignore[union-attr]
    with pytest.raises(EngineError, match="reads key_cache_0, which is no cache|reads key_cache_0"):
        read_only_caches(model, 2, SLOTS)


@pytest.fixture(scope="session")
def read_only_bundles(
    rtx_bundle: Path, arpg_bundle: Path, text_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By the name of a family, with engines of TensorRT-RTX, which is told to only read its caches."""

    def make(name: str, source: Path, precisions: tuple[str, ...], **wishes: Any) -> Path:
        def build(path: Path) -> None:
            shutil.copytree(source, path)
            for precision in precisions:
                tensorrt.build(BuildJob(path, RTX, precision, caches="read-only", **wishes))

        return made_once(tmp_path_factory, f"read-only-{name}.bundle", build)

    zipar: dict[str, Any] = {"schedules": ["zipar:4"], "widths": [1, 4]}
    return {
        "llamagen": make("llamagen", rtx_bundle, ("fp16", "int8", "int4"), **zipar),
        "arpg": make("arpg", arpg_bundle, ("fp16",), schedules=["arpg:3"]),
        "text": make("text", text_bundle, ("fp16",), prefill_widths=[8], filters=True, **zipar),
    }


CASES = [*(("llamagen", precision) for precision in ("fp16", "int8", "int4")), ("arpg", "fp16"), ("text", "fp16")]


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_engines_copy_no_cache_at_any_width_and_verify(
    read_only_bundles: dict[str, Path], family: str, precision: str
) -> None:
    opened = open_bundle(read_only_bundles[family])
    (entry,) = (engine for engine in opened.engines if engine.precision == precision and engine.device == "rtx")
    identity = opened.identity(entry)
    assert identity["caches"] == {"lowering": "read-only", "reason": "as asked"}
    assert identity["attention"]["lowering"] == "decomposed"
    assert not identity["tf32"]  # whose digits sums of probabilities need
    model = ir.load(opened.path(identity["lowered"]))
    assert {node.op_type for node in model.graph.all_nodes()} <= READ_BY_TENSORRT_10_3
    wanted = expected(model, opened.model.caches)
    assert wanted.read_only
    assert len(wanted.quantized) == (11 if precision == "int8" else 0)
    assert len(wanted.narrow) == (10 if precision == "int4" else 0)
    assert model.opset_imports[""] == (21 if precision == "int4" else 20)
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and precision == "int4":
            assert {use.node.op_type for use in node.outputs[0].uses()} == {"MatMul"}  # which reads them as they lie
            assert node.attributes["axis"].as_int() == 0
    layers = load_layers(opened.path(identity["layers"]).read_bytes())
    assert check_layers(layers, wanted, len(identity["profiles"])) == []
    lines: list[str] = []
    verify_engine(opened, entry, lines.append)
    assert any(f"{2 * opened.model.caches} caches only read, attention decomposed" in line for line in lines)


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_steps_agree_with_onnx_runtime(
    read_only_bundles: dict[str, Path], family: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `verify` on a machine with a GPU: given the same tokens so far, on a GPU that is not there."""
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    opened = open_bundle(read_only_bundles[family])
    entry = next(one for one in opened.engines if one.precision == precision and one.device == "rtx")
    identity, gpu = opened.identity(entry), FakeGpu()
    library = fake_library(gpu, identity["library"].split()[1])
    library.trt.add(opened, identity)
    (schedule,) = identity["options"]["schedule"]
    found = compare_engine(opened, identity, library, schedule, gpu)  # type: ignore[arg-type]
    assert found.steps > 2
    assert 0 < found.largest_error < (0.1 if precision == "int8" else 1e-2)
    assert found.same_step_tokens > 0.8


def test_an_identity_that_says_otherwise_does_not_verify(read_only_bundles: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(read_only_bundles["llamagen"], tmp_path / "copy.bundle"))
    (entry,) = (one for one in open_bundle(path).engines if one.precision == "fp16" and one.device == "rtx")
    file = path / entry.path
    file.write_text(file.read_text().replace('"lowering": "read-only"', '"lowering": "in-place" '))
    with pytest.raises(VerificationError, match="cache key_cache_0 goes in as .* and out as None"):
        verify_engine(open_bundle(path), entry, lambda line: None)


CACHE, UPDATE = Tensor("key_cache_0", (2, 4, 8, 16), "Half"), Tensor("key_update_0", (2, 4, 1, 16), "Half")
SCORES = Tensor("scores", (8, 8, 2), "Half")
READER = Layer("product", "gemm", 0, (CACHE,), (), (SCORES,), ())
WRITER = Layer("turn", "kgen", 0, (), (), (UPDATE,), ())
WANTED = Expected(("key_cache_0",), (), (), (), (), read_only=True)


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ((WRITER,), "nothing reads key_cache_0"),
        ((READER, WRITER, WRITER), "2 layers write key_update_0, expected 1"),
        ((READER,), "0 layers write key_update_0, expected 1"),
        ((READER, WRITER, replace(READER, name="turned", kind="kgen", outputs=(CACHE,))), "turned copies key_cache_0"),
    ],
)
def test_layers_that_are_wrong_are_found(layers: tuple[Layer, ...], problem: str) -> None:
    assert check_layers([READER, WRITER], WANTED, 1) == []
    assert check_layers([replace(READER, outputs=(CACHE,)), WRITER], WANTED, 1) == []  # scores of as many queries
    assert check_layers(layers, WANTED, 1) == [f"profile 0: {problem}"]
