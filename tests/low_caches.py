"""8-bit caches whatever they cost here: tests are of what they give."""

from __future__ import annotations

import pytest

from arforge.engines import cache_trial


def always_quicker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache_trial, "widest", max)
