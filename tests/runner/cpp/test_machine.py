"""What other machines do to the C++ runner: other users' files, links, odd paths, quotas, the library's telemetry."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cpp_abi
import pytest
from cpp_abi import STATUS, Failure
from cpp_users import NOBODY, readable

from arforge.engines import onnxruntime
from arforge.runner import Runner, open_bundle
from arforge.runner.errors import EngineError

STEP = "graphs/fp32/step.onnx"
TELEMETRY = "ORT_DISABLE_TELEMETRY"


def run(release: Any, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (release.program("arforge-run"), *words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(("setting", "sends"), [(None, False), ("1", False), ("0", True)])
def test_the_library_sends_no_telemetry_unless_it_is_told_to(
    release: Any, bundle: Path, tmp_path: Path, setting: str | None, sends: bool
) -> None:
    """Where it sends, it keeps a device id and a queue below the home folder."""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop(TELEMETRY, None)
    if setting is not None:
        environment[TELEMETRY] = setting
    done = run(release, bundle, "--class", 1, "--tokens", tmp_path / "x.npy", "--quiet", env=environment)
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "x.npy"]
    if not sends:
        assert not written
        assert not done.stderr
    elif not written:
        pytest.skip("this build of ONNX Runtime has no telemetry")


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed")
@pytest.mark.parametrize("name", ["manifest.json", STEP, "schedules/ntp.schedule", "schedules", "engine", "."])
def test_what_may_not_be_read_is_neither_missing_nor_damaged(release: Any, bundle_copy: Path, name: str) -> None:
    command = (bundle_copy, "--class", 1, "--tokens", "/proc/self/fd/1")
    place = bundle_copy / (open_bundle(bundle_copy).engines[0].path if name == "engine" else name)
    with readable(bundle_copy / "manifest.json", release.program("arforge-run")):
        place.chmod(0)
        done = run(release, *command, user=NOBODY)
        place.chmod(0o755)
    assert "cannot read" in done.stderr
    assert str(place) in done.stderr
    assert "Permission denied" in done.stderr
    assert done.returncode == 100 + STATUS["bundle"]


def test_copies_by_hard_links_run(library: Any, bundle_copy: Path, runner: Runner, tmp_path: Path) -> None:
    copy = tmp_path / "linked.bundle"
    shutil.copytree(bundle_copy, copy, copy_function=os.link)
    (tmp_path / "latest").symlink_to(copy)
    ours = cpp_abi.Runner(library, tmp_path / "latest", threads=1)
    assert (ours.generate([1, 2]).tokens == runner.generate([1, 2]).tokens).all()
    ours.close()


LINK = "{place} is a link; a bundle holds plain files only: "
NO_MANIFEST = "{root} is not a bundle: it has no manifest.json but a link of that name: "


@pytest.mark.parametrize(
    ("name", "problem", "status"),
    [(STEP, LINK, "path"), ("graphs", LINK, "path"), ("manifest.json", NO_MANIFEST, "manifest")],
)
def test_links_inside_are_refused_with_what_to_do(
    library: Any, bundle: Path, tmp_path: Path, name: str, problem: str, status: str
) -> None:
    """As a model hub's cache has them."""
    copy = tmp_path / "it's a copy.bundle"
    shutil.copytree(bundle, copy)
    (copy / name).rename(tmp_path / "moved")
    (copy / name).symlink_to(tmp_path / "moved")
    with pytest.raises(Failure) as refused:
        cpp_abi.Runner(library, copy)
    todo = f"copy it with `cp -rL {shlex.quote(str(copy))} COPY`, or download it with --local-dir"
    assert refused.value.message == problem.format(place=copy / name, root=copy) + todo
    assert refused.value.status == STATUS[status]


@pytest.mark.parametrize("name", ["a b's \u00fc.bundle", os.fsdecode(b"latin-\xfc.bundle")])
def test_paths_of_any_bytes_work(release: Any, bundle: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / name
    shutil.copytree(bundle, copy)
    done = run(release, copy, "--class", 1, "--tokens", copy / "x.npy", "--quiet", errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    done = run(release, tmp_path / f"no {name}", "--class", 1, "--tokens", tmp_path / "x.npy", errors="surrogateescape")
    assert f"no bundle at {tmp_path}/no {name}" in done.stderr


@pytest.mark.parametrize("threads", [-1, 100_000])
def test_threads_have_a_bound(library: Any, bundle: Path, threads: int) -> None:
    most = max(64, 4 * (os.cpu_count() or 1))
    with pytest.raises(Failure, match=f"^{threads} threads: use at least 1, and here at most {most}, or 0") as refused:
        cpp_abi.Runner(library, bundle, threads=threads)
    assert refused.value.status == STATUS["engine"]


@contextmanager
def bound_to(processors: set[int]) -> Iterator[None]:
    """Programs that are started here may run on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores(sanitized: Any, root: Path | str) -> tuple[int, int]:
    command = [str(sanitized.program("internals")), "cores", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    available, all_cores = map(int, done.stdout.split())
    return available, all_cores


def test_cores_are_those_of_the_affinity_mask(sanitized: Any, tmp_path: Path) -> None:
    """Processors that share a core count once."""
    processors = os.cpu_count() or 1
    assert cores(sanitized, tmp_path) == (len(os.sched_getaffinity(0)), processors)
    one = min(os.sched_getaffinity(0))
    with bound_to({one}):
        assert cores(sanitized, tmp_path) == (1, processors)
    for processor in range(processors):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"0-{processors - 1}\n")
    assert cores(sanitized, tmp_path) == (1, 1)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/a/b\n", {"cpu.max": "90000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "110000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 2),
        (
            "4:cpu,acct:/x\n1:memory:/\n",
            {"cpu,acct/x/cpu.cfs_quota_us": "1\n", "cpu,acct/x/cpu.cfs_period_us": "9\n"},
            1,
        ),
        ("4:cpu,cpuacct:/x\n", {"cpu/cpu.cfs_quota_us": "7\n", "cpu/cpu.cfs_period_us": "9\n"}, 1),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "9\n"}, 2),
        ("4:memory:/x\n", {"memory/x/cpu.cfs_quota_us": "1\n", "memory/x/cpu.cfs_period_us": "9\n"}, 2),
        ("nonsense\n::\n", {}, 2),
    ],
)
def test_cores_are_as_far_as_the_containers_quota_goes(
    sanitized: Any, tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    two = set(sorted(os.sched_getaffinity(0))[:2])
    with bound_to(two):
        assert cores(sanitized, tmp_path)[0] == expected


@pytest.mark.parametrize(("words", "expected"), [((), 1), (("--threads", 3), 3)])
def test_a_session_has_no_more_threads_than_its_mask(
    release: Any, grouped_bundle: Path, tmp_path: Path, words: tuple[Any, ...], expected: int
) -> None:
    """Counted while it steps, without a codec, which has its own; of one core, the caller is all there is."""
    command = [release.program("arforge-run"), grouped_bundle, "--class", 0, "--samples", 100000, "--batch", 1, *words]
    one = min(os.sched_getaffinity(0))
    plain = [str(word) for word in (*command, "--tokens", tmp_path / "x.npy")]
    with bound_to({one}):
        process = subprocess.Popen(plain, stderr=subprocess.PIPE)
    with process:
        assert process.stderr is not None
        assert process.stderr.read(8)  # its progress
        found = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        process.kill()
    assert found == expected


def test_a_bundle_that_is_rebuilt_meanwhile_opens_as_it_was_or_as_it_is(library: Any, bundle_copy: Path) -> None:
    stop = threading.Event()

    def rebuild() -> None:
        widths = 0
        while not stop.is_set():
            widths = 1 + widths % 5
            onnxruntime.build(bundle_copy, widths=tuple(range(1, 1 + widths)))

    builder = threading.Thread(target=rebuild)
    builder.start()
    try:
        opened = 0
        end = time.monotonic() + 3
        while opened < 5 or time.monotonic() < end:
            cpp_abi.Runner(library, bundle_copy, threads=1).close()
            opened += 1
    finally:
        stop.set()
        builder.join()


def test_a_sampler_that_the_graphs_do_not_have_is_refused(library: Any, bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["sampler"]["kind"] = "noise"
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Failure) as ours:
        cpp_abi.Runner(library, bundle_copy)
    with pytest.raises(EngineError, match="input noise is missing"):
        Runner.open(bundle_copy)
    assert ours.value.status == STATUS["engine"]
    assert "noise" in ours.value.message
