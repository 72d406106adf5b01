"""The families that arforge exports, by name."""

from __future__ import annotations

from arforge.export import arpg, llamagen, par
from arforge.export.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (llamagen.FAMILY, par.FAMILY, arpg.FAMILY)}
