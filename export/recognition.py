"""Tells what a checkpoint is from the names and shapes of its tensors, and what is wrong where it does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arforge.export.checkpoint import Checkpoint, some
from arforge.export.families import FAMILIES
from arforge.export.families.family import Family
from arforge.export.image_tokenizers import IMAGE_TOKENIZERS
from arforge.export.text_encoders import t5
from arforge.runner.errors import CheckpointError

TOLD = "--variant or --config"  # where a user's dimensions come from


def signs() -> dict[str, tuple[str, ...]]:
    """By the name of each known kind of checkpoint, parts of tensor names that all stand for it together."""
    return {
        **{name: family.sign for name, family in FAMILIES.items()},
        **{kind.title: kind.sign for kind in IMAGE_TOKENIZERS.values()},
        t5.TITLE: t5.SIGN,
    }


def kind_of(checkpoint: Checkpoint) -> str | None:
    """The name of the family, or of the other kind of checkpoint, whose signs the tensors' names show."""
    fitting = [
        (len(sign), name)
        for name, sign in signs().items()
        if all(any(part in tensor for tensor in checkpoint.shapes) for part in sign)
    ]
    return max(fitting)[1] if fitting else None


def family_of(checkpoint: Checkpoint) -> Family[Any]:
    """The family that the checkpoint is of. Raises CheckpointError if it is of none that arforge exports."""
    kind = kind_of(checkpoint)
    if kind in FAMILIES:
        return FAMILIES[kind]
    what = f"looks like a {kind} checkpoint" if kind else f"has tensors of no family ({some(checkpoint.shapes)})"
    raise CheckpointError(f"{checkpoint.path} {what}: the families are {', '.join(FAMILIES)}")


def part_of(checkpoint: Checkpoint, family: Family[Any]) -> Checkpoint:
    """What of a checkpoint the family's models have, by the names of `Family.checkpoint_shapes`."""
    if family.tensors is None:
        return checkpoint
    names = family.tensors(checkpoint.tensors)
    taken = {name: checkpoint.tensors[stored] for name, stored in names.items()}
    left = [name for name in checkpoint.tensors if name not in set(names.values())]
    note = (f"left out what {family.name} models draw no images with: {some(left)}",) if left else ()
    return replace(checkpoint, tensors=taken, notes=(*checkpoint.notes, *note))


def check_shapes(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
    kind: str,
    dimensions: str = TOLD,
) -> None:
    """Raise CheckpointError unless the checkpoint has exactly these tensors, of these shapes.

    `dimensions`: where those that are expected come from, for messages.
    """
    found = checkpoint.shapes
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        parts = [f"missing {some(missing)}" if missing else "", f"unexpected {some(unexpected)}" if unexpected else ""]
        raise CheckpointError(
            f"{checkpoint.path} is not a {kind} checkpoint of these dimensions: "
            f"{'; '.join(part for part in parts if part)}. {advice(checkpoint, expected, kind, dimensions)}"
        )
    wrong = [name for name in expected if found[name] != expected[name]]
    if wrong:
        than = "" if dimensions == TOLD else f" than {dimensions} says"
        lines = [f"{name} is {list(found[name])}, expected {list(expected[name])}" for name in wrong[:3]]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{checkpoint.path} has other dimensions{than}: {'; '.join(lines)}{more}")


def advice(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], kind: str, dimensions: str) -> str:
    """A sentence on what a checkpoint with other tensors than the expected seems to be."""
    if kind_of(checkpoint) != kind:
        return looks_like(checkpoint)
    if layers(checkpoint.shapes) != layers(expected):
        return f"It is of that family: check the dimensions ({dimensions})."
    whole = [name for name in expected if name in checkpoint.whole_numbers]
    if whole:
        return f"It is of that family, but {some(whole)} holds whole numbers: quantised weights are not read."
    if any(name not in checkpoint.shapes for name in expected):
        return "It is of that family, but not whole: a part of it is in another file, or under another name."
    return "It is of that family, with tensors that the family does not have: save it without them."


def looks_like(checkpoint: Checkpoint) -> str:
    """A sentence on which kind the checkpoint seems to be of."""
    kind = kind_of(checkpoint)
    return f"It looks like a {kind} checkpoint." if kind else "It looks like none of the families that arforge knows."


def layers(shapes: Mapping[str, object]) -> set[str]:
    """The numbered parts of a model: `layers.0`, `layers.1`, …"""
    return {match[0] for name in shapes if (match := re.match(r"[a-z_.]*\.\d+", name))}
