"""Reads off a checkpoint which model it holds, where the user did not say: family, dimensions, and the grid's hints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from arforge.export.checkpoint import Checkpoint
from arforge.export.config import check_config, make_config, published, read_config, variant_config, variant_of
from arforge.export.families import FAMILIES
from arforge.export.families.family import Configuration, Family, Grid
from arforge.export.model_folder import CONFIG, Description, read_description
from arforge.export.recognition import TOLD, check_shapes, family_of, looks_like, part_of
from arforge.runner.errors import CheckpointError
from arforge.runner.report import Report

SIDES = (256, 384, 512)  # of published models' images, in pixels


@dataclass(frozen=True)
class Named:
    """What the user said of a model."""

    family: str | None = None
    variant: str | None = None
    config: Path | None = None
    n_head: int | None = None
    grid: Grid | None = None
    options: Mapping[str, int] = field(default_factory=dict)  # of the family


def model_of(checkpoint: Checkpoint, named: Named, report: Report = lambda line: None) -> tuple[Family[Any], Any]:
    """The family and the configuration of a checkpoint: what the user said, else what its tensors and name tell.

    Reports each thing that the user did not say. Raises CheckpointError if something is not told, or where what
    the user said does not fit the tensors.
    """
    family = FAMILIES[named.family] if named.family else family_of(checkpoint)
    refuse_foreign(named.options, family)
    if named.config is not None:
        return family, read_config(named.config, family)
    checkpoint = part_of(checkpoint, family)
    description = read_description(checkpoint.path, family.model_types) if family.described else None
    source = TOLD if description is None else f"its {CONFIG}"
    if named.variant is not None:
        told = {**told_options(checkpoint, family), **named.options}
    elif description is not None:
        told = {**described(checkpoint, family, description), **named.options}
    else:
        told = {**inferred(checkpoint, family, named.n_head), **named.options}
    grid = named.grid or told.get("grid") or grid_hint(checkpoint, family, report)
    told["grid"] = grid or family.grids[0]
    if named.variant is not None:
        config = variant_config(family, named.variant, **told)
    else:
        config = make_config(family, told, str(checkpoint.path))
    check_shapes(checkpoint, family.checkpoint_shapes(config), family.name, source)
    if grid is None:
        grid = published_grid(checkpoint, family, config, report)
        config = check_config(replace(config, grid=grid), str(checkpoint.path))
    if named.variant is None or named.family is None:
        report(f"{checkpoint.path.name}: {summary(family, config, described=description is not None)}")
    return family, config


def refuse_foreign(options: Mapping[str, int], family: Family[Any]) -> None:
    """Raise CheckpointError for an option of another family."""
    foreign = [name for name in options if name not in {option.field for option in family.options}]
    if foreign:
        owners = [known.name for known in FAMILIES.values() if foreign[0] in {o.field for o in known.options}]
        shown = foreign[0].replace("_", "-")
        raise CheckpointError(f"--{shown} goes with the {' and '.join(owners)} family, this is {family.name}")


def described(checkpoint: Checkpoint, family: Family[Any], description: Description) -> dict[str, Any]:
    """The configuration's fields that a folder's `config.json` tells. Raises CheckpointError if tensors are missing."""
    assert family.described is not None
    try:
        return family.described(description, checkpoint.shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise not_whole(checkpoint, family, error) from error


def not_whole(checkpoint: Checkpoint, family: Family[Any], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path} is not a whole {family.name} checkpoint (missing or of another shape: {error}). "
        f"{looks_like(checkpoint)}"
    )


def inferred(checkpoint: Checkpoint, family: Family[Any], n_head: int | None) -> dict[str, Any]:
    """The configuration's fields that the tensors tell. Raises CheckpointError if they do not tell enough."""

    def heads(layers: int, dim: int) -> int:
        if n_head is not None:
            return n_head
        for size in family.variants.values():
            if (size.n_layer, size.dim) == (layers, dim):
                return size.n_head
        raise CheckpointError(
            f"{checkpoint.path} has {layers} layers of width {dim}, which is no published size of {family.name}, and "
            "tensors do not tell the number of heads: give it by --n-head, or all dimensions by --config"
        )

    try:
        return family.infer(checkpoint.shapes, heads)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise not_whole(checkpoint, family, error) from error


def told_options(checkpoint: Checkpoint, family: Family[Any]) -> dict[str, Any]:
    """The values of a family's options that the tensors tell; none where these are another family's."""
    try:
        told = family.infer(checkpoint.shapes, lambda layers, dim: 1)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        return {}
    return {option.field: told[option.field] for option in family.options if option.field in told}


def grid_hint(checkpoint: Checkpoint, family: Family[Any], report: Report) -> Grid | None:
    """The grid that the checkpoint's name tells, as in `c2i_L_384.pt`."""
    name = checkpoint.path.name
    known = sides_of(family)
    counted = re.sub(r"(?i)(step|epoch|iter|ep|it)s?[-_]?\d+", "", name)  # how long it was trained
    sides = {int(found) for found in re.findall(r"(?<!\d)\d{3,4}(?!\d)", counted)} & known.keys()
    if len(sides) != 1:
        return None
    (side,) = sides
    grid = known[side]
    report(f"{name}: a grid of {grid[0]}x{grid[1]}, since the name says {side} pixels (--grid sets another)")
    return grid


def sides_of(family: Family[Any]) -> dict[int, Grid]:
    """Sides in pixels of the images of published models, and their grids."""
    sides = sorted({*SIDES, *(family.token_pixels * rows for rows, columns in family.grids if rows == columns)})
    return {side: (side // family.token_pixels, side // family.token_pixels) for side in sides}


def published_grid(checkpoint: Checkpoint, family: Family[Any], config: Any, report: Report) -> Grid:
    """The grid that all published checkpoints of the size have. Raises CheckpointError if nothing tells it."""
    if variant_of(family, config) is None or len(family.grids) > 1:
        known = sides_of(family).items()
        sides = ", ".join(f"{rows}x{columns} for {side} pixels" for side, (rows, columns) in known)
        raise CheckpointError(
            f"{checkpoint.path}: neither tensors nor name tell the grid of tokens that the model was trained for: "
            f"give it by --grid (published models: {sides})"
        )
    (grid,) = family.grids
    report(
        f"{checkpoint.path.name}: a grid of {grid[0]}x{grid[1]}, as all published {family.name} checkpoints have "
        "(--grid sets another)"
    )
    return grid


def summary(family: Family[Any], config: Configuration, *, described: bool = False) -> str:
    """What was read off the tensors, and what was taken as published since they do not tell it."""
    size = variant_of(family, config)
    facts = f"{config.n_layer} layers of {config.n_head} heads, width {config.dim}, {config.vocab_size} image tokens"
    if size is not None:
        return f"{family.name} {size} ({facts})"
    if described:
        return f"{family.name} ({facts}), as its {CONFIG} says"
    values = asdict(config)
    untold = {name: value for name, value in published(family).items() if name in ("norm_eps", "rope_base")}
    taken = ", ".join(f"{name} {value:g}" for name, value in untold.items() if values[name] == value)
    return f"{family.name} of a size of its own ({facts}); {taken} as published (--config sets others)"
