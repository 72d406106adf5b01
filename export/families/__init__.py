"""The families that arforge exports, by name."""

from __future__ import annotations

from arforge.export.families import arpg, llamagen, par
from arforge.export.families.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (llamagen.FAMILY, par.FAMILY, arpg.FAMILY)}
