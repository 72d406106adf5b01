"""What an exported bundle's manifest says of its model, its image tokenizer, and where they come from."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arforge.export.checkpoint import Checkpoint
from arforge.export.config import variant_of
from arforge.export.families.family import Configuration, Family, Grid
from arforge.export.image_tokenizers.image_tokenizer import Configuration as ImageTokenizerConfiguration
from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizerKind
from arforge.export.layers import padded_head
from arforge.export.model_folder import Words, folder_of, read_words
from arforge.runner.bundle import (
    Captions,
    ClassCondition,
    Condition,
    FeaturesCondition,
    IdsCondition,
    ImageTokenizerFacts,
    ModelFacts,
    Precision,
)
from arforge.runner.bundle.consistency import of_template
from arforge.runner.errors import CheckpointError
from arforge.version import VERSION

LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")


MAX_LABEL = 200  # characters


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of classes: a line each, or a JSON list. Raises CheckpointError for another file."""
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read the names of classes in {path}: {error}") from error
    if not all(isinstance(name, str) and 0 < len(name.strip()) <= MAX_LABEL for name in found):
        raise CheckpointError(f"{path} must hold a name of up to {MAX_LABEL} characters for each class, a line each")
    return tuple(name.strip() for name in found)


def check_labels(labels: tuple[str, ...] | None, condition: Condition) -> None:
    """Raise CheckpointError unless there is a name for each class, or none at all."""
    if labels is None:
        return
    if not isinstance(condition, ClassCondition):
        raise CheckpointError("names of classes are given, and the model has none: leave --labels out")
    if len(labels) != condition.classes:
        raise CheckpointError(f"{len(labels)} names for {condition.classes} classes: give one a class, in their order")


def words_of(family: Family[Any], config: Configuration, checkpoint: Path) -> Words:
    """The words of a checkpoint's folder, of a model that reads ids. Raises CheckpointError as `read_words`."""
    condition = family.condition(config)
    if not isinstance(condition, IdsCondition):
        return Words()
    return read_words(folder_of(checkpoint), condition.vocabulary)


def condition_of(family: Family[Any], config: Configuration, words: Words, captions: Captions | None) -> Condition:
    """The condition of a model, by what its folder tells of its words, and with another default of `captions`.

    Raises CheckpointError if prompts have no room, or words that the vocabulary lacks.
    """
    if family.template is None:
        return with_captions(family.condition(config), captions)
    condition = family.template(config, words)
    for problem in of_template(condition):
        raise CheckpointError(
            f"{family.name}: {problem}: use the tokenizer.json of that model, and --prompt-slots enough"
        )
    return with_captions(condition, captions)


def with_captions(condition: Condition, captions: Captions | None) -> Condition:
    """The condition with another default of `captions`. Raises CheckpointError if the model takes no texts."""
    if captions is None:
        return condition
    if not isinstance(condition, FeaturesCondition):
        raise CheckpointError("--captions goes with models that take prompts: leave it out")
    return replace(condition, captions=captions)


def model_facts(
    family: Family[Any],
    config: Configuration,
    checkpoint: Checkpoint,
    precision: Precision | None,
    labels: tuple[str, ...] | None,
    condition: Condition,
) -> ModelFacts:
    return ModelFacts(
        family=family.name,
        variant=variant_of(family, config),
        config=asdict(config),
        order=family.order,
        grid=config.grid,
        vocabulary=config.vocab_size,
        dim=config.dim,
        condition=condition,
        specials=family.specials(config),
        row_end=family.row_end,
        labels=labels,
        source_precision=checkpoint.precision,
        stored_precision=precision or checkpoint.precision,
        queries=family.queries,
        positions=family.positions,
        position_rows=len(next(iter(family.tables(config).values()))),
        layers=config.n_layer,
        caches=config.caches,
        kv_heads=config.kv_heads,
        head_size=padded_head(config.head_size),
        parameters=sum(math.prod(shape) for shape in family.checkpoint_shapes(config).values()),
    )


def image_tokenizer_facts(
    kind: ImageTokenizerKind[Any], config: ImageTokenizerConfiguration, grid: Grid
) -> ImageTokenizerFacts:
    return ImageTokenizerFacts(
        kind=kind.kind,
        codebook_size=config.codebook_size,
        codebook_width=config.codebook_width,
        downsampling=config.downsampling,
        image_size=(grid[0] * config.downsampling, grid[1] * config.downsampling),
    )


def provenance(
    checkpoint: Checkpoint, image_tokenizer: Checkpoint | None, text_encoder: Checkpoint | None = None
) -> dict[str, Any]:
    """Where the bundle comes from: source files by name and sha256, versions, command line, time."""
    return {
        "arforge": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "checkpoint": source(checkpoint),
        "tokenizer": None if image_tokenizer is None else source(image_tokenizer),
        "text_encoder": None if text_encoder is None else source(text_encoder),
        "versions": {name: version(name) for name in LIBRARIES},
        "python": sys.version.split()[0],
    }


def source(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint by its name, size and sha256, with each of its files, and which of its weights were taken."""
    alone, together = hashes(checkpoint.files)
    sizes = [path.stat().st_size for path in checkpoint.files]
    files = [
        {"name": path.name, "bytes": size, "sha256": sha256}
        for path, size, sha256 in zip(checkpoint.files, sizes, alone, strict=True)
    ]
    return {
        "name": checkpoint.path.name,
        "bytes": sum(sizes),
        "sha256": together,
        "files": files,
        "weights": checkpoint.table,
    }


def hashes(files: Sequence[Path]) -> tuple[list[str], str]:
    """The sha256 of each file, and that of all, one after another."""
    alone, together = [], hashlib.sha256()
    for path in files:
        one = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                one.update(block)
                if len(files) > 1:
                    together.update(block)
        alone.append(one.hexdigest())
    return alone, together.hexdigest() if len(files) > 1 else alone[0]
