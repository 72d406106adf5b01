"""Coverage-guided fuzzing of the readers: only an ArforgeError may come out of them.

    python tests/reliability/fuzz_readers.py manifest|identity|schedule|checkpoint [libFuzzer's options, folders]

The inputs that reach new code are kept where a folder is named; a crash leaves its input beside. `-runs=N` or
`-max_total_time=SECONDS` ends it, else it goes on for ever.
"""

from __future__ import annotations

import atexit
import importlib
import inspect
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["arforge", "fastjsonschema"]):
    from reliability import small_bundle as small

    from arforge.runner.errors import ArforgeError, CheckpointError
    from arforge.runner.plan import make_plan
    from arforge.runner.schedules.file import PREFIX, load

VALUES = [None, True, 0, -1, 1, 2, 1.5, 2.0, 2**31, 2**63, 10**300, "", "..", "/x", "graphs", [], [0], {}, {"a": 1}]
Target = Callable[[bytes], None]
MEMORY = Path("/dev/shm")  # a file system without a disk, where there is one
SCRATCH = Path(tempfile.mkdtemp(prefix="arforge-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))


def mutate_json(data: bytes, most: int, seed: int) -> bytes:
    """Replace, remove or repeat one value, so that most inputs are still JSON; now and then, bytes."""
    rng = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if value is None or rng.random() < 0.1:
        return bytes(atheris.Mutate(data, most))
    places = list(small.nodes(value))
    place = rng.choice(places)
    new: Any = rng.choice(VALUES)
    if rng.random() < 0.3:
        new = at(value, rng.choice(places))
    if rng.random() < 0.1:
        place = (*place, str(new)[:20])
    return json.dumps(small.replaced(value, place, new)).encode()[:most]


def at(value: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def mutate_schedule(data: bytes, most: int, seed: int) -> bytes:
    """The header as JSON, or one number of the columns."""
    rng = random.Random(seed)
    end = PREFIX.size + PREFIX.unpack_from(data)[2] if len(data) >= PREFIX.size else len(data)
    if end + 4 > len(data) or rng.random() < 0.1:
        return bytes(atheris.Mutate(data, most))
    if rng.random() < 0.2:
        header = mutate_json(data[PREFIX.size : end], most, seed)
        return (PREFIX.pack(b"ARFSCHED", 1, len(header)) + header + data[end:])[:most]
    changed, word = bytearray(data), rng.randrange(end, len(data) - 3)
    value = rng.choice([rng.randrange(40), 2**31 - 1, 2**32 - 1])
    changed[word : word + 4] = value.to_bytes(4, "little")
    return bytes(changed)


def manifests(root: Path) -> tuple[Target, list[bytes]]:
    def target(data: bytes) -> None:
        (root / "manifest.json").write_bytes(data)
        small.use(root)

    return target, [(root / "manifest.json").read_bytes()]


def identities(root: Path) -> tuple[Target, list[bytes]]:
    seeds = [(root / path).read_bytes() for path in (small.NATIVE, small.RTX)]
    bundle = small.use(root)

    def target(data: bytes) -> None:
        (root / small.NATIVE).write_bytes(data)
        for engine in bundle.engines:
            try:
                small.use_identity(bundle, replace(engine, path=small.NATIVE))
            except ArforgeError:
                continue

    return target, seeds


def schedules(root: Path) -> tuple[Target, list[bytes]]:
    return lambda data: (make_plan(load(data, "x"), None), None)[1], [(root / small.SCHEDULE).read_bytes()]


def checkpoints(_: Path) -> tuple[Target, list[bytes]]:
    import torch
    from safetensors.torch import save

    with atheris.instrument_imports(include=["arforge", "torch"]):  # whole packages: torch is imported before
        from arforge.export.checkpoint import open_checkpoint

        importlib.reload(sys.modules["torch._weights_only_unpickler"])
    for module in (torch.serialization, torch.storage, torch._utils):
        for part in vars(module).values():
            for function in [part, *vars(part).values()] if inspect.isclass(part) else [part]:
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)

    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    pickled = SCRATCH / "seed.pt"
    torch.save({"model": tensors, "steps": 3}, pickled)

    def target(data: bytes) -> None:
        for name in ("x.safetensors", "x.pt"):
            (SCRATCH / name).write_bytes(data)
            try:
                checkpoint = open_checkpoint(SCRATCH / name)
                for tensor in checkpoint.shapes:
                    checkpoint.tensor(tensor).sum()
            except CheckpointError:
                continue

    return target, [save(tensors), pickled.read_bytes()]


TARGETS = {"manifest": manifests, "identity": identities, "schedule": schedules, "checkpoint": checkpoints}
MUTATORS = {"manifest": mutate_json, "identity": mutate_json, "schedule": mutate_schedule}


def main() -> None:
    name, *options = sys.argv[1:]
    target, seeds = TARGETS[name](small.write_small_bundle(SCRATCH / "small.bundle"))
    corpus = SCRATCH / "seeds"
    corpus.mkdir()
    for index, seed in enumerate(seeds):
        (corpus / str(index)).write_bytes(seed)

    def guarded(data: bytes) -> None:
        try:
            target(data)
        except ArforgeError as error:
            if not str(error):
                raise AssertionError("an error without a message") from error

    named = [option for option in options if not option.startswith("-")]
    arguments = [sys.argv[0], *options, *([] if named else [str(corpus)]), "-max_len=65536"]
    if named:
        shutil.copytree(corpus, named[0], dirs_exist_ok=True)
    extra = {"custom_mutator": MUTATORS[name]} if name in MUTATORS else {}
    atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
    atheris.Setup(arguments, guarded, **extra)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
