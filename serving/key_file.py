"""The key that clients of a service must bring."""

from __future__ import annotations

from pathlib import Path

from arforge.runner.errors import RequestError


def read_key(path: Path) -> str:
    """The key in a file. Raises RequestError unless the file holds one word."""
    words = path.read_text("utf-8").split()
    if len(words) != 1:
        raise RequestError(f"{path} holds {len(words)} words: write the key into it, and nothing else")
    return words[0]
