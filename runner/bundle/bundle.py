"""Opens a bundle: a directory with a manifest, graphs, weights, schedules and engines.

Nothing in a bundle is used before its structure, paths and sizes are checked; hashes are checked on demand
(`Bundle.check_hashes`), since that reads every byte. The format is described in docs/format.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arforge.runner.bundle.consistency import problems
from arforge.runner.bundle.engine_identity import read_identity
from arforge.runner.bundle.facts import BuiltEngine, Graph, StoredSchedule
from arforge.runner.bundle.files import check_distinct, check_file, is_folder, require_utf8, sha256_of
from arforge.runner.bundle.manifest import MANIFEST, Manifest, read_manifest
from arforge.runner.command_line import command_line
from arforge.runner.errors import (
    ArforgeError,
    BundleError,
    EngineError,
    HashError,
    ManifestError,
    RequestError,
    ScheduleError,
)
from arforge.runner.schedules import file
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import compile_schedule, parse, require_order, require_specials

ATTEMPTS = 100  # at a bundle that changes while it is opened
T = TypeVar("T")


@dataclass(frozen=True)
class Bundle(Manifest):
    """A manifest and where its files lie."""

    root: Path

    def path(self, relative: str) -> Path:
        return self.root / relative

    def sha256(self, path: Any) -> str | None:
        """That of a listed file; None for any other."""
        return self.files[path].sha256 if isinstance(path, str) and path in self.files else None

    def stored_graph(self, name: str, precision: str) -> Graph:
        """A graph's entry. Raises BundleError if the bundle lacks it."""
        for graph in self.graphs:
            if graph.key == (name, precision):
                return graph
        raise BundleError(f"{self.root} has no {precision} graph {name!r}: {self._hint(name)}")

    def graph(self, name: str, precision: str) -> Path:
        """The ONNX file of a graph. Raises BundleError if the bundle lacks it."""
        return self.path(self.stored_graph(name, precision).path)

    def schedule(self, specification: str, kept: tuple[int, ...] = ()) -> Schedule:
        """The stored schedule of that specification, else one compiled for the model's grid and the kept cells."""
        require_order(specification, self.model.order)
        canonical = str(parse(specification))
        stored = (entry for entry in self.schedules if entry.specification == canonical)
        entry = None if kept else next(stored, None)
        model = self.model
        schedule = (
            self._stored_schedule(entry) if entry else compile_schedule(canonical, model.grid, kept, model.row_end)
        )
        require_specials(schedule, len(model.specials), model.row_end)
        if schedule.last_position > model.last_position:
            raise ScheduleError(
                f"schedule {canonical} has position {schedule.last_position}, the model {model.last_position} at most: "
                "export again"
            )
        return schedule

    @property
    def default_schedule(self) -> str:
        """The first stored one."""
        return self.specifications[0]

    def identity(self, engine: BuiltEngine) -> dict[str, Any]:
        """What an engine was made from, by what and for what. Raises EngineError for a file that is no identity."""
        return read_identity(self.root, engine, self.files)

    def engine(self, target: str, precision: str) -> dict[str, Any]:
        """The identity of the first engine of that kind. Raises EngineError if none is built."""
        return self.identities(target, precision)[0]

    def identities(self, target: str, precision: str) -> list[dict[str, Any]]:
        """The identities of the engines of that kind, for different devices. Raises EngineError if none is built."""
        found = [engine for engine in self.engines if (engine.target, engine.precision) == (target, precision)]
        if found:
            try:
                return [self.identity(engine) for engine in found]
            except EngineError:
                if (newer := open_bundle(self.root)) == self:
                    raise
            return newer.identities(target, precision)  # the engine has been built again meanwhile
        built = ", ".join(f"{engine.target} {engine.precision}" for engine in self.engines) or "none"
        command = command_line("build", self.root, "--target", target, "--precision", precision)
        raise EngineError(f"{self.root} has no {target} {precision} engine (built: {built}). Build it: {command}")

    def check_hashes(self, progress: Callable[[str], None] = lambda path: None) -> None:
        """Compare every file with its sha256. Raises HashError for the first that differs."""
        for path, facts in self.files.items():
            progress(path)
            found = sha256_of(self.path(path))
            if found != facts.sha256:
                raise HashError(
                    f"{self.path(path)} is damaged: sha256 {found}, the manifest says {facts.sha256}. "
                    "Export the bundle again"
                )

    def _stored_schedule(self, entry: StoredSchedule) -> Schedule:
        schedule = file.read(self.path(entry.path))
        facts = (schedule.specification, schedule.grid, len(schedule.steps), schedule.slots, schedule.queries)
        found = (*facts, schedule.kept)
        expected = (entry.specification, self.model.grid, entry.steps, entry.slots, self.model.queries, ())
        if found != expected:
            raise ScheduleError(f"{entry.path} holds {found}, the manifest says {expected}: export again")
        return schedule

    def _hint(self, name: str) -> str:
        if name == "encoder" and self.image_tokenizer is not None:
            return "its image tokenizer only decodes; export it with one that has its encoder to read images"
        if name in ("decoder", "encoder"):
            return "export it with --tokenizer FILE to get images"
        return "export it again"


def open_bundle(root: Path | str) -> Bundle:
    """Open and check a bundle. Raises a BundleError whose class names the way in which it is wrong."""
    return use_bundle(root, lambda bundle: bundle)


def use_bundle(root: Path | str, use: Callable[[Bundle], T]) -> T:
    """Open a bundle and do something with its files; again where that fails because the bundle has been changed.

    A builder replaces the manifest in one step and removes files that it no longer lists. Raises as `open_bundle` and
    `use` do.
    """
    if not isinstance(root, str | os.PathLike):
        raise RequestError(f"{root!r} is no path of a bundle: give it as text or a Path")
    root = Path(root)
    for _ in range(ATTEMPTS):
        before = _revision(root)
        try:
            return use(_open(root))
        except ArforgeError:
            if _revision(root) == before:
                raise
    return use(_open(root))


def _revision(root: Path) -> tuple[int, ...] | None:
    """What tells one manifest of a bundle from the next."""
    try:
        facts = (root / MANIFEST).stat()
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _open(root: Path) -> Bundle:
    require_utf8(root)
    if not is_folder(root):
        raise BundleError(f"no bundle at {root}: make one with `arforge export`")
    manifest = read_manifest(root)
    check_distinct(manifest.files)
    for path, facts in manifest.files.items():
        check_file(root, path, facts.bytes)
    for path in manifest.used():
        if path not in manifest.files:
            raise ManifestError(f"{root}: {path} is used but not listed among the files")
    bundle = Bundle(**vars(manifest), root=root)
    if problem := next(problems(bundle.model, bundle.image_tokenizer), None):
        raise ManifestError(f"{root}: {problem}")
    return bundle
