"""docs/quality.md's tables and pictures, from the figures that quality.py measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arforge.calibration.quality.evaluation import DISTANCE
from arforge.calibration.quality.plot import Point, save_plot
from arforge.runner.errors import EvaluationError
from arforge.runner.output import write_whole
from arforge.runner.schedules.specification import as_it_stands, parse

Row = dict[str, Any]


def write_page(file: Path, order: Sequence[tuple[str, str]]) -> None:
    """Fill in the tables of the page beside `file`; `order`: of the rows, by family and schedule.

    Raises EvaluationError if the page lacks a mark.
    """
    figures = json.loads(file.read_text())
    page = file.with_suffix(".md")
    text = page.read_text("utf-8")
    rows = sorted(first_seeds(figures), key=lambda row: order.index((row["family"], row["schedule"])))
    tables = {
        "real": real_table(figures),
        "guidance": guidance_table(figures["guidance"]),
        "schedules": schedule_table(rows),
        "drafts": same_pictures(rows),
        "seeds": seed_table(figures["schedules"]),
        "int8": changes_table(rows, figures.get("int8", []), {"int8": "quantization"}),
        "int4": changes_table(
            rows, figures.get("int4", []), {"inputs a scale": "block", "bits of the head": "head_bits"}
        ),
    }
    for mark, content in tables.items():
        opening, closing = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        if opening not in text or closing not in text:
            raise EvaluationError(f"{page} has no {opening.strip()} and {closing} to write the table between")
        text = text[: text.index(opening)] + opening + content + text[text.index(closing) :]
    write_whole(page, lambda out: out.write(text.encode()))


def write_picture(file: Path) -> None:
    """Quality against steps and time, of the plain schedules."""
    figures = json.loads(file.read_text())
    timed = [row for row in first_seeds(figures) if "ms_per_image" in row]
    if not timed:
        raise EvaluationError(f"{file} holds no times: run `quality.py time` first")
    timing = figures["timing"]
    caption = (
        f"{figures['samples']} images a schedule; {timing['device']}, onnxruntime "
        f"{timing['versions']['onnxruntime']}, {timing['precision']}, batch {timing['batch']}"
    )
    floor = statistics.mean(entry[DISTANCE] for entry in figures["floor"] if "tokenizer" not in entry["set"])
    plain = [point(row) for row in timed if "," not in row["schedule"]]  # options lie too close to be told apart
    save_plot(file.with_suffix(".png"), plain, floor, caption)


def first_seeds(figures: dict[str, Any]) -> list[Row]:
    """The rows of the tables; not those of another number of samples, which a run has yet to replace."""
    return [row for row in figures["schedules"] if row["first_seed"] == 0 and row["samples"] == figures["samples"]]


def taken(rows: Sequence[Row], family: str) -> float:
    """The guidance of the least distance for the family's first schedule."""
    return float(min((row for row in rows if row["family"] == family), key=lambda row: row[DISTANCE])["guidance"])


def point(row: Row) -> Point:
    return Point(row["schedule"], row["family"], row["steps"], row["ms_per_image"], row[DISTANCE])


def real_table(figures: dict[str, Any]) -> str:
    lines = [f"| {entry['set']} | {entry[DISTANCE]:.2f} |" for entry in figures["floor"]]
    return "\n".join(["| real images | distance |", "|---|---:|", *lines]) + "\n"


def guidance_table(rows: Sequence[Row]) -> str:
    lines = ["| model | schedule | guidance | distance | class accuracy |", "|---|---|---:|---:|---:|"]
    for row in rows:
        mark = " (taken)" if row["guidance"] == taken(rows, row["family"]) else ""
        name = f"{row['family']} | `{row['schedule']}`"
        lines.append(f"| {name} | {row['guidance']:g}{mark} | {row[DISTANCE]:.2f} | {percent(row)} |")
    return "\n".join(lines) + "\n"


def schedule_table(rows: Sequence[Row]) -> str:
    lines = [
        "| model | schedule | guidance | steps | ms an image | distance | class accuracy |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        time = f"{row['ms_per_image']:.1f}" if "ms_per_image" in row else ""
        name = f"{row['family']} | `{row['schedule']}` | {row['guidance']:g}"
        steps = f"{row['steps']:.1f}".removesuffix(".0")
        lines.append(f"| {name} | {steps} | {time} | {row[DISTANCE]:.2f} | {percent(row)} |")
    return "\n".join(lines) + "\n"


def same_pictures(rows: Sequence[Row]) -> str:
    """What running ahead on drafts changed against the same table followed as it stands, in full digits."""
    found = {(row["family"], str(parse(row["schedule"]))): row for row in rows}
    lines = []
    for (family, schedule), row in found.items():
        table = found.get((family, as_it_stands(schedule)))
        if "jacobi=" in schedule and table is not None:
            same = all(row[fact] == table[fact] for fact in (DISTANCE, "class_accuracy"))
            distances = f"{row[DISTANCE]!r} and {table[DISTANCE]!r}, {'the same' if same else 'not the same'}"
            lines.append(f"- `{row['schedule']}` against `{table['schedule']}`: distance {distances}")
    return "\n".join(lines) + "\n"


def seed_table(rows: Sequence[Row]) -> str:
    repeated = {(row["family"], row["schedule"]) for row in rows if row["first_seed"] != 0}
    lines = ["| schedule | seeds from | distance | class accuracy |", "|---|---:|---:|---:|"]
    lines.extend(
        f"| `{row['schedule']}` | {row['first_seed']} | {row[DISTANCE]:.2f} | {percent(row)} |"
        for row in rows
        if (row["family"], row["schedule"]) in repeated
    )
    return "\n".join(lines) + "\n"


def changes_table(plain: Sequence[Row], rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """Each quantised row with what it changes against its float32 one; `facts`: its own columns, and where they are."""
    floats = {(row["family"], row["schedule"]): row for row in plain}
    lines = [
        f"| model | schedule | {' | '.join(facts)} | distance | change | class accuracy | change |",
        f"|---|---|{'---|' * len(facts)}---:|---:|---:|---:|",
    ]
    for row in rows:
        before = floats[row["family"], row["schedule"]]
        distance = 100 * (row[DISTANCE] / before[DISTANCE] - 1)
        accuracy = 100 * (row["class_accuracy"] - before["class_accuracy"])
        name = " | ".join([row["family"], f"`{row['schedule']}`", *(str(row[fact]) for fact in facts.values())])
        lines.append(f"| {name} | {row[DISTANCE]:.2f} | {distance:+.2f} % | {percent(row)} | {accuracy:+.2f} points |")
    return "\n".join(lines) + "\n"


def percent(row: Row) -> str:
    return f"{100 * row['class_accuracy']:.2f} %"
