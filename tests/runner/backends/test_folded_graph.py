"""The bytes of a step graph whose rows are heads, told how many rows it may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.runner import EngineError, open_bundle
from arforge.runner.backends.folded_graph import (
    MARK,
    NUMBERS,
    USUAL_ROWS,
    decoded,
    encoded,
    folded_content,
    latest_rows,
)
from arforge.runner.step_graph import cache_names


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


def test_the_number_of_heads_is_set_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    scales = np.ones(opened.model.kv_heads * opened.model.head_size, np.float32)
    every = dict.fromkeys(cache_names(opened.model.caches), scales)
    model = lower_for_onnxruntime(opened.graph("step", "fp32"), "int8", 5, scales=every)
    path = write_model(model, tmp_path, "step")[0]
    marked = onnx.load(path, load_external_data=False)
    for rows in (USUAL_ROWS, (7, 4096, *range(20, 18 + NUMBERS))):
        content = folded_content(path, rows)
        assert len(content) == path.stat().st_size
        found = onnx.load_model_from_string(content)
        heads, numbers = [], []
        for one, other in zip(every_node(marked.graph), every_node(found.graph), strict=True):
            for attribute, attribute_found in zip(one.attribute, other.attribute, strict=True):
                if attribute.name in ("num_heads", "kv_num_heads", "value_int"):
                    which, of_one_row = divmod(attribute.i, MARK)
                    assert attribute_found.i == rows[which - 1] * of_one_row
                    attribute_found.i = attribute.i
                    (numbers if attribute.name == "value_int" else heads).append((which, of_one_row))
        assert found == marked
        assert sorted(numbers) == [(1 + number, 1) for number in range(NUMBERS - 1)]  # else it is the last
        assert Counter(heads) == {(1 + number, 4): 2 * opened.model.layers for number in range(NUMBERS)}


@pytest.mark.parametrize("number", [1, 127, 128, MARK, MARK + 16, 2**31 - 1])
def test_numbers_are_written_in_five_bytes(number: int) -> None:
    assert len(encoded(number)) == 5
    assert decoded(encoded(number)) == number
    attribute = onnx.AttributeProto()
    attribute.MergeFromString(b"\x18" + encoded(number))
    assert attribute.i == number


def test_a_graph_that_is_not_folded_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has heads for 0 numbers of rows, not 1: rebuild the engine"):
        folded_content(open_bundle(bundle).graph("step", "fp32"), [2])
    path = tmp_path / "step.onnx"
    for number, rows in ((MARK, 2), (2 * MARK + 4, 2), (2 * MARK - 1, 64)):
        path.write_bytes(b"\x0a\x09num_heads\x18" + encoded(number))
        with pytest.raises(EngineError, match="has no sound number of heads: rebuild the engine"):
            folded_content(path, [rows])
    path.write_bytes(b"\x0a\x09num_heads\x18" + encoded(MARK + 4))
    assert decoded(folded_content(path, [3])[-5:]) == 12
    with pytest.raises(EngineError, match="has heads for 1 numbers of rows, not 2: rebuild the engine"):
        folded_content(path, [3, 4])


def test_the_rows_used_last_are_kept() -> None:
    assert len({*USUAL_ROWS}) == NUMBERS
    assert latest_rows((2, 1, 4), 4) == (4, 2, 1)
    assert latest_rows((2, 1, 4), 2) == (2, 1, 4)
    assert latest_rows((2, 1, 4), 9) == (9, 2, 1)
