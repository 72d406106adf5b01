"""Lowering float32 graphs to float16 and bfloat16: which values change, where the one cast is, and what it costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from arforge.engines.compare import compare_precision
from arforge.engines.low_precision import add_graphs, entries
from arforge.engines.precision import TYPES, lower_precision
from arforge.runner import EngineError, open_bundle
from arforge.runner.bundle import Bundle
from arforge.runner.bundle.writer import changing, write_revision

FLOAT = ir.DataType.FLOAT


@pytest.fixture(scope="module", params=["bundle", "grouped_bundle", "arpg_bundle", "text_bundle"])
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with graphs of every precision."""
    source: Path = request.getfixturevalue(request.param)
    root = Path(shutil.copytree(source, tmp_path_factory.mktemp("lowered") / source.name))
    with changing(root) as bundle:
        new = [path for precision in TYPES for path in add_graphs(bundle, precision)]
        graphs = (*bundle.graphs, *(graph for precision in TYPES for graph in entries(bundle, precision)))
        write_revision(replace(bundle, graphs=graphs), new)
    opened = open_bundle(root)
    opened.check_hashes()
    return opened


def floats(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of a floating type, those inside the sampler's branches too."""
    for value in [*model.graph.inputs, *(out for node in model.graph.all_nodes() for out in node.outputs)]:
        if value.dtype is not None and value.dtype.is_floating_point():
            yield value


@pytest.mark.parametrize("precision", TYPES)
def test_caches_and_weights_are_lowered_and_the_sampler_is_not(lowered: Bundle, precision: str) -> None:
    model, dtype = ir.load(lowered.graph("step-logits", precision)), TYPES[precision]
    inputs = {str(value.name): value.dtype for value in model.graph.inputs}
    outputs = {str(value.name): value.dtype for value in model.graph.outputs}
    caches = [name for name in inputs if "_cache_" in name]
    assert len(caches) == 2 * lowered.model.caches
    assert {inputs[name] for name in caches} == {outputs[f"new_{name}"] for name in caches} == {dtype}
    assert {inputs[name] for name in ("guidance", "temperature", "top_p", "uniforms")} == {FLOAT}
    assert inputs.get("condition", FLOAT) == FLOAT  # rows of a prompt are cast where they come in
    assert outputs["logits"] == FLOAT
    weights = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    assert {value.dtype for value in weights} == {dtype}
    assert len(weights) > 10


@pytest.mark.parametrize("precision", TYPES)
def test_the_logits_alone_are_cast_and_rows_of_a_prompt(lowered: Bundle, precision: str) -> None:
    model, dtype = ir.load(lowered.graph("step", precision)), TYPES[precision]
    casts = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in (dtype, FLOAT)
        if node.outputs[0].dtype in (dtype, FLOAT)
    ]
    prompt = [node for node in casts if node.inputs[0] is not None and node.inputs[0].name == "condition"]
    assert [node.outputs[0].dtype for node in prompt] == [dtype] * (lowered.model.family == "llamagen-t2i")
    casts = [node for node in casts if node not in prompt]
    assert len(casts) == 1
    source = casts[0].inputs[0]
    assert source is not None
    head = source.producer()
    assert head is not None
    assert head.op_type == "MatMul"
    after = False
    for node in model.graph:  # in order: all before the cast is low, all after it float32
        if node is casts[0]:
            after = True
        kinds = {value.dtype for value in node.outputs if value.dtype in (dtype, FLOAT)}
        assert kinds <= ({FLOAT} if after else {dtype}), node.name


@pytest.mark.parametrize("precision", TYPES)
def test_norms_and_softmax_keep_float32_inside(lowered: Bundle, precision: str) -> None:
    model = ir.load(lowered.graph("step", precision))
    inside = {"RMSNormalization": "stash_type", "Attention": "softmax_precision"}
    nodes = [node for node in model.graph if node.op_type in inside]
    assert {node.op_type for node in nodes} == set(inside)
    for node in nodes:
        assert node.attributes[inside[node.op_type]].as_int() == FLOAT


def test_both_graphs_share_one_file_of_half_the_size(lowered: Bundle) -> None:
    whole = sum(
        value.const_value.nbytes
        for value in ir.load(lowered.graph("step", "fp32")).graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    )
    for precision in TYPES:
        places = []
        for name in ("step", "step-logits"):
            values = ir.load(lowered.graph(name, precision)).graph.initializers.values()
            tensors = [value.const_value for value in values if isinstance(value.const_value, ir.ExternalTensor)]
            places.append({(t.name, t.location, t.offset, t.length) for t in tensors})
            assert sum(t.nbytes for t in tensors) == whole // 2
        assert places[0] == places[1]


def test_float16_gives_the_tokens_of_float32_on_real_steps(lowered: Bundle) -> None:
    for entry in lowered.schedules:
        found = compare_precision(lowered, "fp16", entry.specification, max_steps=1000)
        assert found.steps == entry.steps
        assert 0 < found.largest_error < 1e-2
        assert found.same_tokens > 0.97


def test_bfloat16_is_the_same_graph_with_weights_rounded(lowered: Bundle) -> None:
    """ONNX Runtime's CPU provider runs no bfloat16, so its parts are compared instead."""
    half, brain = (ir.load(lowered.graph("step", precision)).graph for precision in ("fp16", "bf16"))
    assert [(n.op_type, [str(v and v.name) for v in n.inputs]) for n in half] == [
        (n.op_type, [str(v and v.name) for v in n.inputs]) for n in brain
    ]
    whole = ir.load(lowered.graph("step", "fp32")).graph.initializers
    for name, value in brain.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            source = whole[name].const_value
            assert source is not None
            np.testing.assert_array_equal(value.const_value.numpy(), source.numpy().astype(ml_dtypes.bfloat16))


def test_a_weight_that_float16_cannot_hold_is_named(bundle_copy: Path) -> None:
    opened = open_bundle(bundle_copy)
    tensor = ir.load(opened.graph("step", "fp32")).graph.initializers["layers.1.feed_forward.w2.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    with (bundle_copy / "graphs/fp32/weights/model.weights").open("r+b") as file:
        file.seek(tensor.offset or 0)
        file.write(np.float32(7e4).tobytes())
    with pytest.raises(EngineError, match=r"weight layers\.1\.feed_forward\.w2\.weight reaches beyond 6.55e\+04.*bf16"):
        add_graphs(opened, "fp16")
    add_graphs(opened, "bf16")  # and this can


def small_graph(*nodes: ir.Node, inputs: list[ir.Value], outputs: list[ir.Value], given: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(inputs, outputs, nodes=list(nodes), initializers=given, opset_imports={"": 24}, name="small")
    return ir.Model(graph, ir_version=10)


def tensor(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, const_value=ir.Tensor(array, name=name), type=ir.TensorType(FLOAT))


def value(name: str, dtype: ir.DataType = FLOAT) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([2, 2]))


def test_a_constant_of_both_halves_is_split_and_scales_stay() -> None:
    x, one = value("x"), tensor("one", np.float32(1))
    scale, zero = tensor("scale", np.float32(3e-6)), ir.Value(name="zero", const_value=ir.Tensor(np.int8(0)))
    zero.dtype = ir.DataType.INT8
    codes = ir.Value(
        name="codes", const_value=ir.Tensor(np.ones((2, 2), np.int8)), type=ir.TensorType(ir.DataType.INT8)
    )
    added, weight, product, result = value("added"), value("weight"), value("product"), value("result")
    model = small_graph(
        ir.Node("", "Add", [x, one], outputs=[added]),
        ir.Node("", "DequantizeLinear", [codes, scale, zero], outputs=[weight]),
        ir.Node("", "MatMul", [added, weight], outputs=[product]),
        ir.Node("", "Mul", [product, one], outputs=[result]),
        inputs=[x],
        outputs=[result],
        given=[one, scale, zero, codes],
    )
    lower_precision(model, ir.DataType.FLOAT16)
    add, dequantize, _, cast, mul = model.graph
    assert add.inputs[1] is not one
    assert add.inputs[1] is not None
    assert add.inputs[1].dtype == ir.DataType.FLOAT16
    assert mul.inputs[1] is one
    assert one.dtype == scale.dtype == result.dtype == FLOAT
    assert dequantize.attributes["output_dtype"].as_int() == ir.DataType.FLOAT16
    assert (cast.op_type, cast.inputs[0]) == ("Cast", product)
    assert product.dtype == weight.dtype == added.dtype == x.dtype == ir.DataType.FLOAT16


def test_a_graph_without_a_product_is_refused() -> None:
    x, y = value("x"), value("y")
    model = small_graph(ir.Node("", "Identity", [x], outputs=[y]), inputs=[x], outputs=[y], given=[])
    with pytest.raises(EngineError, match="no matrix product: it is not a step graph"):
        lower_precision(model, ir.DataType.FLOAT16)


def test_an_input_of_both_halves_is_refused() -> None:
    x, w, product, result = value("x"), tensor("w", np.ones((2, 2), np.float32)), value("product"), value("result")
    model = small_graph(
        ir.Node("", "MatMul", [x, w], outputs=[product]),
        ir.Node("", "Add", [product, x], outputs=[result]),
        inputs=[x],
        outputs=[result],
        given=[w],
    )
    with pytest.raises(EngineError, match="both the decoder and the sampler read the input x"):
        lower_precision(model, ir.DataType.FLOAT16)
