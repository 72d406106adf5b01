"""Opens a bundle: a directory with a manifest, graphs, weights, schedules and engines.

Nothing in a bundle is used before its structure, paths and sizes are checked; hashes are checked on demand
(`Bundle.check_hashes`), since that reads every byte. The format is described in the README.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from arforge.runner.bundle.engine_identity import read_identity
from arforge.runner.errors import (
    BundleError,
    EngineError,
    FileSizeError,
    FormatVersionError,
    HashError,
    ManifestError,
    MissingFileError,
    PathError,
    ScheduleError,
)
from arforge.runner.json_file import check_schema, floats, read_json
from arforge.runner.schedules import file as schedule_file
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import compile_schedule, parse, require_decoder, require_specials

FORMAT = "arforge-bundle"
VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Model:
    """Facts of the decoder. Ids: image tokens [0, vocabulary); the others where the fields say."""

    family: str
    variant: str | None
    config: Mapping[str, Any]
    grid: tuple[int, int]
    vocabulary: int
    classes: int
    first_class: int
    null_class: int
    first_special: int
    specials: int  # learned tokens that schedules feed by index
    queries: bool  # the step graph takes the cells to decide as `query_positions`
    positions: int  # rows of the rotary table
    layers: int
    caches: int  # pairs of key and value caches
    kv_heads: int
    head_size: int
    parameters: int

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Tokenizer:
    codebook_size: int
    codebook_width: int
    downsampling: int
    image_size: tuple[int, int]  # height, width


@dataclass(frozen=True)
class Sampler:
    """Defaults of a request."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Bundle:
    root: Path
    manifest: Mapping[str, Any]
    model: Model
    tokenizer: Tokenizer | None
    sampler: Sampler

    def path(self, relative: str) -> Path:
        return self.root / relative

    def graph(self, name: str, precision: str) -> Path:
        """The ONNX file of a graph. Raises BundleError where the bundle lacks it."""
        for entry in self.manifest["graphs"]:
            if (entry["name"], entry["precision"]) == (name, precision):
                return self.path(entry["path"])
        raise BundleError(f"{self.root} has no {precision} graph {name!r}: {self._hint(name)}")

    def schedule(self, specification: str, kept: tuple[int, ...] = ()) -> Schedule:
        """The stored schedule of that specification, else one compiled for the model's grid and the kept cells."""
        require_decoder(specification, self.model.family)
        canonical = str(parse(specification))
        stored = (entry for entry in self.manifest["schedules"] if entry["specification"] == canonical)
        entry = None if kept else next(stored, None)
        schedule = self._stored_schedule(entry) if entry else compile_schedule(canonical, self.model.grid, kept)
        require_specials(schedule, self.model.specials)
        return schedule

    @property
    def default_schedule(self) -> str:
        """The first stored one. Raises ScheduleError where the bundle stores none."""
        for entry in self.manifest["schedules"]:
            specification: str = entry["specification"]
            return specification
        raise ScheduleError(f"{self.root} stores no schedule: name one")

    def engine(self, target: str, precision: str) -> dict[str, Any]:
        """The identity of the first engine of that kind. Raises EngineError where none is built."""
        return self.engines(target, precision)[0]

    def engines(self, target: str, precision: str) -> list[dict[str, Any]]:
        """The identities of the engines of that kind, for different devices. Raises EngineError where none is built."""
        kind = (target, precision)
        found = [entry for entry in self.manifest["engines"] if (entry["target"], entry["precision"]) == kind]
        if found:
            return [self.identity(entry) for entry in found]
        built = ", ".join(f"{e['target']} {e['precision']}" for e in self.manifest["engines"]) or "none"
        raise EngineError(
            f"{self.root} has no {target} {precision} engine (built: {built}). "
            f"Build it: arforge build {self.root} --target {target} --precision {precision}"
        )

    def identity(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What an engine of the manifest was made from, by what and for what. Raises EngineError for another file."""
        return read_identity(self.root, entry, self.manifest["files"])

    def check_hashes(self, progress: Callable[[str], None] = lambda path: None) -> None:
        """Compare every file with its sha256. Raises HashError for the first that differs."""
        for path, facts in self.manifest["files"].items():
            progress(path)
            found = sha256_of(self.path(path))
            if found != facts["sha256"]:
                raise HashError(
                    f"{self.path(path)} is damaged: sha256 {found}, the manifest says {facts['sha256']}. "
                    "Export the bundle again"
                )

    def _stored_schedule(self, entry: Mapping[str, Any]) -> Schedule:
        schedule = schedule_file.read(self.path(entry["path"]))
        facts = (schedule.specification, schedule.grid, len(schedule.steps), schedule.slots, schedule.queries)
        found = (*facts, schedule.kept)
        expected = (entry["specification"], self.model.grid, entry["steps"], entry["slots"], self.model.queries, ())
        if found != expected:
            raise ScheduleError(f"{entry['path']} holds {found}, the manifest says {expected}: export again")
        return schedule

    def _hint(self, name: str) -> str:
        if name in ("decoder", "encoder"):
            return "export it with --tokenizer FILE to get images"
        return "export it again"


def open_bundle(root: Path | str) -> Bundle:
    """Open and check a bundle. Raises a BundleError whose class names the way in which it is wrong."""
    root = Path(root)
    if not root.is_dir():
        raise BundleError(f"no bundle at {root}: make one with `arforge export`")
    manifest = _read_manifest(root)
    check_distinct(manifest["files"])
    for path, facts in manifest["files"].items():
        _check_file(root, path, facts["bytes"])
    listed = [entry for part in ("graphs", "schedules", "engines") for entry in manifest[part]]
    for path in [entry["path"] for entry in listed] + [graph["weights"] for graph in manifest["graphs"]]:
        if path not in manifest["files"]:
            raise ManifestError(f"{root}: {path} is used but not listed among the files")
    model, tokenizer = manifest["model"], manifest["tokenizer"]
    bundle = Bundle(
        root=root,
        manifest=manifest,
        model=Model(**{**model, "grid": tuple(model["grid"])}),
        tokenizer=tokenizer and Tokenizer(**{**tokenizer, "image_size": tuple(tokenizer["image_size"])}),
        sampler=Sampler(**manifest["sampler"]),
    )
    _check_model(bundle)
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


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise ManifestError(f"{root} is not a bundle: it has no {MANIFEST}")
    manifest = read_json(path, ManifestError)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ManifestError(f"{path} is not the manifest of an arforge bundle")
    version = manifest.get("version")
    if isinstance(version, int) and version > VERSION:
        raise FormatVersionError(
            f"{root} has bundle format {version}, this arforge reads up to {VERSION}: update arforge, "
            "or export the bundle again with this one"
        )
    check_schema(manifest, "manifest.schema.json", str(path), ManifestError)
    counts = [{**manifest["model"], "config": None}, manifest["tokenizer"], manifest["files"], manifest["schedules"]]
    for place in floats(counts):
        raise ManifestError(f"{path} does not follow the format: {place} must be a whole number, without a point")
    return manifest


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
    model, tokenizer = bundle.model, bundle.tokenizer
    if model.caches > model.layers:
        raise ManifestError(f"{bundle.root}: {model.caches} caches for {model.layers} layers")
    if model.positions < 1 + model.cells:
        raise ManifestError(f"{bundle.root}: {model.positions} positions for {model.cells} cells")
    if not model.vocabulary <= model.first_class <= model.first_class + model.classes - 1 < model.null_class:
        raise ManifestError(f"{bundle.root}: class ids overlap image tokens or the null class")
    if model.specials and model.first_special <= model.null_class:
        raise ManifestError(f"{bundle.root}: special tokens overlap the classes")
    if tokenizer is None:
        return
    if tokenizer.codebook_size != model.vocabulary:
        raise ManifestError(
            f"{bundle.root}: tokenizer has {tokenizer.codebook_size} codes, the model {model.vocabulary} tokens"
        )
    expected = (model.grid[0] * tokenizer.downsampling, model.grid[1] * tokenizer.downsampling)
    if tokenizer.image_size != expected:
        raise ManifestError(f"{bundle.root}: image size {tokenizer.image_size}, the grid makes {expected}")
