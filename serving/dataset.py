"""Any number of images as files of some hundred rows each, which a run that is cut off leaves whole or not at all.

A row's number is its seed, and decides with it all that the row holds: a file that is there need not be made again, and
one that is made twice is the same twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner import Bundle, Request, RequestError, Runner
from arforge.runner.bundle import ClassCondition
from arforge.runner.bundle.lock import FolderLock
from arforge.runner.bundle.names import is_added
from arforge.runner.output import write_whole
from arforge.runner.request import Subjects, check_classes
from arforge.runner.request_parts import images_of
from arforge.serving.pictures import encoded
from arforge.serving.row_files import FORMATS, Row

STATE = "generation.json"  # in the folder: what it is filled with
WORDS = {"classes": "class", "prompts": "prompt"}  # what a row says of what it was asked for by
LEFT = ".arforge-*.partial"  # files that a run which was cut off has not finished
MAX_ROWS = 2**63
MAX_FILES = 1_000_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shard:
    """The rows of one file."""

    number: int
    first: int
    count: int


@dataclass(frozen=True)
class Job:
    bundle: Path
    folder: Path
    images: int
    subjects: Subjects
    first: int = 0  # number and seed of the first row
    kind: str = "parquet"  # one of FORMATS
    rows: int = 1000  # of a file
    tokens: bool = False  # whether rows hold the images' tokens
    target: str = "onnxruntime"
    precision: str | None = None
    threads: int | None = None
    request: Request = field(default_factory=Request)  # schedule, sampler settings, batch

    @property
    def shards(self) -> list[Shard]:
        starts = range(0, self.images, self.rows)
        return [
            Shard(number, self.first + start, min(self.rows, self.images - start))
            for number, start in enumerate(starts)
        ]

    @property
    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if not self.path(shard).exists()]

    def path(self, shard: Shard) -> Path:
        return self.folder / f"images-{shard.number:06d}.{FORMATS[self.kind].ending}"

    def open(self) -> Runner:
        return Runner.open(self.bundle, self.target, self.precision, self.threads)

    def asked(self, shard: Shard) -> Request:
        places = range(shard.first - self.first, shard.first - self.first + shard.count)
        seeds = range(shard.first, shard.first + shard.count)
        return replace(self.request, **self.subjects.take(places), seeds=seeds)

    def write(self, runner: Runner, shard: Shard) -> None:
        """Make a file's images and write it. Raises what `Runner.generate` does, and RequestError for a full disk."""
        pictures: list[bytes] = []

        def keep(pixels: NDArray[np.uint8]) -> None:
            pictures.extend(encoded(one, "png") for one in pixels)

        request = self.asked(shard)
        result = runner.generate(request, images=keep)
        words = getattr(request, self.subjects.by) if self.subjects.by in WORDS else None
        rows = [
            Row(
                number=shard.first + place,
                asked={WORDS[self.subjects.by]: words[place]} if words else {},
                picture=pictures[place] if pictures else None,
                tokens=result.tokens[place] if self.tokens else None,
            )
            for place in range(shard.count)
        ]
        write_whole(self.path(shard), lambda file: FORMATS[self.kind].write(rows, file))


def check(job: Job, bundle: Bundle) -> Job:
    """The job, with classes by number. Raises RequestError or ScheduleError for what no row can be made of."""
    by, values = job.subjects.by, job.subjects.values
    if bundle.image_tokenizer is None and not job.tokens:
        raise RequestError(f"{job.bundle} has no image tokenizer and gives tokens only: write them with --tokens")
    if (by == "classes") != isinstance(bundle.model.condition, ClassCondition):
        raise RequestError(f"this {bundle.model.family} model does not take {by}: ask for what it takes")
    if job.first + job.images > MAX_ROWS:
        raise RequestError(f"rows up to {job.first + job.images} cannot be counted: use numbers below 2**63")
    if job.images > MAX_FILES * job.rows:
        raise RequestError(f"{job.images} rows make more than {MAX_FILES} files: put more rows into one (--rows)")
    bundle.schedule(job.request.schedule or bundle.default_schedule)
    for start in range(0, len(values), job.rows):
        asked = {by: values[start : start + job.rows], **job.subjects.settings}
        images_of(replace(job.request, **asked), bundle)
    if by == "classes":
        values = tuple(check_classes(values, bundle.model).tolist())
    return replace(job, subjects=replace(job.subjects, values=values))


@contextmanager
def filling(job: Job, bundle: Bundle) -> Iterator[list[Shard]]:
    """The files that are missing in the job's folder, which is this process's alone to fill until the block ends.

    Raises RequestError if it holds something else, is being filled, or cannot be written.
    """
    state = {"arforge": 1, **_identity(job, bundle)}
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(job.folder)
    except BlockingIOError:
        raise RequestError(f"another process is filling {job.folder}: wait until it is done") from None
    except OSError as error:
        raise RequestError(f"cannot write {job.folder}: {error.strerror or error}") from error
    with lock:
        path = job.folder / STATE
        if path.exists():
            _compare(path, state)
        elif any(job.folder.iterdir()):
            raise RequestError(
                f"{job.folder} holds other files: name a new folder, or one that a run has begun to fill"
            )
        else:
            write_whole(path, lambda file: file.write(json.dumps(state, indent=1).encode()))
        if lock.held:
            for left in job.folder.glob(LEFT):
                left.unlink(missing_ok=True)
        yield job.missing
        _sweep(job.folder, lock)  # of workers that died


def _sweep(folder: Path, lock: FolderLock) -> None:
    if lock.held:
        for left in folder.glob(LEFT):
            left.unlink(missing_ok=True)


def here(job: Job, shards: Sequence[Shard], progress: Progress) -> None:
    """Write the files one after the other, in this process."""
    with job.open() as runner:
        for done, shard in enumerate(shards):
            progress(done, len(shards))
            job.write(runner, shard)
    progress(len(shards), len(shards))


def _identity(job: Job, bundle: Bundle) -> dict[str, Any]:
    """All that decides what is in the files."""
    hashed = hashlib.sha256()
    for path, facts in sorted(bundle.files.items()):
        if not is_added(path):
            hashed.update(f"{path} {facts.sha256}\n".encode())
    subjects = hashlib.sha256()
    for value in job.subjects.values:
        raw = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
        subjects.update(len(raw).to_bytes(8, "big") + raw)
    settings = {**vars(job.request), **job.subjects.settings}
    given = {name: str(value) for name, value in settings.items() if value not in (None, False) and name != "batch"}
    return {
        "bundle": hashed.hexdigest(),
        "target": job.target,
        "precision": job.precision,
        "images": job.images,
        "first": job.first,
        "rows": job.rows,
        "format": job.kind,
        "tokens": job.tokens,
        "by": job.subjects.by,
        "subjects": subjects.hexdigest(),
        "settings": given,
    }


def _compare(path: Path, state: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}") from error
    if found != state:
        other = [name for name in state if not isinstance(found, dict) or found.get(name) != state[name]]
        raise RequestError(
            f"{path.parent} was begun with another {', '.join(other)}: go on with that, or name a new folder"
        )
