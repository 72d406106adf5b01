"""Classes by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arforge.runner import RequestError, open_bundle
from arforge.runner.labels import class_of
from arforge.runner.request import check_classes

LABELS = ("T-shirt", "crane, bird", "crane, machine", "goldfish, Carassius auratus", "5")


@pytest.mark.parametrize(
    ("name", "number"),
    [("t-SHIRT", 0), (" goldfish ", 3), ("carassius auratus", 3), ("Crane, Machine", 2), ("machine", 2), ("5", 4)],
)
def test_a_name_is_found_whatever_its_case(name: str, number: int) -> None:
    assert class_of(name, LABELS) == number


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("crane", LABELS, "class 'crane' is the name of 1, 2: use the number"),
        ("goldfsh", LABELS, "none of the model's: did you mean 'goldfish'?"),
        ("zebra", LABELS, "none of the model's: they are called 'T-shirt' to '5'"),
        ("", LABELS, "none of the model's"),
        ("boot", None, "no names for its classes; use numbers, or export it with --labels FILE"),
    ],
)
def test_what_is_no_name_says_so(name: str, labels: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(RequestError) as error:
        class_of(name, labels)
    assert message in str(error.value)


def test_numbers_and_names_may_be_mixed(bundle: Path) -> None:
    model = replace(open_bundle(bundle).model, labels=tuple(f"class {number}" for number in range(10)))
    assert check_classes([3, "class 7", "CLASS 0"], model).tolist() == [3, 7, 0]
