"""Builds the C++ runner once a session: as it is released, and under sanitizers with the fuzz target."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cpp_abi
import pytest
from click.testing import CliRunner
from cpp_paces import BUNDLES
from fake_gpu import RTX
from made_once import made_once
from stand_in_bundle import stand_in_bundle
from tensorrt_pairs import KINDS, StandIn, StandIns
from tiny_llama import GRIDS, save_family

from arforge.cli import main
from arforge.engines.kernels import compile_kernels
from arforge.runner import Runner
from arforge.runner.backends.kernels import PLACE, runs_here

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "runner/cpp"
PROGRAMS = Path(__file__).parent / "programs"
KEPT = Path(sys.prefix) / "cpp"  # builds stay beside the packages that they use, and are brought up to date
COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Build:
    """One build of the library, installed, and of the programs here that use it."""

    folder: Path

    @property
    def prefix(self) -> Path:
        return self.folder / "installed"

    @property
    def tensorrt(self) -> Path:
        """TENSORRT_ROOT, with CUDA's runtime."""
        return self.folder / "tensorrt"

    @property
    def stand_in(self) -> Path:
        """Where that is built."""
        return self.folder / "stand-in"

    @property
    def library(self) -> Path:
        return self.prefix / "lib/libarforge.so"

    def program(self, name: str) -> Path:
        place = {"fuzz-readers": "arforge/fuzz", "arforge-service": "arforge", "arforge-run": "installed/bin"}
        return self.folder / place.get(name, "programs") / name


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def json_headers() -> Path:
    found = find_spec("nlohmann_json")
    assert found is not None, "pip install '.[test]'"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "include"


@pytest.fixture(scope="session")
def json_include() -> Path:
    return json_headers()


@pytest.fixture(scope="session")
def compiler() -> str:
    for name in COMPILERS:
        if shutil.which(name):
            return name
    pytest.skip(f"no C++ compiler: none of {', '.join(COMPILERS)} is on the path")


@pytest.fixture(scope="session")
def onnxruntime_root(compiler: str) -> Path:  # noqa: ARG001 (without one there is nothing to do)
    """$ONNXRUNTIME_ROOT, or one that is prepared from the installed wheel."""
    if given := os.environ.get("ONNXRUNTIME_ROOT"):
        return Path(given)
    root = KEPT / "onnxruntime"
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "prepared").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it replaces what is there, which another process may be linking with
        if not (root / "lib/libonnxruntime.so").exists():
            run(sys.executable, SOURCE / "prepare_onnxruntime.py", "--output", root)
    return root


def start_build(
    name: str, root: Path, lock: int, *options: str, consumer: tuple[str, ...] = (), tensorrt: str | None = None
) -> tuple[Build, subprocess.Popen]:
    """Configure, compile and install, in the background; the lock is held until that is done.

    `tensorrt`: with engines of which library, rtx or enterprise; a stand-in is made for it before.
    """
    build = Build(KEPT / name)
    build.folder.mkdir(parents=True, exist_ok=True)
    ninja = "-GNinja" if shutil.which("ninja") else "-GUnix Makefiles"
    common = f"'{ninja}' -DONNXRUNTIME_ROOT={root}"
    arforge, programs = build.folder / "arforge", build.folder / "programs"
    given, before = [*options], ""
    if tensorrt is not None:
        given += ["-DARFORGE_TENSORRT=ON", f"-DTENSORRT_ROOT={build.tensorrt}", f"-DCUDAToolkit_ROOT={build.tensorrt}"]
        before = f"""
cmake -S {PROGRAMS}/tensorrt_stand_in -B {build.stand_in} {common} -DFLAVOUR={tensorrt} \
  -DCMAKE_INSTALL_PREFIX={build.tensorrt}
cmake --build {build.stand_in} -j2
cmake --install {build.stand_in}
"""
    script = f"""set -e
{before}
cmake -S {SOURCE} -B {arforge} {common} -DNLOHMANN_JSON_INCLUDE={json_headers()} \
  -DCMAKE_INSTALL_PREFIX={build.prefix} -DCMAKE_INSTALL_LIBDIR=lib \
  -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=0 {" ".join(given)}
cmake --build {arforge} -j2
cmake --install {arforge}
cmake -S {PROGRAMS} -B {programs} {common} -DCMAKE_PREFIX_PATH={build.prefix} {" ".join(consumer)}
cmake --build {programs} -j2
"""
    with (build.folder / "log").open("w") as log:
        shell = ["/bin/sh", "-c", script]
        return build, subprocess.Popen(shell, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock])


@pytest.fixture(scope="session")
def builds(onnxruntime_root: Path) -> Iterator[dict[str, tuple[Build, subprocess.Popen]]]:
    """Both builds, side by side: the release is waited for first, while the other goes on."""
    has_fuzzer = shutil.which("clang++") is not None and fuzzes("clang++")
    other = ("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_C_COMPILER=clang") if has_fuzzer else ()
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several sessions one builds
        started = {
            "release": start_build(
                "release", onnxruntime_root, lock.fileno(), f"-DARFORGE_TRITON=ON -DTRITON_INCLUDE={PROGRAMS}"
            ),
            "sanitized": start_build(
                "sanitized" if has_fuzzer else "sanitized-without-libfuzzer",
                onnxruntime_root,
                lock.fileno(),
                "-DBUILD_SHARED_LIBS=OFF -DARFORGE_FUZZ=ON -DARFORGE_SANITIZE=ON -DCMAKE_BUILD_TYPE=None",
                "-DCMAKE_CXX_FLAGS=-O1",
                *other,
                consumer=("-DSANITIZE=ON", *other),
                tensorrt="enterprise",
            ),
        }
    yield started
    for _, process in started.values():
        process.wait()


def fuzzes(clang: str) -> bool:
    """Whether the compiler comes with libFuzzer."""
    source = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
    command = [clang, "-x", "c++", "-fsanitize=fuzzer,address", "-", "-o", os.devnull]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).returncode == 0


def finished(started: tuple[Build, subprocess.Popen]) -> Build:
    build, process = started
    assert process.wait() == 0, (build.folder / "log").read_text()[-6000:]
    return build


@pytest.fixture(scope="session")
def release(builds: dict[str, tuple[Build, subprocess.Popen]]) -> Build:
    return finished(builds["release"])


@pytest.fixture(scope="session")
def sanitized(builds: dict[str, tuple[Build, subprocess.Popen]]) -> Build:
    return finished(builds["sanitized"])


@pytest.fixture(scope="session")
def with_rtx(onnxruntime_root: Path) -> Build:
    """With engines of TensorRT-RTX; what it shares with the release is fully optimised there, which takes longer."""
    options = "'-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG'"
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "tensorrt-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return finished(start_build("tensorrt", onnxruntime_root, lock.fileno(), options, tensorrt="rtx"))


@pytest.fixture(scope="session")
def library(release: Build) -> cpp_abi.ctypes.CDLL:
    return cpp_abi.load(release.library)


@pytest.fixture
def stand_in(with_rtx: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setenv("STAND_IN_VERSION", version("tensorrt-rtx-cu13-libs"))
    return StandIn(with_rtx)


@pytest.fixture(scope="session")
def stand_ins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    """Bundles of a kind whose engines of a precision the stand-in runs. Tests must leave them as they are."""
    from arforge.calibration.int8 import CalibrationJob, calibrate  # which take long to import
    from arforge.calibration.ranges import Rule
    from arforge.engines import tensorrt

    made: dict[tuple[str, str], Path] = {}

    def built(kind: str, precision: str = "fp32") -> Path:
        if (kind, precision) not in made:
            source, wishes = KINDS[kind]

            def make(path: Path) -> None:
                copy = Path(shutil.copytree(request.getfixturevalue(source), path.with_name("built.bundle")))
                if precision == "int8":
                    calibrate(CalibrationJob(copy, Rule("max", 100.0), ["ntp"], samples=2, check=0))
                tensorrt.build(tensorrt.BuildJob(copy, RTX, precision, **wishes))
                copy.rename(path)

            original = made_once(tmp_path_factory, f"cpp-{kind}-{precision}.bundle", make)
            made[kind, precision] = stand_in_bundle(original, original.with_name("stand-in.bundle"))
        return made[kind, precision]

    return built


@pytest.fixture(scope="session")
def ids_bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A fresh copy of a bundle of Lumina-mGPT, Emu3 or Janus, exported as users do, not built."""

    def made(family: str) -> Path:
        def make(path: Path) -> None:
            folder = save_family(family, path.with_name(f"{family}-folder"))
            words = ["export", str(folder), "--grid", GRIDS[family], "--output", str(path)]
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 0, done.output

        return made_once(tmp_path_factory, f"cpp-{family}.bundle", make)

    return made


@pytest.fixture(params=BUNDLES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def both(library: Any, request: pytest.FixtureRequest, kind: str) -> Iterator[tuple[cpp_abi.Runner, Runner]]:
    ours = cpp_abi.Runner(library, request.getfixturevalue(BUNDLES[kind]), threads=1)
    yield ours, request.getfixturevalue(BUNDLES[kind].replace("bundle", "runner"))
    ours.close()


@pytest.fixture(scope="session")
def kernels(onnxruntime_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = made_once(
        tmp_path_factory, "libarforge_kernels.so", lambda made: compile_kernels(onnxruntime_root / "include", made)
    )
    if not runs_here(path):
        pytest.skip("this processor has no VNNI")
    return path


@pytest.fixture(params=["AVX-512 VNNI", "AVX-VNNI"])
def instructions(request: pytest.FixtureRequest, kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels with those, and afterwards with the best again."""
    choose = ctypes.CDLL(str(kernels)).arforge_kernels_choose
    if not choose(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv(PLACE, str(kernels))
    yield request.param
    assert choose(b"AVX-512 VNNI") or choose(b"AVX-VNNI")


@pytest.fixture
def on(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PLACE, str(kernels))
    return kernels
