"""What the exported graphs are made of: standard operators, shared weights, nothing of the machine that traced them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from tiny import CONFIG, GROUPED_CONFIG

STEPS = ("step", "step-logits")
GRAPHS = (*STEPS, "decoder", "encoder")


def load(root: Path, name: str) -> onnx.ModelProto:
    return onnx.load(root / f"graphs/fp32/{name}.onnx", load_external_data=False)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from all_nodes(body)


def places(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """The place outside the graph of each tensor that has one."""
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_pass_the_checker(bundle: Path, name: str) -> None:
    onnx.checker.check_model(bundle / f"graphs/fp32/{name}.onnx", full_check=True)


@pytest.mark.parametrize("name", STEPS)
def test_grouped_graphs_pass_the_checker(grouped_bundle: Path, name: str) -> None:
    onnx.checker.check_model(grouped_bundle / f"graphs/fp32/{name}.onnx", full_check=True)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_use_the_standard_operators_of_opset_24_alone(bundle: Path, name: str) -> None:
    model = load(bundle, name)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert not model.functions
    nodes = list(all_nodes(model.graph))
    assert {node.domain for node in nodes} == {""}
    assert len(nodes) > len(model.graph.node) or name not in STEPS  # the filters stand in an If


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("root", "layers"), [("bundle", CONFIG.n_layer), ("grouped_bundle", GROUPED_CONFIG.n_layer)])
def test_each_layer_has_one_attention_and_two_scatters(
    request: pytest.FixtureRequest, root: str, layers: int, name: str
) -> None:
    graph = load(request.getfixturevalue(root), name).graph
    count = Counter(node.op_type for node in graph.node)
    assert count["Attention"] == layers
    assert count["TensorScatter"] == count["RotaryEmbedding"] == 2 * layers
    assert count["RMSNormalization"] == 2 * layers + 1
    scatters = [node for node in graph.node if node.op_type == "TensorScatter"]
    fed = {node.input[0]: node.output[0] for node in scatters}
    kinds = [f"{kind}_cache_{layer}" for layer in range(layers) for kind in ("key", "value")]
    assert fed == {name: f"new_{name}" for name in kinds}


def test_a_layer_costs_at_most_22_nodes(bundle: Path, grouped_bundle: Path) -> None:
    small, large = (len(load(root, "step").graph.node) for root in (bundle, grouped_bundle))
    assert large - small <= 22 * (GROUPED_CONFIG.n_layer - CONFIG.n_layer)
    assert small <= 22 * CONFIG.n_layer + 45


@pytest.mark.parametrize("name", STEPS)
def test_no_weight_is_transposed_at_run_time(bundle: Path, name: str) -> None:
    model = load(bundle, name)
    stored = {tensor.name for tensor in model.graph.initializer}
    moved = [node.input[0] for node in all_nodes(model.graph) if node.op_type == "Transpose"]
    assert moved
    assert not stored & set(moved)


@pytest.mark.parametrize("name", ["model", "tokenizer"])
def test_weights_are_stored_once_in_one_file_that_their_graphs_share(bundle: Path, name: str) -> None:
    graphs = STEPS if name == "model" else ("decoder", "encoder")
    tables = [places(load(bundle, graph)) for graph in graphs]
    file = bundle / f"graphs/fp32/weights/{name}.weights"
    spans: dict[tuple[int, int], str] = {}
    for table in tables:
        for tensor, place in table.items():
            assert place["location"] == f"weights/{name}.weights"
            span = int(place["offset"]), int(place["length"])
            assert spans.setdefault(span, tensor) == tensor
            assert span[0] % 4096 == 0
    for tensor in tables[0].keys() & tables[1].keys():
        assert tables[0][tensor] == tables[1][tensor]
    ordered = sorted(spans)
    for (offset, length), (following, _) in pairwise(ordered):
        assert 0 <= following - (offset + length) < 4096
    assert file.stat().st_size == sum(ordered[-1])


def test_both_step_graphs_hold_the_same_weights(bundle: Path) -> None:
    first, second = (places(load(bundle, name)) for name in STEPS)
    assert first == second
    expected = {"tok_embeddings.weight", "norm.weight", "output.weight", "cosine", "sine"}
    assert expected <= set(first)
    assert len(first) == 5 + 7 * CONFIG.n_layer


@pytest.mark.parametrize("name", GRAPHS)
def test_what_stays_in_the_graph_is_small(bundle: Path, name: str) -> None:
    model = load(bundle, name)
    inside = [tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert all(tensor.ByteSize() < 1000 for tensor in inside)
    assert (bundle / f"graphs/fp32/{name}.onnx").stat().st_size < 100_000


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_carry_no_notes_of_the_tracer(bundle: Path, name: str) -> None:
    path = bundle / f"graphs/fp32/{name}.onnx"
    model = load(bundle, name)
    assert not model.metadata_props
    assert not model.doc_string
    assert (model.producer_name, bool(model.producer_version)) == ("arforge", True)
    graphs = [model.graph, *(a.g for node in all_nodes(model.graph) for a in node.attribute if a.HasField("g"))]
    for graph in graphs:
        assert not graph.metadata_props
        assert not graph.doc_string
    for noted in (*all_nodes(model.graph), *(value for graph in graphs for value in graph.value_info)):
        assert not noted.metadata_props
        assert not noted.doc_string
    data = path.read_bytes()
    for trace in (b".py", b"stack_trace", b"site-packages", os.fsencode(Path(__file__).parents[2])):
        assert trace not in data, trace


def test_the_step_gives_no_logits_and_the_graph_for_verification_does(bundle: Path) -> None:
    lean, full = ([value.name for value in load(bundle, name).graph.output] for name in STEPS)
    assert lean[0] == "next_tokens"
    assert "logits" not in lean
    assert full == ["next_tokens", "logits", *lean[1:]]
