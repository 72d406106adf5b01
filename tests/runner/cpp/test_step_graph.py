"""The step-graph contract: C++ has the table that Python has, and refuses graphs that are not of it."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import cpp_abi
import onnx
import pytest
from cpp_abi import STATUS, Failure
from tiny_ids import CONDITION

from arforge.runner.bundle import FeaturesCondition, open_bundle
from arforge.runner.loop_graph import LoopSizes, loop_contract
from arforge.runner.step_graph import CACHE_TYPES, Contract, contract, lowered_step
from arforge.runner.table_graph import TableSizes, table_contract

GRAPHS = ("step", "step-logits", "step-noise", "condition", "text", "decoder", "encoder")
CONDITIONS: dict[str, Any] = {
    "class": None,
    "features": FeaturesCondition(120, 2048, "clean"),
    "ids": CONDITION,
}
GRAPHS_OF = {
    "class": {*GRAPHS} - {"condition", "text"},
    "features": {*GRAPHS},
    "ids": {*GRAPHS} - {"text"},
}
"""The graphs that a model of that condition can have."""


def plain(found: Contract) -> dict[str, list[Any]]:
    return {
        side: [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in getattr(found, side)]
        for side in ("inputs", "outputs")
    }


@pytest.mark.parametrize("precision", CACHE_TYPES)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", ["bundle", "arpg_bundle"])
def test_both_runners_have_one_contract(
    sanitized: Any, request: pytest.FixtureRequest, tmp_path: Path, name: str, condition: str, precision: str
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    manifest = opened.to_json()
    model = opened.model
    if CONDITIONS[condition] is not None:
        model = type(model)(**{**vars(model), "condition": CONDITIONS[condition]})
        manifest["model"]["condition"] = vars(CONDITIONS[condition])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    command = [str(sanitized.program("internals")), "contracts", str(tmp_path / "manifest.json"), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    graphs = GRAPHS_OF[condition]
    expected = {graph: plain(contract(model, graph, CACHE_TYPES[precision])) for graph in GRAPHS if graph in graphs}
    expected["views"] = plain(lowered_step(model, CACHE_TYPES[precision], False, views=True))
    for graph, masks in product(("step", "step-noise"), ("one", "own", "each")):
        one, own = masks == "one", masks == "own"
        expected[f"loop {graph} {masks}"] = plain(loop_contract(model, LoopSizes(12, 34, one, own), graph))
        table = table_contract(model, TableSizes(5, 6, 7, 8, 9), graph, 34, one_mask=one, own_mask=own)
        expected[f"table {graph} {masks}"] = plain(table)
    assert json.loads(done.stdout) == expected


def renamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["heat" if name == "temperature" else name for name in node.input]
        for attribute in node.attribute:
            for inner in attribute.g.node:
                inner.input[:] = ["heat" if name == "temperature" else name for name in inner.input]
    value(model, "temperature").name = "heat"


def value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(given for given in model.graph.input if given.name == name)


def fixed(model: onnx.ModelProto) -> None:
    value(model, "tokens").type.tensor_type.shape.dim[0].dim_value = 2


def more(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("mood", onnx.TensorProto.FLOAT, ["images"]))


def other_type(model: onnx.ModelProto) -> None:
    more(model)
    model.graph.input[-1].name = "seen"
    model.graph.input.remove(value(model, "positions"))
    model.graph.input[-1].name = "positions"
    cast = onnx.helper.make_node("Cast", ["positions"], ["positions_int64"], to=onnx.TensorProto.INT64)
    value(model, "positions").type.CopyFrom(
        onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["rows", "width"])
    )
    for node in model.graph.node:
        node.input[:] = ["positions_int64" if name == "positions" else name for name in node.input]
    model.graph.node.insert(0, cast)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"input temperature is missing, expected float32 \[images\]"),
        (fixed, r"input tokens is \[2, -1\] where -1 is open, expected int64 \[rows, width\]"),
        (more, r"it has \d+ inputs, expected \d+"),
        (other_type, r"input positions is of another type, expected int64 \[rows, width\]"),
    ],
)
def test_a_graph_of_another_contract_is_refused_when_it_is_opened(
    library: Any, bundle_copy: Path, change: Any, message: str
) -> None:
    path = open_bundle(bundle_copy).engine("onnxruntime", "fp32")["graph"]
    model = onnx.load(bundle_copy / path, load_external_data=False)
    change(model)
    data = model.SerializeToString()
    (bundle_copy / path).write_bytes(data)
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"][path]["bytes"] = len(data)
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        Failure, match=rf"the step graph of .* does not fit the manifest: {message}: export it again"
    ) as refused:
        cpp_abi.Runner(library, bundle_copy)
    assert refused.value.status == STATUS["engine"]
