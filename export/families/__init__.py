"""The families that arforge exports, by name. A new one is a file here and its name in the line below."""

from __future__ import annotations

from typing import Any

from arforge.export.families import arpg, emu3, janus, llamagen, llamagen_t2i, lumina, par
from arforge.export.families.family import Family

FAMILIES: dict[str, Family[Any]] = {
    family.name: family
    for family in (
        llamagen.FAMILY,
        llamagen_t2i.FAMILY,
        par.FAMILY,
        arpg.FAMILY,
        lumina.FAMILY,
        emu3.FAMILY,
        janus.FAMILY,
    )
}
