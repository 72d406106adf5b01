"""manifest.json: JSON to typed facts, strictly, and back."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from arforge.runner.bundle.facts import (
    BuiltEngine,
    ClassCondition,
    Condition,
    FeaturesCondition,
    File,
    Graph,
    IdsCondition,
    ImageTokenizerFacts,
    ModelFacts,
    SamplerDefaults,
    StoredSchedule,
)
from arforge.runner.bundle.files import mode_of, plain_copy
from arforge.runner.errors import BundleError, FormatVersionError, ManifestError
from arforge.runner.json_file import check_schema, floats, read_json

FORMAT = "arforge-bundle"
VERSION = 2
MANIFEST = "manifest.json"
COUNTED = ("version", "image_tokenizer", "files", "schedules")  # parts beside the model that hold whole numbers


@dataclass(frozen=True)
class Manifest:
    """All that manifest.json holds but its format and version."""

    model: ModelFacts
    image_tokenizer: ImageTokenizerFacts | None
    text_tokenizer: str | None  # a file of the bundle
    graphs: tuple[Graph, ...]
    files: Mapping[str, File]  # by path, every file but the manifest
    schedules: tuple[StoredSchedule, ...]
    sampler: SamplerDefaults
    engines: tuple[BuiltEngine, ...]
    provenance: Mapping[str, Any]

    def used(self) -> list[str]:
        """Every path that an entry names."""
        paths = [entry.path for part in (self.graphs, self.schedules, self.engines) for entry in part]
        paths += [graph.weights for graph in self.graphs]
        return paths if self.text_tokenizer is None else [*paths, self.text_tokenizer]

    @property
    def specifications(self) -> tuple[str, ...]:
        """Of the stored schedules; the first is the default."""
        return tuple(schedule.specification for schedule in self.schedules)

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        values = {field.name: getattr(self, field.name) for field in fields(Manifest)}
        return {"format": FORMAT, "version": VERSION, **{name: _plain(value) for name, value in values.items()}}


def read_manifest(root: Path) -> Manifest:
    """The manifest of the bundle at `root`. Raises ManifestError, or FormatVersionError for another format's."""
    path = root / MANIFEST
    mode = mode_of(path)
    if mode is None or not stat.S_ISREG(mode):
        link = f" but a link of that name: {plain_copy(root)}" if mode is not None and stat.S_ISLNK(mode) else ""
        raise ManifestError(f"{root} is not a bundle: it has no {MANIFEST}{link}")
    if not os.access(path, os.R_OK):
        raise BundleError(f"cannot read {path}: {os.strerror(errno.EACCES)}")
    value = read_json(path, ManifestError)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ManifestError(f"{path} is not the manifest of an arforge bundle")
    _check_version(root, value.get("version"))
    check_schema(value, "manifest.schema.json", str(path), ManifestError)
    counts = {part: value[part] for part in COUNTED} | {"top_k": value["sampler"]["top_k"]}
    for place in floats([{**value["model"], "config": None}, counts]):
        raise ManifestError(f"{path} does not follow the format: {place} must be a whole number, without a point")
    return _typed(value)


def _check_version(root: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version == VERSION or version < 1:
        return  # what is no version is for the schema to refuse
    if version > VERSION:
        raise FormatVersionError(
            f"{root} has bundle format {version}, this arforge reads format {VERSION}: update arforge, "
            "or export the bundle again with this one"
        )
    raise FormatVersionError(f"{root} has bundle format {version}, which this arforge no longer reads: export it again")


def _typed(value: Mapping[str, Any]) -> Manifest:
    images, sampler = value["image_tokenizer"], value["sampler"]
    return Manifest(
        model=_model(value["model"]),
        image_tokenizer=images and ImageTokenizerFacts(**{**images, "image_size": tuple(images["image_size"])}),
        text_tokenizer=value["text_tokenizer"],
        graphs=tuple(Graph(**graph) for graph in value["graphs"]),
        files={path: File(**facts) for path, facts in value["files"].items()},
        schedules=tuple(StoredSchedule(**{**entry, "widths": tuple(entry["widths"])}) for entry in value["schedules"]),
        sampler=SamplerDefaults(**sampler),
        engines=tuple(BuiltEngine(**engine) for engine in value["engines"]),
        provenance=value["provenance"],
    )


def _model(value: Mapping[str, Any]) -> ModelFacts:
    labels = value["labels"]
    changed = {
        "grid": tuple(value["grid"]),
        "condition": _condition(value["condition"]),
        "specials": tuple(value["specials"]),
        "labels": None if labels is None else tuple(labels),
    }
    return ModelFacts(**{**value, **changed})


def _condition(value: Mapping[str, Any]) -> Condition:
    if value["kind"] == "class":
        return ClassCondition(**value)
    if value["kind"] == "features":
        return FeaturesCondition(**value)
    lists = {name: tuple(value[name]) for name in ("prefix", "suffix", "negative")}
    return IdsCondition(**{**value, **lists, "reserved": tuple((first, last) for first, last in value["reserved"])})


def _plain(value: Any) -> Any:
    """Typed facts as JSON's own kinds of values."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
    return value
