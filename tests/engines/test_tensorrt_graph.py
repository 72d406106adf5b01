"""The graph that TensorRT is given: attention in either lowering, fixed slots, nothing that branches, same results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lowered_steps import BUNDLES, SLOTS, run, step_inputs

from arforge.engines.attention import against_fusing, choose_attention, decompose_attention
from arforge.engines.tensorrt import GRAPH
from arforge.engines.tensorrt_graph import lower_for_tensorrt, write_model
from arforge.runner import EngineError, open_bundle
from arforge.runner.bundle.writer import changing


@pytest.mark.parametrize("filters", [False, True])
@pytest.mark.parametrize("name", BUNDLES)
def test_the_lowered_graph_gives_what_the_bundles_does(
    name: str, filters: bool, request: pytest.FixtureRequest
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    given = step_inputs(opened, filters)
    with changing(opened.root) as bundle:  # which takes the file away again
        lowered = lower_for_tensorrt(bundle, "fp32", SLOTS, 1, filters, "auto")
        path, *others = write_model(lowered.model, bundle.root / "graphs/fp32", GRAPH)
        assert not others  # float32 weights lie in the bundle
        onnx.checker.check_model(path, full_check=True)
        own = "condition" in given
        found = run(path, given if own else given | {"mask": given["mask"][:1]})  # which is one for all rows
        ops = {node.op_type for node in lowered.model.graph.all_nodes()}
    assert lowered.attention.lowering == "decomposed"
    assert not ops & {"If", "Loop", "Attention"}
    assert {"TensorScatter", "RMSNormalization", "RotaryEmbedding", "Softmax"} <= ops
    expected = run(opened.graph("step", "fp32"), given)
    assert found[0].tolist() == expected[0].tolist()
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert not path.exists()


def test_rows_with_prompts_keep_masks_of_their_own(text_bundle: Path) -> None:
    opened = open_bundle(text_bundle)
    for images, rows in ((None, "rows"), (3, "6")):
        model = lower_for_tensorrt(opened, "fp32", SLOTS, images, filters=False, attention="auto").model
        inputs = {str(value.name): [str(dim) for dim in value.shape or ()] for value in model.graph.inputs}
        assert inputs["mask"] == [rows, "1", "width", str(SLOTS)]
        assert inputs["condition"] == [rows, "condition", "64"]


@pytest.mark.parametrize("filters", [False, True])
def test_inputs_and_dimensions(arpg_bundle: Path, filters: bool) -> None:
    opened = open_bundle(arpg_bundle)
    model = lower_for_tensorrt(opened, "fp32", SLOTS, None, filters, "auto").model
    inputs = {str(value.name): [str(dim) for dim in value.shape or ()] for value in model.graph.inputs}
    assert inputs["mask"] == ["1", "1", "width", str(SLOTS)]
    assert inputs["key_cache_0"] == ["rows", "4", str(SLOTS), "16"]
    assert inputs["query_positions"] == ["rows", "queries"]
    assert inputs["uniforms"] == ["images", "queries"]
    assert ({"top_k", "top_p"} <= inputs.keys()) == filters
    assert {"guidance", "temperature"} <= inputs.keys()
    one = lower_for_tensorrt(opened, "fp32", SLOTS, 3, filters, "auto").model
    shapes = {str(value.name): list(value.shape or ()) for value in one.graph.inputs}
    assert shapes["key_cache_0"] == [6, 4, SLOTS, 16]
    assert str(shapes["uniforms"][0]) == "3"


def test_the_filter_is_a_real_one(bundle: Path) -> None:
    """Counter-check: with it off, these inputs give another token."""
    opened = open_bundle(bundle)
    given = step_inputs(opened, filters=True)
    given["top_k"] = np.array([1])
    graph = opened.graph("step", "fp32")
    kept = run(graph, given)[0]
    assert (kept == run(graph, given | {"temperature": np.float32([0])})[0]).all()  # of one: the most likely
    assert (kept != run(graph, given | {"top_k": np.array([0]), "top_p": np.float32([1])})[0]).any()


def half(bundle: Path) -> ir.Model:
    """A step graph whose attention has the type that can be fused; its weights are never read."""
    model = ir.load(open_bundle(bundle).graph("step", "fp32"))
    for node in model.graph:
        if node.op_type == "Attention":
            assert node.inputs[0] is not None
            node.inputs[0].dtype = ir.DataType.FLOAT16
    return model


def test_half_precision_heads_that_fit_are_fused(bundle: Path) -> None:
    assert against_fusing(half(bundle)) is None
    assert choose_attention(half(bundle), "auto").lowering == "fused"
    assert choose_attention(half(bundle), "fused").reason == "as asked"
    chosen = choose_attention(half(bundle), "decomposed")
    assert (chosen.lowering, chosen.reason) == ("decomposed", "as asked")


@pytest.mark.parametrize("size", [12, 136])
def test_heads_of_other_sizes_are_decomposed(bundle: Path, size: int) -> None:
    model = half(bundle)
    query = next(node.inputs[0] for node in model.graph if node.op_type == "Attention")
    assert query is not None
    query.shape = ir.Shape([2, 4, 1, size])
    chosen = choose_attention(model, "auto")
    assert chosen.lowering == "decomposed"
    assert f"multiple of 8 up to 128, not {size}" in chosen.reason


def test_float32_and_shared_caches_are_decomposed_and_cannot_be_fused(bundle: Path, arpg_bundle: Path) -> None:
    whole = ir.load(open_bundle(bundle).graph("step", "fp32"))
    assert "takes fp16 and bf16 alone" in choose_attention(whole, "auto").reason
    assert "several layers read one cache" in choose_attention(half(arpg_bundle), "auto").reason
    for model in (whole, half(arpg_bundle)):
        with pytest.raises(EngineError, match=r"attention cannot be fused: .*Use --attention decomposed, or auto"):
            choose_attention(model, "fused")


def test_grouped_heads_stay_one_product(grouped_bundle: Path) -> None:
    model = ir.load(open_bundle(grouped_bundle).graph("step", "fp32"))
    before = [node.op_type for node in model.graph]
    decompose_attention(model)
    after = [node.op_type for node in model.graph]
    layers = before.count("Attention")
    assert after.count("MatMul") == before.count("MatMul") + 2 * layers
    assert after.count("Concat") == before.count("Concat") + 1  # the mask is repeated once, for all layers
    assert "Expand" not in after


def test_the_name_follows_the_content(bundle_copy: Path) -> None:
    opened = open_bundle(bundle_copy)
    folder = bundle_copy / "graphs/fp32"
    names = {
        write_model(lower_for_tensorrt(opened, "fp32", slots, 1, filters, "auto").model, folder, "lowered")[0].name
        for slots, filters in ((24, False), (24, False), (32, False), (24, True))
    }
    assert len(names) == 3


def test_a_precision_that_the_bundle_lacks_says_how_to_make_it(bundle: Path) -> None:
    with pytest.raises(EngineError, match="no int8 graphs: make them with `arforge calibrate`"):
        lower_for_tensorrt(open_bundle(bundle), "int8", SLOTS, 1, filters=False, attention="auto")


def test_lowering_leaves_nothing_in_the_bundle(bundle: Path) -> None:
    listed = set(json.loads((bundle / "manifest.json").read_text())["files"]) | {"manifest.json"}
    assert {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} == listed
