"""Kills writers of a bundle at random moments, and lets their disks fill up; the bundle must be old or new, and whole.

    python tests/reliability/faults.py kill|disk JOB [--times N] [--seed S] [--start BUNDLE]

JOB is export, calibrate, build (ONNX Runtime, int8), build-fp32 or build-rtx (TensorRT-RTX, fp16), or rebuild,
rebuild-fp32 or rebuild-rtx: the same in a bundle that has such an engine. Each trial starts from the same bundle, in a
process of its own; afterwards the same job runs again, undisturbed. Ends with 1 at the first loss.
`disk` is a file system of limited size where one can be mounted, else a limit of every file's size.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import CONFIG, random_weights

from arforge.calibration import int8
from arforge.calibration.ranges import Rule
from arforge.engines import onnxruntime, tensorrt
from arforge.engines.tensorrt_library import load_builder
from arforge.export import exporter
from arforge.export.families.llamagen import FAMILY
from arforge.runner.bundle import open_bundle
from arforge.runner.bundle.names import is_added
from arforge.runner.errors import ArforgeError

REFUSED, BROKEN = 3, 4  # exit codes of a trial: an ArforgeError, another error
Work = Callable[[Path], object]


def export(root: Path, schedules: tuple[str, ...] = ("ntp", "zipar:4")) -> None:
    checkpoint = root.parent.parent / "tiny.pt"
    exporter.export_bundle(exporter.ExportJob(FAMILY, CONFIG, checkpoint, None, root, schedules, overwrite=True))


def calibrate(root: Path) -> None:
    int8.calibrate(int8.CalibrationJob(root, Rule("max", 100.0), ["ntp"], samples=1, check=0, threads=1))


JOBS: dict[str, Work] = {
    "export": export,
    "calibrate": calibrate,
    "build": lambda root: onnxruntime.build(root, "int8"),
    "build-fp32": lambda root: onnxruntime.build(root, "fp32"),
    "build-rtx": lambda root: tensorrt.build(tensorrt.BuildJob(root, "tensorrt-rtx", "fp16", schedules=["ntp"])),
}
BUILT_BEFORE: dict[str, Work] = {
    "rebuild": lambda root: onnxruntime.build(root, "int8", [1, 2]),
    "rebuild-fp32": lambda root: onnxruntime.build(root, "fp32", [1, 2]),
    "rebuild-rtx": JOBS["build-rtx"],
}
JOBS |= {name: JOBS[name.removeprefix("re")] for name in BUILT_BEFORE}


def state(root: Path) -> dict[str, Any]:
    """The manifest, without the time of writing, of a bundle of which every byte is as it says. Raises ArforgeError."""
    bundle = open_bundle(root)
    bundle.check_hashes()
    for entry in bundle.engines:
        bundle.identity(entry)
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["provenance"]
    return {key: manifest[key] for key in ("graphs", "schedules", "files", "engines")}


def outlines(found: dict[str, Any]) -> tuple[Any, ...]:
    """What tells old from new, where times and timings make the bytes of some files differ."""
    engines = [(entry["target"], entry["precision"]) for entry in found["engines"]]
    return found["graphs"], [entry["path"] for entry in found["schedules"]], engines


def strays(root: Path) -> list[str]:
    """Files of the bundle that its manifest does not list, and what lies beside it."""
    listed = open_bundle(root).files.keys() | {"manifest.json"}
    found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return sorted({*found} - listed) + [path.name for path in root.parent.iterdir() if path != root]


def start(work: Work, root: Path, largest_file: int | None = None) -> int:
    """Run the job in a process of its own. Returns its id."""
    process = os.fork()
    if process:
        return process
    code = BROKEN
    try:
        if largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        work(root)
        code = 0
    except ArforgeError:
        code = REFUSED
    finally:  # nothing of the parent's may run on in the child
        if code == BROKEN:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed(work: Work, root: Path, rng: random.Random, seconds: float) -> str:
    process = start(work, root)
    time.sleep(rng.uniform(0, seconds))
    os.kill(process, signal.SIGKILL)
    return "killed" if finish(process) == -signal.SIGKILL else "had ended"


def starved(work: Work, root: Path, rng: random.Random, most: int) -> str:
    """`most`: bytes that the job writes when it may."""
    size, disk = rng.randrange(most), root.parent.with_name("disk")
    with small_disk(disk, size + occupied(root)) as mounted:
        if mounted:
            place = Path(shutil.copytree(root, disk / root.name))
            code = finish(start(work, place))
            check_whole(place)
            shutil.rmtree(root)
            shutil.copytree(place, root)
        else:
            code = finish(start(work, root, largest_file=size))
    if code not in (0, REFUSED):
        raise SystemExit(f"LOST: with {size} bytes free, the job ended with {code} and not by an ArforgeError")
    return "refused" if code else "fitted"


def occupied(root: Path) -> int:
    """Bytes of memory pages that a copy takes."""
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in root.rglob("*")) + 65536


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system of `size` bytes at `place`; False where none can be mounted."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(place)], check=True)


def check_whole(root: Path) -> None:
    try:
        state(root)
    except ArforgeError as error:
        raise SystemExit(f"LOST: {error}") from error


def trial(fault: Callable[[], str], work: Work, root: Path, old: dict[str, Any], new: tuple[Any, ...]) -> list[str]:
    """One fault and the undisturbed run after it. Returns what happened; ends the program where anything is lost."""
    event = fault()
    check_whole(root)
    found = state(root)
    if found != old and outlines(found) != new:
        raise SystemExit(f"LOST: the bundle is neither old nor new: {found}")
    if finish(start(work, root)) or outlines(state(root)) != new:
        raise SystemExit("LOST: the next run did not work")
    if strays(root):
        raise SystemExit(f"LEFT BEHIND: {strays(root)}")
    return [event, "then old" if found == old else "then new"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=["kill", "disk"])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="a bundle of the tiny model; default: a new one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("torch.__trace").propagate = False
    if given.job.endswith("build-rtx"):
        load_builder("tensorrt-rtx")
    rng, work, counts = random.Random(given.seed), JOBS[given.job], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="arforge-faults-") as scratch:
        torch.save({"model": random_weights(CONFIG, seed=1)}, Path(scratch, "tiny.pt"))
        root = Path(scratch, "place", "tiny.bundle")
        if given.start:
            shutil.copytree(given.start, root)
        else:
            export(root, ("ntp",))  # in this process, whose children then have what it imports
        if given.job in BUILT_BEFORE and finish(start(BUILT_BEFORE[given.job], root)):
            raise SystemExit("the bundle to start from could not be built")
        kept = Path(shutil.copytree(root, Path(scratch, "kept")))
        old, seconds = state(root), []
        for _ in range(2):  # the first warms up what the second finds
            shutil.rmtree(root)
            shutil.copytree(kept, root)
            seconds.append(time.perf_counter())
            if finish(start(work, root)):
                raise SystemExit("the job does not run even undisturbed")
            seconds[-1] = time.perf_counter() - seconds[-1]
        done = state(root)
        new = outlines(done)
        written = {path for path, facts in done["files"].items() if old["files"].get(path) != facts or is_added(path)}
        most = sum(done["files"][path]["bytes"] for path in written)
        for _ in range(given.times):
            shutil.rmtree(root)
            shutil.copytree(kept, root)
            fault = {
                "kill": lambda: killed(work, root, rng, min(seconds)),
                "disk": lambda: starved(work, root, rng, most),
            }[given.fault]
            counts.update([", ".join(trial(fault, work, root, old, new))])
    print(json.dumps({"fault": given.fault, "job": given.job, "times": given.times, **counts, "lost": 0}))


if __name__ == "__main__":
    main()
