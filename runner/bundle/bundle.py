"""Opens a bundle: a directory with a manifest, graphs, weights, schedules and engines.

Nothing in a bundle is used before its structure, paths and sizes are checked; hashes are checked on demand
(`Bundle.check_hashes`), since that reads every byte. The format is described in docs/format.md.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from arforge.runner.bundle.engine_identity import read_identity
from arforge.runner.bundle.facts import BuiltEngine, ClassCondition, Graph, StoredSchedule
from arforge.runner.bundle.manifest import Manifest, read_manifest
from arforge.runner.command_line import command_line
from arforge.runner.errors import (
    BundleError,
    EngineError,
    FileSizeError,
    FormatVersionError,
    HashError,
    ManifestError,
    MissingFileError,
    PathError,
    RequestError,
    ScheduleError,
)
from arforge.runner.schedules import file
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import compile_schedule, parse, require_order, require_specials


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
        """A graph's entry. Raises BundleError where the bundle lacks it."""
        for graph in self.graphs:
            if graph.key == (name, precision):
                return graph
        raise BundleError(f"{self.root} has no {precision} graph {name!r}: {self._hint(name)}")

    def graph(self, name: str, precision: str) -> Path:
        """The ONNX file of a graph. Raises BundleError where the bundle lacks it."""
        return self.path(self.stored_graph(name, precision).path)

    def schedule(self, specification: str, kept: tuple[int, ...] = ()) -> Schedule:
        """The stored schedule of that specification, else one compiled for the model's grid and the kept cells."""
        require_order(specification, self.model.order)
        canonical = str(parse(specification))
        stored = (entry for entry in self.schedules if entry.specification == canonical)
        entry = None if kept else next(stored, None)
        schedule = self._stored_schedule(entry) if entry else compile_schedule(canonical, self.model.grid, kept)
        require_specials(schedule, len(self.model.specials))
        return schedule

    @property
    def default_schedule(self) -> str:
        """The first stored one."""
        return self.specifications[0]

    def identity(self, engine: BuiltEngine) -> dict[str, Any]:
        """What an engine was made from, by what and for what. Raises EngineError for a file that is no identity."""
        return read_identity(self.root, engine, self.files)

    def engine(self, target: str, precision: str) -> dict[str, Any]:
        """The identity of the first engine of that kind. Raises EngineError where none is built."""
        return self.identities(target, precision)[0]

    def identities(self, target: str, precision: str) -> list[dict[str, Any]]:
        """The identities of the engines of that kind, for different devices. Raises EngineError where none is built."""
        found = [engine for engine in self.engines if (engine.target, engine.precision) == (target, precision)]
        if found:
            return [self.identity(engine) for engine in found]
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
        if name in ("decoder", "encoder"):
            return "export it with --tokenizer FILE to get images"
        return "export it again"


def open_bundle(root: Path | str) -> Bundle:
    """Open and check a bundle. Raises a BundleError whose class names the way in which it is wrong."""
    if not isinstance(root, str | os.PathLike):
        raise RequestError(f"{root!r} is no path of a bundle: give it as text or a Path")
    root = Path(root)
    if not root.is_dir():
        raise BundleError(f"no bundle at {root}: make one with `arforge export`")
    manifest = read_manifest(root)
    check_distinct(manifest.files)
    for path, facts in manifest.files.items():
        _check_file(root, path, facts.bytes)
    for path in manifest.used():
        if path not in manifest.files:
            raise ManifestError(f"{root}: {path} is used but not listed among the files")
    bundle = Bundle(**vars(manifest), root=root)
    _check_model(bundle)
    _check_runnable(bundle)
    return bundle


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_relative(path: str) -> None:
    """Raise PathError unless `path` is relative, plain and stays inside."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or "\\" in path or ":" in path or "\0" in path:
        raise PathError(f"path {path!r} in the manifest is not a plain relative path")
    if not pure.parts or ".." in pure.parts or path != str(pure):
        raise PathError(f"path {path!r} in the manifest leaves the bundle, or is not in its shortest form")
    if not path.isprintable() or any(part.endswith((".", " ")) for part in pure.parts):
        raise PathError(f"path {path!r} in the manifest has a name that not every system can have")


def check_distinct(paths: Iterable[str]) -> None:
    """Raise PathError where two paths, or folders of them, are one on a file system that does not tell case."""
    spelled: dict[str, str] = {}
    for path in paths:
        for place in (path, *map(str, PurePosixPath(path).parents)):
            first = spelled.setdefault(unicodedata.normalize("NFC", place).casefold(), place)
            if first != place:
                raise PathError(f"paths {first!r} and {place!r} in the manifest differ in case or accents only")


def _check_file(root: Path, path: str, size: int) -> None:
    check_relative(path)
    place = root
    for part in PurePosixPath(path).parts:
        place = place / part
        try:
            facts = os.lstat(place)
        except (OSError, ValueError):  # a name that the system cannot have
            raise MissingFileError(f"{root} lacks {path}: export the bundle again, or copy it whole") from None
        if stat.S_ISLNK(facts.st_mode):
            raise PathError(f"{place} is a link; a bundle holds plain files only")
    if not stat.S_ISREG(facts.st_mode):
        raise MissingFileError(f"{place} is not a file")
    if facts.st_size != size:
        raise FileSizeError(
            f"{place} has {facts.st_size} bytes, the manifest says {size}: the copy is incomplete; copy or export again"
        )


def _check_model(bundle: Bundle) -> None:
    model, tokenizer = bundle.model, bundle.image_tokenizer
    if model.caches > model.layers:
        raise ManifestError(f"{bundle.root}: {model.caches} caches for {model.layers} layers")
    if model.positions == "grid" and model.position_rows < 1 + model.cells:
        raise ManifestError(f"{bundle.root}: {model.position_rows} positions for {model.cells} cells")
    largest = model.vocabulary - 1
    if isinstance(condition := model.condition, ClassCondition):
        if not largest < condition.first_class <= condition.first_class + condition.classes - 1 < condition.null_class:
            raise ManifestError(f"{bundle.root}: class ids overlap image tokens or the null class")
        if model.labels is not None and len(model.labels) != condition.classes:
            raise ManifestError(f"{bundle.root}: {len(model.labels)} labels for {condition.classes} classes")
        largest = condition.null_class
    elif model.labels is not None:
        raise ManifestError(f"{bundle.root}: labels, and no classes")
    if len(set(model.specials)) != len(model.specials) or min(model.specials, default=largest + 1) <= largest:
        raise ManifestError(f"{bundle.root}: special tokens overlap image tokens, the classes, or each other")
    if model.row_end is not None and model.row_end >= len(model.specials):
        raise ManifestError(f"{bundle.root}: row_end {model.row_end} of {len(model.specials)} special tokens")
    if tokenizer is None:
        return
    if tokenizer.codebook_size != model.vocabulary:
        raise ManifestError(
            f"{bundle.root}: image tokenizer has {tokenizer.codebook_size} codes, the model {model.vocabulary} tokens"
        )
    expected = (model.grid[0] * tokenizer.downsampling, model.grid[1] * tokenizer.downsampling)
    if tokenizer.image_size != expected:
        raise ManifestError(f"{bundle.root}: image size {tokenizer.image_size}, the grid makes {expected}")


def _check_runnable(bundle: Bundle) -> None:
    """Raise FormatVersionError for what the format has and this version of arforge does not run yet."""
    model = bundle.model
    new = {
        f"prompts ({model.condition.kind})": not isinstance(model.condition, ClassCondition),
        "positions in sequence": model.positions == "sequence",
        "special tokens at the end of rows": model.row_end is not None,
        "a sampler of noise": bundle.sampler.kind == "noise",
    }
    for what, asked in new.items():
        if asked:
            raise FormatVersionError(f"{bundle.root} needs {what}, which this arforge does not run yet: update arforge")
