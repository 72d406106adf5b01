"""Tables that say what each row of a data set is to show."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arforge.runner.errors import RequestError
from arforge.runner.request import Subjects
from arforge.runner.text.prompt import check_prompt
from arforge.serving.row_files import parquet

COLUMNS = {"class": "classes", "prompt": "prompts"}


def read_table(path: Path) -> Subjects:
    """The classes or prompts of a .csv or .parquet file, from its column of that name.

    Raises RequestError for a file that is none, has neither or both, or holds a row that is no class or prompt.
    """
    if path.suffix not in READERS:
        raise RequestError(f"{path} is no table: use a .csv or a .parquet file")
    try:
        name, values = READERS[path.suffix](path)
    except RequestError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's are among them
        raise RequestError(f"cannot read {path}: {error}") from error
    found: list[Any] = []
    for number, value in enumerate(values, 1):
        try:
            found.append(check_prompt(value) if name == "prompt" else _class(value))
        except RequestError as error:
            raise RequestError(f"{path}, row {number}: {error}") from None
    if not found:
        raise RequestError(f"{path} has no rows")
    return Subjects(COLUMNS[name], tuple(found))


def _class(value: Any) -> int | str:
    """A number, or a name."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise RequestError(f"{value!r} is no class: give a number or a name")
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _column(path: Path, names: Iterable[str]) -> str:
    found = [name for name in COLUMNS if name in names]
    if len(found) != 1:
        raise RequestError(f"{path} has columns {', '.join(names)}: name one of them class, or prompt")
    return found[0]


def _of_csv(path: Path) -> tuple[str, list[Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        name = _column(path, rows.fieldnames or ())
        return name, [row[name] for row in rows]


def _of_parquet(path: Path) -> tuple[str, list[Any]]:
    _, pq = parquet("reading")
    name = _column(path, pq.read_schema(path).names)
    return name, pq.read_table(path, columns=[name])[name].to_pylist()


READERS = {".csv": _of_csv, ".parquet": _of_parquet}
