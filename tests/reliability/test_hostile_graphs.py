"""Graph files that point outside their data: `arforge verify` refuses them before a runtime opens them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from reliability.small_bundle import edit_manifest

from arforge.engines import onnxruntime
from arforge.engines.graph_data import check_graphs
from arforge.engines.verify import verify_bundle
from arforge.runner import BundleError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle.writer import facts_of
from arforge.runner.conditions import sample_features
from arforge.runner.errors import EngineError, VerificationError

STEP, WEIGHTS = "graphs/fp32/step.onnx", "graphs/fp32/weights/model.weights"
Change = Callable[[onnx.TensorProto, onnx.TensorProto], object]


def set_place(tensor: onnx.TensorProto, **changes: object) -> None:
    for entry in tensor.external_data:
        entry.value = str(changes.get(entry.key, entry.value))


def place_of(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def change_step(root: Path, change: Change) -> None:
    """Change the first two weights of the step graph; the manifest knows the new file."""
    model = onnx.load(root / STEP, load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    change(*outside[:2])
    (root / STEP).write_bytes(model.SerializeToString())
    edit_manifest(root, lambda manifest: manifest["files"].update({STEP: vars(facts_of(root / STEP))}))


def half_over(one: onnx.TensorProto, other: onnx.TensorProto) -> None:
    place = place_of(one)
    set_place(other, offset=int(place["offset"]) + 4)


ATTACKS: dict[str, tuple[Change, str]] = {
    "offset beyond the file": (lambda one, _: set_place(one, offset=2**40), r"from byte 1099511627776 of .*which has"),
    "offset of 64 bits": (lambda one, _: set_place(one, offset=2**63 - 8), "which has"),
    "offset before the file": (lambda one, _: set_place(one, offset=-8), "which has|is not an ONNX graph"),
    "length beyond the file": (lambda one, _: set_place(one, length=2**40), "takes 1099511627776 from"),
    "length of nothing": (lambda one, _: set_place(one, length=0), "takes 0 from"),
    "shape beyond the length": (lambda one, _: one.dims.append(2**40), "needs .* bytes and takes"),
    "shape that overflows": (lambda one, _: one.dims.extend([2**62, 2**62]), "needs .* bytes and takes"),
    "overlapping regions": (half_over, "share some bytes"),
    "file outside": (lambda one, _: set_place(one, location="../../manifest.json"), "no file of the bundle"),
    "absolute file": (lambda one, _: set_place(one, location="/etc/passwd"), "no file of the bundle"),
    "file not listed": (lambda one, _: set_place(one, location="weights/other"), "no file of the bundle"),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_weights_that_are_not_where_they_should_be_are_refused(bundle_copy: Path, case: str) -> None:
    change, message = ATTACKS[case]
    change_step(bundle_copy, change)
    with pytest.raises(VerificationError, match=message):
        verify_bundle(bundle_copy, lambda line: None)


@pytest.mark.parametrize("case", [name for name in ATTACKS if name not in ("overlapping regions", "length of nothing")])
def test_onnx_runtime_refuses_what_leaves_its_file(bundle_copy: Path, case: str) -> None:
    """So a runner that has not verified the bundle reads no other memory; tensors that overlap harm nothing."""
    change_step(bundle_copy, ATTACKS[case][0])
    with pytest.raises(EngineError, match="ONNX Runtime cannot load"):
        open_session(bundle_copy / STEP, threads=1)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 50], ids=["empty", "noise", "zip"])
def test_a_file_that_is_no_graph_is_refused(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / STEP).write_bytes(content)
    edit_manifest(bundle_copy, lambda manifest: manifest["files"].update({STEP: vars(facts_of(bundle_copy / STEP))}))
    with pytest.raises((VerificationError, EngineError)):
        verify_bundle(bundle_copy, lambda line: None)


CONDITION = "graphs/fp32/condition.onnx"


def renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "other"
    for node in model.graph.node:
        node.input[:] = ["other" if name == "features" else name for name in node.input]


def shorter(model: onnx.ModelProto) -> None:
    """It gives one row less than the prompt has, under the shape of all."""
    numbers = {"first": 1, "last": 2**31, "axis": 1}
    model.graph.initializer.extend(numpy_helper.from_array(np.array([v]), name) for name, v in numbers.items())
    last = next(node for node in model.graph.node if "condition" in node.output)
    last.output[0] = "whole"
    model.graph.node.append(helper.make_node("Slice", ["whole", "first", "last", "axis"], ["condition"]))


def too_wide(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**30


CONDITION_ATTACKS = {
    "another input": (renamed, "features is missing, expected float32 .*: export the bundle again"),
    "rows left out": (
        shorter,
        r"gives rows \[1, \d+, 64\] and .* for a prompt of .*, expected|ONNX Runtime failed",
    ),
    "another width": (too_wide, "export the bundle again|cannot load"),
    "no graph": (None, "cannot load"),
}


@pytest.mark.parametrize("case", CONDITION_ATTACKS)
def test_a_condition_graph_that_is_another_is_refused(text_bundle: Path, tmp_path: Path, case: str) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "copy.bundle"))
    change, message = CONDITION_ATTACKS[case]
    model = onnx.load(root / CONDITION, load_external_data=False)
    if change is not None:
        change(model)
    content = model.SerializeToString() if change else b"no graph"
    (root / CONDITION).write_bytes(content)
    edit_manifest(root, lambda manifest: manifest["files"].update({CONDITION: vars(facts_of(root / CONDITION))}))
    features = sample_features(open_bundle(root).model, 2)
    with Runner.open(root, threads=1) as runner, pytest.raises((BundleError, EngineError), match=message):
        runner.generate(features=features, schedule="ntp")


def test_weights_of_the_condition_graph_are_looked_at_too(text_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "copy.bundle"))
    model = onnx.load(root / CONDITION, load_external_data=False)
    set_place(next(tensor for tensor in model.graph.initializer if tensor.external_data), offset=2**40)
    (root / CONDITION).write_bytes(model.SerializeToString())
    edit_manifest(root, lambda manifest: manifest["files"].update({CONDITION: vars(facts_of(root / CONDITION))}))
    with pytest.raises(VerificationError, match="from byte 1099511627776"):
        verify_bundle(root, lambda line: None)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_refused(bundle_copy: Path, scale: float) -> None:
    onnxruntime.build(bundle_copy, "int8")
    opened = open_bundle(bundle_copy)
    path = opened.engine("onnxruntime", "int8")["graph"]
    check_graphs(opened, [path])
    file = bundle_copy / path
    model = onnx.load(file, load_external_data=False)
    wanted = {node.input[2] for node in model.graph.node if node.op_type == "MatMulNBits"}
    scales = next(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    if scales.external_data:
        place = place_of(scales)
        data = np.memmap(file.parent / place["location"], np.float32, "r+", int(place["offset"]), (1,))
        data[0] = scale
        data.flush()
    else:
        values = np.frombuffer(scales.raw_data, np.float32).copy()
        values[0] = scale
        scales.raw_data = values.tobytes()
        file.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="is not a positive number"):
        check_graphs(opened, [path])
