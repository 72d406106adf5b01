from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIG, random_weights

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.engines.low_precision import add_graphs
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.export.stored_values import stored_values
from arforge.export.verify import load_module, stored_weights
from arforge.export.wide_weights import load_wide, widen
from arforge.runner import open_bundle
from arforge.runner.bundle import Bundle, Precision


@pytest.fixture(scope="module", params=["bf16", "fp16", "int4"])
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose weights are not stored in float32."""
    folder, precision = tmp_path_factory.mktemp("narrow"), request.param
    save_file(random_weights(CONFIG, 3), folder / "x.safetensors")
    kind: Precision = precision
    export_bundle(
        ExportJob(FAMILY, CONFIG, folder / "x.safetensors", None, folder / "x.bundle", ["ntp"], precision=kind)
    )
    return open_bundle(folder / "x.bundle")


def test_a_widened_graph_has_the_operators_and_types_of_one_in_float32(narrow: Bundle, bundle: Path) -> None:
    model = ir.load(narrow.graph("step", "fp32"))
    assert widen(model) == 12
    wide = ir.load(open_bundle(bundle).graph("step", "fp32"))
    assert Counter(node.op_type for node in model.graph) == Counter(node.op_type for node in wide.graph)
    found, wanted = (
        {name: (value.dtype, value.shape) for name, value in graph.graph.initializers.items()}
        for graph in (model, wide)
    )
    assert found == wanted
    assert widen(model) == 0
    assert widen(wide) == 0


def test_widened_values_are_those_of_the_stored_ones(narrow: Bundle) -> None:
    path = narrow.graph("step", "fp32")
    stored, wide = ir.load(path).graph.initializers, stored_weights(path)
    for name in ("layers.0.attention.wo.weight", "tok_embeddings.weight"):
        codes = stored[name].const_value
        assert codes is not None
        values = stored_values(codes).astype(np.float32)
        if codes.dtype == ir.DataType.UINT4:
            scales = stored[f"{name}.scales"].const_value
            assert scales is not None
            values = (values - 8) * np.repeat(stored_values(scales), values.shape[1] // scales.shape[1], axis=1)
        elif "embeddings" not in name:
            values = values.T
        np.testing.assert_array_equal(wide[name].numpy(), values)


def test_a_graph_in_float32_stays_in_its_file(bundle: Path) -> None:
    model = load_wide(open_bundle(bundle).graph("step", "fp32"))
    places = {tensor.data_location for tensor in model.graph.initializer if tensor.name.endswith("weight")}
    assert places == {onnx.TensorProto.EXTERNAL}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graphs_of_lower_precision_are_made_of_the_stored_values(narrow: Bundle, precision: str) -> None:
    add_graphs(narrow, precision)
    graph = ir.load(narrow.path(f"graphs/{precision}/step.onnx")).graph
    assert not [node for node in graph if node.op_type == "DequantizeLinear"]
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    for name, wanted in load_module(narrow).state_dict().items():
        tensor = graph.initializers[name].const_value
        assert tensor is not None
        found = torch.from_numpy(stored_values(tensor).astype(np.float32))
        factor = name.endswith("weight") and "norm" not in name and "embeddings" not in name
        assert torch.equal(found.t() if factor else found, wanted.to(dtype).float()), name


def test_calibration_takes_the_stored_values(narrow: Bundle) -> None:
    found = calibrate(CalibrationJob(narrow.root, Rule("max", 99.99), samples=2, check=2, trials=0, threads=1))
    assert found.layers == 11
    assert max(error.error for error in found.report.layers) < 0.15
    assert found.report.agreement[0].logit_error < 0.3
