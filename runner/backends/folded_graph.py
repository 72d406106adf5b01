"""A step graph whose rows are heads of one batch: told how many rows it may have, as bytes, before it is opened.

ONNX Runtime's attention with 8-bit caches takes several tokens a row in a batch of one alone, so rows stand as heads
beside each other, and how many heads there are is an attribute. The graph has attention for several numbers of rows,
of which a step runs the one that it has rows for; all read the same weights. The file has numbers of one row there,
marked by which of the numbers of rows they are for; a mark takes as many bytes as any number that replaces it, so
nothing else of the file moves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from arforge.runner.errors import EngineError

MARK = 1 << 28  # times 1 and up, added to numbers of one row: protobuf writes numbers from here to 2^35 in 5 bytes
BYTES = 5
MOST = 2**31 - 1
USUAL_ROWS: tuple[int, ...] = (2, 1, 4, 8, 6, 16, 3, 5, 7, 10, 12, 14, 20, 24, 28, 32)
"""That a graph is opened for first, the likeliest first: batches of up to 8 with and without guidance, and some more.

One is what a prompt passes with.
"""
NUMBERS = len(USUAL_ROWS)
ATTRIBUTE = re.compile(
    rb"\x0a(?:\x09num_heads|\x0ckv_num_heads|\x09value_int)\x18([\x80-\xff]{4}[\x00-\x7f])", re.DOTALL
)
"""Of the file: field 1, the name's length and the name, field 3, its number."""


def folded_content(path: Path, rows: Sequence[int]) -> bytes:
    """The file's graph for `NUMBERS` numbers of rows. Raises EngineError for a graph that is not folded for as many."""
    numbers = set()

    def replaced(found: re.Match[bytes]) -> bytes:
        which, heads = divmod(decoded(found[1]), MARK)
        if not 1 <= which <= len(rows) or not 0 < heads * rows[which - 1] <= MOST:
            raise EngineError(f"{path} has no sound number of heads: rebuild the engine")
        numbers.add(which)
        return found[0][:-BYTES] + encoded(heads * rows[which - 1])

    content = ATTRIBUTE.sub(replaced, path.read_bytes())
    if len(numbers) != len(rows):
        raise EngineError(f"{path} has heads for {len(numbers)} numbers of rows, not {len(rows)}: rebuild the engine")
    return content


def latest_rows(used: Sequence[int], rows: int) -> tuple[int, ...]:
    """The numbers of rows that were used last, the latest first, with another use; as many as before."""
    return (rows, *(one for one in used if one != rows))[: len(used)]


def decoded(written: bytes) -> int:
    return sum((byte & 127) << (7 * place) for place, byte in enumerate(written))


def encoded(number: int) -> bytes:
    """A protobuf number in as many bytes as a marked one."""
    low = (number >> (7 * place) & 127 | 128 for place in range(BYTES - 1))
    return bytes([*low, number >> (7 * (BYTES - 1))])
