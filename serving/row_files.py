"""Files of rows, an image each: parquet, and the tar files of WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import EngineError
from arforge.runner.optional import needed

# so that Hugging Face's `datasets` shows images
FEATURE = {"image": {"_type": "Image"}}


@dataclass(frozen=True)
class Row:
    number: int  # which is its seed
    asked: dict[str, Any]  # its class or prompt; nothing where it was asked for by arrays
    picture: bytes | None  # a PNG file
    tokens: NDArray[np.int64] | None  # (cells)


@dataclass(frozen=True)
class Format:
    ending: str
    write: Callable[[Sequence[Row], BinaryIO], None]


def parquet(doing: str) -> tuple[Any, Any]:
    """pyarrow, and its module of parquet. Raises EngineError if it is not installed."""
    with needed(f"{doing} parquet", "ray", EngineError):
        import pyarrow as pa
        import pyarrow.parquet as pq
    return pa, pq


def write_parquet(rows: Sequence[Row], file: BinaryIO) -> None:
    """Columns `id`, `class` or `prompt`, `image` (a struct of bytes and path), `tokens`."""
    pa, pq = parquet("writing")
    columns: dict[str, Any] = {"id": pa.array([row.number for row in rows], pa.int64())}
    for name in rows[0].asked:
        columns[name] = pa.array([row.asked[name] for row in rows])
    if rows[0].picture is not None:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns["image"] = pa.array([{"bytes": row.picture, "path": None} for row in rows], kind)
    if rows[0].tokens is not None:
        columns["tokens"] = pa.array([row.tokens for row in rows], pa.list_(pa.int64()))
    table = pa.table(columns)
    if "image" in columns:
        features = {name: FEATURE.get(name) or _feature(table.schema.field(name).type) for name in columns}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


def _feature(kind: Any) -> dict[str, Any]:
    if str(kind).startswith("list"):
        return {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


def write_tar(rows: Sequence[Row], file: BinaryIO) -> None:
    """Of each row NUMBER.png, NUMBER.cls or NUMBER.txt, NUMBER.npy of its tokens, and NUMBER.json."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row in rows:
            for ending, content in _members(row):
                member = tarfile.TarInfo(f"{row.number:012d}.{ending}")
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))


def _members(row: Row) -> Iterator[tuple[str, bytes]]:
    if row.picture is not None:
        yield "png", row.picture
    if isinstance(row.asked.get("class"), int):
        yield "cls", str(row.asked["class"]).encode()
    if "prompt" in row.asked:
        yield "txt", row.asked["prompt"].encode()
    if row.tokens is not None:
        array = io.BytesIO()
        np.save(array, row.tokens)
        yield "npy", array.getvalue()
    yield "json", json.dumps({"id": row.number, **row.asked}, ensure_ascii=False).encode()


FORMATS = {"parquet": Format("parquet", write_parquet), "webdataset": Format("tar", write_tar)}
