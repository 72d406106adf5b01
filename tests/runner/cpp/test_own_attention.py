"""Attention of our own: what the operator computes, and engines that run by it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arforge.runner.backends.onnxruntime_session import open_session

Floats = NDArray[np.float32]
FLOAT, INT8, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64, TensorProto.BOOL
TABLE = 50  # positions


@dataclass
class Layer:
    """Of one attention: sizes, and the inputs of a step that were drawn for it."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    neighbours: int = 1
    codes: bool = False
    turns: bool = True
    writes: bool = True
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def offsets(self) -> tuple[int, int, int]:
        keys = self.heads * self.size
        return 0, keys, keys + self.kv_heads * self.size

    def draw(self, rows: int, width: int, slots: int, seed: int = 0) -> Layer:
        random = np.random.default_rng(seed)
        numbers = (self.heads + 2 * self.kv_heads) * self.size
        shape = (rows, self.kv_heads, slots, self.size)
        given: dict[str, NDArray[Any]] = {"mixed": random.standard_normal((rows, width, numbers), np.float32)}
        if self.turns:
            angles = random.standard_normal((TABLE, self.size // 2))
            given |= {"cosine": np.cos(angles).astype(np.float32), "sine": np.sin(angles).astype(np.float32)}
            given["positions"] = random.integers(0, TABLE, (rows, width))
        if self.writes:
            given["write_index"] = random.integers(0, slots - width + 1, rows)
        given["mask"] = random.random((rows, 1, width, slots)) < 0.6
        given["mask"][..., 0] = True
        for name in ("key_cache", "value_cache"):
            values = random.standard_normal(shape, np.float32)
            given[name] = np.rint(30 * values).clip(-127, 127).astype(np.int8) if self.codes else values
        if self.codes:
            for name in ("key_scales", "value_scales"):
                given[name] = 0.02 + random.random(self.kv_heads * self.size, np.float32) / 50
        return replace(self, inputs=given)

    def graph(self, **changes: float) -> bytes:
        names = ["mixed", *(["mixed", "mixed"] if self.writes else ["", ""])]
        names += ["cosine", "sine", "positions" if self.writes else "", "positions"] if self.turns else [""] * 4
        names += ["write_index" if self.writes else "", "mask", "key_cache", "value_cache"]
        names += ["key_scales", "value_scales"] if self.codes else []
        facts: dict[str, Any] = {"heads": self.heads, "kv_heads": self.kv_heads, "head_size": self.size}
        offsets = dict(zip(("query_offset", "key_offset", "value_offset"), self.offsets, strict=True))
        facts |= {**offsets, "scale": 0.2, "neighbours": self.neighbours, **changes}
        outputs = ["y", *(["new_key_cache", "new_value_cache"] if self.writes else [])]
        name = "CachedAttention8" if self.codes else "CachedAttention"
        node = helper.make_node(name, names, outputs, domain="arforge", **facts)
        kind = INT8 if self.codes else FLOAT
        types = {"positions": INT64, "write_index": INT64, "mask": BOOL, "key_cache": kind, "value_cache": kind}
        graph = helper.make_graph(
            [node],
            "attention",
            [
                helper.make_tensor_value_info(name, types.get(name, FLOAT), [None] * array.ndim)
                for name, array in self.inputs.items()
            ],
            [helper.make_tensor_value_info(name, kind if "cache" in name else FLOAT, None) for name in outputs],
        )
        versions = [helper.make_opsetid("", 24), helper.make_opsetid("arforge", 1)]
        return helper.make_model(graph, opset_imports=versions, ir_version=11).SerializeToString()

    def run(self, threads: int = 2, **changes: float) -> list[NDArray[Any]]:
        """The result [rows, width, heads * size], and the caches that were written."""
        session = open_session(Path("attention"), threads, self.graph(**changes))
        given: list[NDArray[Any]] = session.run(None, self.inputs)
        return given

    def expected(self) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """The same in float64: the result, and the caches."""
        given, group = self.inputs, self.heads // self.kv_heads
        rows, width = given["mixed"].shape[:2]
        scales = [
            given[f"{name}_scales"].astype(np.float64).reshape(1, self.kv_heads, 1, self.size)
            if self.codes
            else np.ones((1, 1, 1, 1))
            for name in ("key", "value")
        ]
        caches = [given[f"{name}_cache"] * scale for name, scale in zip(("key", "value"), scales, strict=True)]
        queries, keys, values = (
            given["mixed"][:, :, first : first + heads * self.size].reshape(rows, width, heads, self.size)
            for first, heads in zip(self.offsets, (self.heads, self.kv_heads, self.kv_heads), strict=True)
        )
        if self.turns:
            queries, keys = self.turned(queries), self.turned(keys)
        for row in range(rows if self.writes else 0):
            first = given["write_index"][row]
            for cache, new, scale in zip(caches, (keys, values), scales, strict=True):
                part = new[row].swapaxes(0, 1).astype(np.float64)
                if self.codes:
                    part = np.rint(part / scale[0]).clip(-127, 127) * scale[0]
                cache[row, :, first : first + width] = part
        grouped = queries.swapaxes(1, 2).reshape(rows, self.kv_heads, group, width, self.size)
        scores = 0.2 * np.einsum("rkgwc,rksc->rkgws", grouped, caches[0])
        scores = np.where(given["mask"][:, :, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found = np.einsum("rkgws,rksc->rkgwc", weights, caches[1])
        return found.reshape(rows, self.heads, width, self.size).swapaxes(1, 2).reshape(rows, width, -1), caches

    def turned(self, vectors: Floats) -> NDArray[np.float64]:
        cosine, sine = (self.inputs[name][self.inputs["positions"]][:, :, None] for name in ("cosine", "sine"))
        half = self.size // 2
        one, two = (slice(0, None, 2), slice(1, None, 2)) if self.neighbours else (slice(0, half), slice(half, None))
        found = np.empty(vectors.shape)
        found[..., one] = vectors[..., one] * cosine - vectors[..., two] * sine
        found[..., two] = vectors[..., one] * sine + vectors[..., two] * cosine
        return found


LAYERS = {
    "plain": Layer(heads=4, kv_heads=4),
    "codes": Layer(heads=4, kv_heads=4, codes=True),
    "groups": Layer(heads=6, kv_heads=2, size=32),
    "groups-codes": Layer(heads=6, kv_heads=2, size=32, codes=True, neighbours=0),
    "halves": Layer(neighbours=0, size=16),
    "unturned": Layer(turns=False, size=48),
    "read": Layer(writes=False, codes=True),
    "read-plain": Layer(writes=False),
    "odd": Layer(size=100),
    "odd-codes": Layer(size=20, codes=True, neighbours=0),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Layer:
    return LAYERS[request.param]


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("rows", "width", "slots"), [(1, 1, 1), (2, 1, 17), (3, 5, 40), (1, 70, 96)])
def test_it_turns_writes_and_attends(layer: Layer, rows: int, width: int, slots: int) -> None:
    drawn = layer.draw(rows, width, slots)
    result, *caches = drawn.run()
    expected, kept = drawn.expected()
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())
    assert len(caches) == (2 if layer.writes else 0)
    for index, (found, wanted) in enumerate(zip(caches, kept, strict=False)):
        scale = drawn.inputs[("key_scales", "value_scales")[index]] if layer.codes else np.float32(1)
        values = found * scale.reshape(1, -1, 1, layer.size) if layer.codes else found
        np.testing.assert_allclose(values, wanted, atol=1e-5 if not layer.codes else 0.041)  # a tie may go either way
        assert np.mean(np.abs(values - wanted) > 1e-5) < 1e-3


@pytest.mark.usefixtures("instructions")
def test_a_token_has_the_same_bits_in_any_company(layer: Layer) -> None:
    drawn = layer.draw(3, 9, 50)
    whole, *caches = drawn.run()
    assert np.array_equal(drawn.run(threads=1)[0], whole)
    if not layer.writes:
        return
    after = replace(drawn, writes=False) if not layer.turns else drawn
    for row in range(3):
        for width in (1, 2, 4, 7):
            first = 9 - width
            given = {
                name: array[[row]] if array.ndim > 1 and len(array) == 3 else array
                for name, array in after.inputs.items()
            }
            given["mixed"], given["mask"] = given["mixed"][:, first:], given["mask"][:, :, first:]
            given["write_index"] = drawn.inputs["write_index"][[row]] + first
            if layer.turns:
                given["positions"] = given["positions"][:, first:]
            for name, cache in zip(("key_cache", "value_cache"), caches, strict=True):
                more = np.zeros((1, *cache.shape[1:2], 13, layer.size), cache.dtype)  # slots that no mask shows
                given[name] = np.concatenate([cache[[row]], more], axis=2)
            given["mask"] = np.concatenate([given["mask"], np.zeros((1, 1, width, 13), bool)], axis=3)
            part = replace(drawn, inputs=given).run()[0]
            assert np.array_equal(part[0], whole[row, first:]), (row, width)


def test_all_instructions_give_the_same_bits(on: Path, layer: Layer) -> None:
    choose = ctypes.CDLL(str(on)).arforge_kernels_choose
    drawn = layer.draw(2, 5, 40)
    found = [drawn.run() for name in (b"AVX-VNNI", b"AVX-512 VNNI") if choose(name)]
    for one in found:
        for array, first in zip(one, found[0], strict=True):
            assert np.array_equal(array, first)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("name", ["plain", "codes"])
def test_a_key_that_is_no_number_shows_in_its_row_alone(name: str) -> None:
    drawn = LAYERS[name].draw(2, 3, 20)
    drawn.inputs["mask"][:] = True
    clean = drawn.run()[0]
    drawn.inputs["mixed"][1, 2, LAYERS[name].offsets[1] + 3] = np.nan
    found = drawn.run()[0]
    assert np.array_equal(found[0], clean[0])
    assert np.isnan(found[1, :, : LAYERS[name].size]).all()


@pytest.mark.usefixtures("instructions")
def test_a_query_that_sees_nothing_is_zeros_and_others_stay() -> None:
    drawn = LAYERS["plain"].draw(2, 3, 20)
    before = drawn.run()[0]
    drawn.inputs["mask"][1, 0, 1] = False
    found = drawn.run()[0]
    assert not found[1, 1].any()
    found[1, 1] = before[1, 1]
    assert np.array_equal(found, before)


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("positions", (1, 2), TABLE, "a position that the tables do not have"),
        ("positions", (0, 0), -1, "a position that the tables do not have"),
        ("write_index", 1, 18, "slots to write that the caches do not have"),
        ("write_index", 0, -1, "slots to write that the caches do not have"),
        ("write_index", 0, 2**63 - 1, "slots to write that the caches do not have"),
    ],
)
def test_places_that_are_not_there_are_refused(name: str, index: Any, value: int, message: str) -> None:
    drawn = LAYERS["plain"].draw(2, 3, 20)
    drawn.inputs[name][index] = value
    with pytest.raises(Exception, match=message):
        drawn.run()


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mask", lambda one: one[:, :, :2], "queries of another number than the mask's"),
        ("mask", lambda one: one[:, 0], r"a mask that is not \[rows, 1, queries, slots\]"),
        ("mask", lambda one: one[:1], "a cache of another shape"),
        ("value_cache", lambda one: one[:, :, 1:], "a cache of another shape"),
        ("mixed", lambda one: one[:, :, :-1], "fewer numbers of a token than the heads need"),
        ("mixed", lambda one: one[:1], "another number of rows"),
        ("cosine", lambda one: one[1:], "tables of cosines and sines of another shape"),
        ("sine", lambda one: one[:, 1:], "tables of cosines and sines of another shape"),
        ("positions", lambda one: one[:, 1:], "positions of another number of tokens"),
        ("write_index", lambda one: one[1:], "of different numbers"),
        ("key_scales", lambda one: one[1:], "scales of another number than a cache has channels"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name: str, change: Any, message: str) -> None:
    drawn = LAYERS["codes"].draw(2, 3, 20)
    drawn.inputs[name] = np.ascontiguousarray(change(drawn.inputs[name]))
    with pytest.raises(Exception, match=message):
        drawn.run()


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    "changes", [{"heads": 0}, {"heads": 3, "kv_heads": 2}, {"head_size": -64}, {"key_offset": 1 << 40}]
)
def test_attributes_that_do_not_fit_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(Exception, match=r"an attribute is out of range|heads of queries that are not so many"):
        LAYERS["plain"].draw(1, 1, 4).run(**changes)
