"""A step graph whose rows are heads of one batch: told how many rows it has, as bytes, before it is opened.

ONNX Runtime's attention with 8-bit caches takes several tokens a row in a batch of one alone, so rows stand as heads
beside each other, and how many heads there are is an attribute. The file has heads of a row there, marked; a mark takes
as many bytes as any number that replaces it, so nothing else of the file moves.
"""

from __future__ import annotations

import re
from pathlib import Path

from arforge.runner.errors import EngineError

MARK = 1 << 28  # added to heads of a row: protobuf writes a number from here to 2^35 in 5 bytes
BYTES = 5
MOST = 2**31 - 1
ATTRIBUTE = re.compile(rb"\x0a(?:\x09|\x0ckv_)num_heads\x18([\x80-\xff]{4}[\x00-\x7f])", re.DOTALL)
"""Of the file: field 1, the name's length and the name, field 3, its number."""


def folded_content(path: Path, rows: int) -> bytes:
    """The file's graph for that many rows. Raises EngineError for a graph that is not folded."""

    def replaced(found: re.Match[bytes]) -> bytes:
        heads = decoded(found[1]) - MARK
        if not 0 < heads * rows <= MOST:
            raise EngineError(f"{path} has no sound number of heads: rebuild the engine")
        return found[0][:-BYTES] + encoded(heads * rows)

    content, count = ATTRIBUTE.subn(replaced, path.read_bytes())
    if not count:
        raise EngineError(f"{path} has no heads to count: rebuild the engine")
    return content


def decoded(written: bytes) -> int:
    return sum((byte & 127) << (7 * place) for place, byte in enumerate(written))


def encoded(number: int) -> bytes:
    """A protobuf number in as many bytes as a marked one."""
    low = (number >> (7 * place) & 127 | 128 for place in range(BYTES - 1))
    return bytes([*low, number >> (7 * (BYTES - 1))])
