"""Queries as heads, and scales in tables: another form of the same attention, for every family and kind of heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from arforge.engines.onnxruntime_attention import LEAST, MOST, ease_attention, narrow_width
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.runner import open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.step_graph import cache_names

ROWS, SLOTS, KNOWN = 2, 24, 9
NARROW = 5
NAMES = ["bundle", "grouped_bundle", "par_bundle", "arpg_bundle", "text_bundle"]


@pytest.fixture(params=NAMES)
def opened(request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(request.getfixturevalue(request.param))


def eased(opened: Bundle, tmp_path: Path) -> tuple[Path, ir.Model, int]:
    model = ir.load(opened.graph("step-logits", "fp32"))
    changed = ease_attention(model, NARROW)
    ir.save(model, tmp_path / "eased.onnx", external_data="eased.weights")
    return tmp_path / "eased.onnx", model, changed


def one_step(engine: OnnxRuntimeEngine, width: int, queries: int) -> dict[str, np.ndarray]:
    """A step behind `KNOWN` random slots, with a mask that differs by row and query: logits and caches."""
    rng = np.random.default_rng(width)
    engine.prepare(images=1, rows=ROWS, slots=SLOTS, zero_slots=SLOTS)
    names = cache_names(engine._bundle.model.caches)
    for name in names:
        engine.cache(name)[:, :, :KNOWN] = rng.standard_normal(engine.cache(name)[:, :, :KNOWN].shape)
    buffers = engine.buffers(width, queries)
    buffers.tokens[:] = rng.integers(0, 8, buffers.tokens.shape)
    buffers.positions[:] = rng.integers(1, 9, buffers.positions.shape)
    buffers.write_index[:] = KNOWN
    buffers.mask[:] = False
    seen = rng.integers(0, 2, (ROWS, 1, width, KNOWN)).astype(bool)
    seen[..., 0] = True
    buffers.mask[..., :KNOWN] = seen
    if queries:
        assert buffers.query_positions is not None
        buffers.query_positions[:] = rng.integers(1, 9, buffers.query_positions.shape)
    engine.run(width, queries)
    assert buffers.logits is not None
    return {"logits": buffers.logits.copy(), **{name: engine.cache(name).copy() for name in names}}


@pytest.mark.parametrize("width", [1, 2, NARROW, NARROW + 1, 12])
def test_logits_and_caches_are_those_of_the_graph_as_it_was(opened: Bundle, width: int, tmp_path: Path) -> None:
    path, model, changed = eased(opened, tmp_path)
    assert changed == sum(node.op_type == "Attention" for node in model.graph) > 0
    queries = width if opened.model.queries else 0
    found = {}
    for name, graph in (("plain", None), ("eased", path)):
        engine = OnnxRuntimeEngine(opened, "fp32", threads=1, graph="step-logits", path=graph)
        found[name] = one_step(engine, width, queries)
        engine.close()
    for name, array in found["plain"].items():
        np.testing.assert_allclose(found["eased"][name], array, atol=2e-5 * np.abs(array).max(), err_msg=name)


def test_no_attention_has_a_scale_of_its_own_and_tables_are_shared(opened: Bundle, tmp_path: Path) -> None:
    _, model, _ = eased(opened, tmp_path)
    scales = {node.attributes["scale"].as_float() for node in model.graph if node.op_type == "Attention"}
    assert scales == {1.0}
    assert len([name for name in model.graph.initializers if ".scaled_" in name]) == 2
    tiles = [node for node in model.graph if node.op_type == "Tile"]
    assert len(tiles) == len({node.inputs[3] for node in model.graph if node.op_type == "Attention"}) <= 2


def test_queries_without_a_rotary_embedding_stay_as_they_are(bundle: Path) -> None:
    model = ir.load(open_bundle(bundle).graph("step", "fp32"))
    first = next(node for node in model.graph if node.op_type == "Attention")
    turned = first.inputs[0].producer()
    first.replace_input_with(0, turned.inputs[0])
    attentions = sum(node.op_type == "Attention" for node in model.graph)
    assert ease_attention(model, NARROW) == attentions - 1
    assert first.graph is model.graph
    assert "scale" not in first.attributes


@pytest.mark.parametrize(("precision", "rows"), [("fp32", False), ("int8", False), ("int8", True)])
def test_up_to_the_narrow_width_each_token_gets_the_bits_that_it_gets_alone(
    opened: Bundle, precision: str, rows: bool, tmp_path: Path
) -> None:
    narrow = 12
    model = lower_for_onnxruntime(opened.graph("step-logits", "fp32"), precision, narrow, rows=rows)
    path = write_model(model, tmp_path, "step")[0]
    engine = OnnxRuntimeEngine(opened, "fp32", threads=1, graph="step-logits", path=path)
    together, alone = (line(engine, parts) for parts in ([narrow], [1] * narrow))
    engine.close()
    for name, array in together.items():
        np.testing.assert_array_equal(array, alone[name], err_msg=name)


def line(engine: OnnxRuntimeEngine, parts: list[int]) -> dict[str, np.ndarray]:
    """Random tokens one behind another, in steps of these widths: their logits, and the caches in the end."""
    engine.prepare(images=1, rows=ROWS, slots=SLOTS, zero_slots=0)
    model, rng = engine._bundle.model, np.random.default_rng(0)
    tokens, logits, first = rng.integers(0, 8, (ROWS, sum(parts))), [], 0
    for width in parts:
        queries = width if model.queries else 0
        buffers = engine.buffers(width, queries)
        buffers.tokens[:] = tokens[:, first : first + width]
        buffers.positions[:] = 1 + np.arange(first, first + width)
        buffers.write_index[:], buffers.guidance[:] = first, 2.0
        buffers.mask[:] = np.arange(SLOTS) <= np.arange(first, first + width)[:, None]
        if buffers.query_positions is not None:  # all see what the last input sees: ask for the same in all steps
            buffers.query_positions[:] = 1 + np.arange(queries)
            buffers.mask[:] = np.arange(SLOTS) < sum(parts)
        engine.run(width, queries)
        assert buffers.logits is not None
        logits.append(buffers.logits.copy())
        first += width
    given = {} if model.queries else {"logits": np.concatenate(logits, axis=1)}
    return {**given, **{name: engine.cache(name).copy() for name in cache_names(model.caches)}}


@pytest.mark.parametrize(
    ("head_size", "positions", "narrow"),
    [(8, 65, MOST), (64, 257, 39), (64, 577, 17), (128, 2401, LEAST), (128, 8191, LEAST)],
)
def test_the_more_a_cache_holds_the_fewer_queries_are_apart(
    bundle: Path, head_size: int, positions: int, narrow: int
) -> None:
    model = replace(open_bundle(bundle).model, head_size=head_size, position_rows=positions)
    assert narrow_width(model) == narrow
