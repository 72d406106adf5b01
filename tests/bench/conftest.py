"""Measures of torch change the layers of the process that they run in."""

from __future__ import annotations

import pytest

from arforge.export import layers, sampler
from arforge.export.families import arpg


@pytest.fixture(autouse=True)
def _layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((layers, "write_cache"), (arpg, "write_cache"), (sampler, "keep_likely")):
        monkeypatch.setattr(module, name, getattr(module, name))
