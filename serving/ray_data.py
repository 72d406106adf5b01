"""The files of a data set made by many workers, on Ray Data.

A worker is given a file to make and makes it whole; the file itself says that it is done. So a run goes on after any
crash without a checkpoint of Ray's, and a file that Ray has made twice is the same twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from arforge.runner import errors
from arforge.runner.errors import ArforgeError, EngineError
from arforge.runner.optional import needed
from arforge.serving.dataset import Job, Progress, Shard

with needed("generating on Ray", "ray", EngineError):
    import ray
    import ray.data

BLOCKS = 1000  # at most, in which Ray hands out work


class Worker:
    """Holds an engine, and makes files."""

    def __init__(self, job: Job) -> None:
        self._job, self._runner = job, job.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Of each file what went wrong: the kind of the error and its message, or nothing twice."""
        kinds, messages = [], []
        for number, first, count in zip(batch["number"], batch["first"], batch["count"], strict=True):
            shard = Shard(int(number), int(first), int(count))
            kind = message = ""
            try:
                if not self._job.path(shard).exists():  # of a block that is done again
                    self._job.write(self._runner, shard)
            except ArforgeError as error:
                kind, message = type(error).__name__, str(error)
            kinds.append(kind)
            messages.append(message)
        return {"kind": kinds, "message": messages}


def on_ray(job: Job, shards: Sequence[Shard], progress: Progress, workers: int = 1, gpus: float = 0) -> None:
    """Write the files with that many workers: of the cluster that RAY_ADDRESS names, or of this machine.

    Each worker takes `job.threads` CPUs (default 1) and `gpus`. Raises what a worker does, or EngineError.
    """
    if not shards:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [vars(shard) for shard in shards]
    progress(0, len(shards))
    made = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS)).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=job.threads or 1,
        num_gpus=gpus,
    )
    rows = iter(made.iter_rows())
    for done in range(1, len(shards) + 1):
        try:
            row = next(rows)
        except Exception as error:  # Ray's have no narrower base
            raise EngineError(f"Ray failed: {error}") from error
        if row["kind"]:
            raise getattr(errors, row["kind"])(row["message"])
        progress(done, len(shards))
