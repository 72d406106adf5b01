"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
"""Called with one line of text at a time."""
