from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tiny import CONFIG

from arforge.calibration.layers import Layer, activations, find_layers, select
from arforge.runner.errors import CalibrationError


@pytest.fixture(scope="module")
def layers(bundle: Path) -> list[Layer]:
    return find_layers(onnx.load(bundle / "graphs/fp32/step.onnx", load_external_data=False).graph)


def test_every_matrix_of_the_model_is_a_layer(layers: list[Layer]) -> None:
    parts = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
    expected = [f"layers.{index}.{part}" for index in range(CONFIG.n_layer) for part in parts]
    assert [layer.name for layer in layers] == [*expected, "output"]
    shapes = {layer.name.rpartition(".")[2]: (layer.inputs, layer.outputs) for layer in layers}
    dim, hidden = CONFIG.dim, CONFIG.hidden
    assert shapes["wqkv"] == (dim, 3 * dim)
    assert shapes["w2"] == (hidden, dim)
    assert shapes["output"] == (dim, CONFIG.vocab_size)


def test_layers_of_one_input_share_its_tensor(layers: list[Layer]) -> None:
    found = activations(layers)
    assert len(found) == 4 * CONFIG.n_layer + 1
    by_name = {layer.name: layer for layer in layers}
    assert by_name["layers.0.feed_forward.w1"].activation == by_name["layers.0.feed_forward.w3"].activation
    assert found[by_name["layers.1.feed_forward.w2"].activation] == CONFIG.hidden


def test_patterns_choose_layers(layers: list[Layer]) -> None:
    assert select(layers, []) == frozenset()
    assert select(layers, ["output", "layers.1.*.w?"]) == {
        "output",
        "layers.1.attention.wo",
        *(f"layers.1.feed_forward.w{index}" for index in (1, 2, 3)),
    }


def test_a_pattern_that_matches_nothing_is_refused(layers: list[Layer]) -> None:
    with pytest.raises(CalibrationError, match=r"no layer is called 'layers\.7\.\*': the layers are layers\.0\.att"):
        select(layers, ["output", "layers.7.*"])


def test_excluding_everything_is_refused(layers: list[Layer]) -> None:
    with pytest.raises(CalibrationError, match="every layer is excluded"):
        select(layers, ["layers.*", "output"])


def test_a_graph_without_layers_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the graph nothing has no product"):
        find_layers(onnx.helper.make_graph([], "nothing", [], []))
