"""Gated products and drawing of our own: what the operators compute."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from arforge.runner import EngineError
from arforge.runner.backends.onnxruntime_session import open_session

Floats = NDArray[np.float32]
SHAPES = [(8, 256, 512, 128), (8, 256, 300, 130), (4, 64, 256, 64), (4, 16, 48, 5)]
BOTH = ("gate", "other")


def graph(nodes: list[NodeProto], inputs: dict[str, Floats], stored: dict[str, NDArray[Any]], output: int) -> bytes:
    made = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * one.ndim) for name, one in inputs.items()],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    versions = [
        helper.make_opsetid(name, version) for name, version in (("", 24), ("com.microsoft", 1), ("arforge", 1))
    ]
    return helper.make_model(made, opset_imports=versions, ir_version=11).SerializeToString()


def run(content: bytes, inputs: dict[str, Floats], threads: int = 2) -> NDArray[Any]:
    found: NDArray[Any] = open_session(Path("own"), threads, content).run(None, inputs)[0]
    return found


class Gated:
    """Two matrices in blocks."""

    def __init__(self, bits: int, block: int, inputs: int, outputs: int) -> None:
        random = np.random.default_rng(bits * block + inputs)
        blocks = -(-inputs // block)
        self.facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
        self.stored: dict[str, NDArray[Any]] = {}
        for name in BOTH:
            self.stored[f"{name}.codes"] = random.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8)
            self.stored[f"{name}.scales"] = random.random((outputs, blocks), np.float32) / 500

    def rows(self, *shape: int) -> Floats:
        return np.random.default_rng(1).standard_normal((*shape, self.facts["K"]), np.float32)

    def product(self, name: str, rows: Floats) -> Floats:
        facts = {**self.facts, "accuracy_level": 4}
        given = ["x", f"{name}.codes", f"{name}.scales"]
        node = helper.make_node("MatMulNBits", given, ["y"], domain="com.microsoft", **facts)
        return run(
            graph([node], {"x": rows}, {key: self.stored[key] for key in given[1:]}, TensorProto.FLOAT), {"x": rows}
        )

    def content(self, rows: Floats, **changes: int) -> bytes:
        node = helper.make_node(
            "GatedProduct", ["x", *self.stored], ["y"], domain="arforge", **{**self.facts, **changes}
        )
        return graph([node], {"x": rows}, self.stored, TensorProto.FLOAT)

    def __call__(self, rows: Floats, threads: int = 2) -> Floats:
        return run(self.content(rows), {"x": rows}, threads)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (2, 40)])
def test_a_gated_product_is_both_products_and_their_gate(
    sizes: tuple[int, int, int, int], shape: tuple[int, int]
) -> None:
    pair = Gated(*sizes)
    rows = 3 * pair.rows(*shape)
    gate, other = (pair.product(name, rows).astype(np.float64) for name in BOTH)
    expected = gate / (1 + np.exp(-gate)) * other
    np.testing.assert_allclose(pair(rows), expected, rtol=2e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("instructions")
def test_a_row_of_it_has_the_same_bits_in_any_company() -> None:
    pair = Gated(8, 256, 512, 200)
    rows = pair.rows(1, 48)
    whole = pair(rows)
    assert np.array_equal(pair(rows, threads=1), whole)
    for width in (1, 2, 5, 7, 13):
        for first in (0, 48 - width):
            assert np.array_equal(pair(rows[:, first : first + width]), whole[:, first : first + width])


@pytest.mark.parametrize("sizes", SHAPES)
def test_all_instructions_give_the_same_bits(on: Path, sizes: tuple[int, int, int, int]) -> None:
    choose = ctypes.CDLL(str(on)).arforge_kernels_choose
    pair = Gated(*sizes)
    found = [pair(pair.rows(2, 9)) for name in (b"AVX-VNNI", b"AVX-512 VNNI") if choose(name)]
    for one in found:
        assert np.array_equal(one, found[0])


@pytest.mark.usefixtures("instructions")
def test_gates_of_any_size_are_sound_and_what_is_no_number_shows() -> None:
    pair = Gated(8, 16, 16, 8)
    rows = np.zeros((1, 5, 16), np.float32)
    rows[0, 0], rows[0, 1], rows[0, 2], rows[0, 3, 4] = 1e4, -1e4, 1e30, np.nan
    with np.errstate(over="ignore"):
        gate, other = (pair.product(name, rows).astype(np.float64) for name in BOTH)
        expected = gate / (1 + np.exp(-gate)) * other
    found = pair(rows)
    near = np.abs(gate[0, :2]) < 80  # beyond, a gate is shut to some 1e-38 and not to zero
    np.testing.assert_allclose(found[0, :2][near], expected[0, :2][near], rtol=1e-5)
    assert np.isfinite(found[0, :2]).all()
    assert np.isnan(found[0, 3]).all()
    assert not found[0, 4].any()


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("changes", [{"K": 1024}, {"N": 71}, {"bits": 3}, {"block_size": 0}])
def test_attributes_that_do_not_fit_are_one_error(changes: dict[str, int]) -> None:
    pair = Gated(8, 256, 512, 70)
    with pytest.raises(EngineError, match="cannot load own"):
        run(pair.content(pair.rows(1, 1), **changes), {"x": pair.rows(1, 1)})


def counted(inputs: dict[str, Floats]) -> bytes:
    """By the standard operators."""
    nodes = [
        helper.make_node("CumSum", ["probabilities", "last"], ["sums"]),
        helper.make_node("Slice", ["sums", "minus_one", "end", "axis"], ["total"]),
        helper.make_node("Unsqueeze", ["numbers", "axis"], ["apart"]),
        helper.make_node("Mul", ["apart", "total"], ["bound"]),
        helper.make_node("LessOrEqual", ["sums", "bound"], ["below"]),
        helper.make_node("Cast", ["below"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones", "axis"], ["y"], keepdims=0),
    ]
    stored = {"last": np.array(2), "minus_one": np.array([-1]), "end": np.array([2**62]), "axis": np.array([2])}
    return graph(nodes, inputs, stored, TensorProto.INT64)


def drawn(inputs: dict[str, Floats]) -> bytes:
    node = helper.make_node("Draw", ["probabilities", "numbers"], ["y"], domain="arforge")
    return graph([node], inputs, {}, TensorProto.INT64)


@pytest.mark.usefixtures("on")
def test_draws_are_those_of_the_standard_operators() -> None:
    random = np.random.default_rng(5)
    logits = random.standard_normal((3, 24, 16384), np.float32) * random.choice([0.1, 1, 10], (3, 24, 1))
    probabilities = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float32)
    probabilities /= probabilities.sum(-1, keepdims=True)
    probabilities[0, 0, 5:] = 0
    numbers = random.random((3, 24), np.float32)
    numbers[1, :3] = 0, 1, np.float32(1) - np.float32(2**-24)
    given = {"probabilities": probabilities, "numbers": numbers}
    found = run(drawn(given), given)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, run(counted(given), given))
    assert len(np.unique(found)) > 40
    given["probabilities"][0, 1, 7] = np.nan
    np.testing.assert_array_equal(run(drawn(given), given), run(counted(given), given))


@pytest.mark.usefixtures("on")
def test_numbers_of_another_shape_are_refused() -> None:
    given = {"probabilities": np.ones((2, 3, 4), np.float32), "numbers": np.ones((2, 2), np.float32)}
    with pytest.raises(Exception, match="numbers to draw by of another shape than the probabilities"):
        run(drawn(given), given)
