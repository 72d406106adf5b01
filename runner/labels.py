"""Classes by name, where a bundle has names for them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from arforge.runner.errors import RequestError


def class_of(name: str, labels: Sequence[str] | None) -> int:
    """The number of the class of that name, whatever its case; a label "goldfish, Carassius auratus" has two names.

    Raises RequestError if no class has it, or more than one.
    """
    if labels is None:
        raise RequestError(
            f"class {name!r}: the bundle has no names for its classes; use numbers, or export it with --labels FILE"
        )
    wanted = name.strip().casefold()
    found = [number for number, label in enumerate(labels) if wanted in names_of(label)]
    if len(found) > 1:
        raise RequestError(f"class {name!r} is the name of {', '.join(map(str, found))}: use the number")
    if not found:
        known = [one for label in labels for one in names_of(label)]
        close = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"they are called {labels[0]!r} to {labels[-1]!r}"
        raise RequestError(f"class {name!r} is none of the model's: {hint}")
    return found[0]


def names_of(label: str) -> list[str]:
    return [label.strip().casefold(), *(part.strip().casefold() for part in label.split(",") if "," in label)]
