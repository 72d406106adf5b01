"""Commands as messages name them, ready for a shell."""

from __future__ import annotations

import shlex


def command_line(*words: object) -> str:
    """`arforge` with these words, each quoted where a shell needs it."""
    return shlex.join(["arforge", *map(str, words)])
