"""What each version of TensorRT lacks, and so how a graph is lowered for it.

From the changelogs of TensorRT and of its ONNX parser; docs/engines.md names the places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from arforge.runner.backends.tensorrt_library import MINIMUM, RTX
from arforge.runner.errors import EngineError

LOWERINGS = ("auto", "in-place", "read-only")


@dataclass(frozen=True)
class Abilities:
    """Of all versions from `since` on, up to the next entry of the table."""

    since: tuple[int, int]
    in_place: bool  # KVCacheUpdate, which updates a cache where it lies
    fused: bool  # an attention operator, with grouped heads and a mask
    typed_on_request: bool  # strongly typed networks have to be asked for; later versions know no others
    opset: int  # the latest whose operators its parser reads, beside opset 21's blocks of 4 bits, which all read


TENSORRT = (
    Abilities((10, 3), in_place=False, fused=False, typed_on_request=True, opset=20),
    Abilities((10, 15), in_place=True, fused=True, typed_on_request=True, opset=24),
    Abilities((11, 0), in_place=True, fused=True, typed_on_request=False, opset=24),
)
TENSORRT_RTX = (Abilities(MINIMUM[RTX], in_place=True, fused=True, typed_on_request=False, opset=24),)


@dataclass(frozen=True)
class CacheChoice:
    """How caches are updated: "in-place" by the engine, or "read-only", with rows that the runner puts there."""

    lowering: str
    reason: str

    @property
    def read_only(self) -> bool:
        return self.lowering == "read-only"


def abilities(target: str, version: str | None) -> Abilities:
    """Of a version such as "10.3" or "10.16.1.11"; None: the latest that is known here.

    Raises EngineError for one that is older than what arforge builds for, or none.
    """
    table = TENSORRT_RTX if target == RTX else TENSORRT
    if version is None:
        return table[-1]
    if re.match(r"\d+\.\d+(\.|$)", version) is None:
        raise EngineError(f"{version!r} is no version of {target}: give two numbers, such as 10.3")
    asked = numbers(version)
    fitting = [entry for entry in table if entry.since <= asked]
    if not fitting:
        oldest = ".".join(map(str, table[0].since))
        raise EngineError(f"{target} {version} is too old: {oldest} and later are built for")
    return fitting[-1]


def numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def choose_caches(target: str, version: str | None, asked: str, attention: str) -> CacheChoice:
    """`asked`: one of LOWERINGS; `attention` as `choose_attention` takes it.

    Raises EngineError for what the version cannot build, or what does not go with caches that are only read.
    """
    can = abilities(target, version)
    name = f"{target} {version or 'of its latest versions'}"
    if asked not in LOWERINGS:
        raise EngineError(f"no lowering of caches is called {asked!r}: use {', '.join(LOWERINGS)}")
    if asked == "in-place" and not can.in_place:
        since = ".".join(map(str, next(entry.since for entry in TENSORRT if entry.in_place)))
        raise EngineError(f"{name} updates no cache in place, {since} and later do: use --caches read-only, or auto")
    if asked == "in-place" or (asked == "auto" and can.in_place):
        return CacheChoice("in-place", "as asked" if asked == "in-place" else "the library updates caches in place")
    if attention not in ("auto", "decomposed"):
        raise EngineError(f"--attention {attention} needs caches that are updated in place: leave it out")
    return CacheChoice("read-only", "as asked" if can.in_place else f"{name} has no KVCacheUpdate")
