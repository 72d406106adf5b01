"""Builds what stands between two calls of a TensorRT step, so that one launch makes several: small engines.

The loop graph is for lines that run ahead on drafts (`tensorrt_loop.py`), the table graph for schedules whose steps are
all settled beforehand (`tensorrt_table.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from arforge.engines.profiles import Profiles, Shapes
from arforge.engines.tensorrt_layers import FROM_HOST, Layer, dump_layers, parse_layers
from arforge.engines.tensorrt_loop import plan_loop
from arforge.engines.tensorrt_table import plan_table
from arforge.runner.bundle import Bundle
from arforge.runner.bundle.writer import write_hashed
from arforge.runner.errors import EngineError

NOTHING: dict[str, dict[str, Any]] = {
    "loop": {"loop_inputs": 0, "loop_profiles": []},
    "table": {"table_sizes": None, "table_profiles": []},
}
"""What an identity says of each kind where there is none."""


class BetweenPlan(Protocol):
    """What a graph is built for."""

    @property
    def facts(self) -> dict[str, Any]:
        """What an identity says of it."""

    def content(self, bundle: Bundle) -> bytes:
        """The graph as a file."""

    def shapes(self, bundle: Bundle) -> list[Shapes]:
        """For each profile, the shapes of the inputs that have free dimensions."""


@dataclass(frozen=True)
class Between:
    """A graph and its engine; or why there is none."""

    kind: str
    plan: BetweenPlan | None
    reason: str | None
    graph: bytes = b""
    engine: bytes = b""
    layers: Sequence[Layer] = ()

    def write(self, folder: Path) -> dict[str, Path | None]:
        """The files, by their names in an identity."""
        if self.plan is None:
            return dict.fromkeys((self.kind, f"{self.kind}_graph", f"{self.kind}_layers"))
        listing = write_hashed(folder, self.kind, ".json", dump_layers(self.layers)) if self.layers else None
        return {
            self.kind: write_hashed(folder, self.kind, ".engine", self.engine),
            f"{self.kind}_graph": write_hashed(folder, self.kind, ".onnx", self.graph),
            f"{self.kind}_layers": listing,
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What an identity says of it, beside its files."""
        return {f"{self.kind}_reason": self.reason, **(self.plan.facts if self.plan else NOTHING[self.kind])}


def plan_between(
    bundle: Bundle, names: Sequence[str], images: Sequence[int], profiles: Profiles, refused: str | None
) -> list[Between]:
    """Of each kind what is to be built, or why nothing is.

    `names`, `images`: schedules and batches of the engine. `refused`: why it can have none of any kind.
    """
    if refused is not None:
        return [Between(kind, None, refused) for kind in NOTHING]
    planned: dict[str, tuple[BetweenPlan | None, str | None]] = {
        "loop": plan_loop(bundle, names, images, profiles),
        "table": plan_table(bundle, names, images, profiles),
    }
    return [Between(kind, *found) for kind, found in planned.items()]


def build_between(bundle: Bundle, wanted: Between, run: Callable[[Path, list[Shapes]], Any]) -> Between:
    """`run` builds a graph at these shapes, into an engine and its listing. What fails stays with the host."""
    if wanted.plan is None:
        return wanted
    graph = wanted.plan.content(bundle)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{wanted.kind}.onnx"
        path.write_bytes(graph)
        shapes = wanted.plan.shapes(bundle)
        try:
            made = run(path, shapes)
        except EngineError as error:
            return Between(wanted.kind, None, f"stays with the host: {error}")
    layers = parse_layers(made.listing)
    if problem := check_between(layers, len(shapes)):
        return Between(wanted.kind, None, f"stays with the host: {problem}")
    return Between(wanted.kind, wanted.plan, None, graph, made.engine, layers)


def check_between(layers: Sequence[Layer], profiles: int) -> str | None:
    """Why a built graph cannot be launched between two calls; None where it can, or nothing is listed."""
    if copies := [layer for layer in layers if layer.kind == FROM_HOST]:
        return f"{copies[0].name} waits for the host"
    if layers and {layer.profile for layer in layers} != set(range(profiles)):
        return "not all of its profiles are listed"
    return None
