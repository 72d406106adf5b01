"""The C++ runner compiles for 64-bit Arm, and under an emulator draws what Python draws here."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arforge.runner import Runner

SOURCE = Path(__file__).parents[3] / "runner/cpp"
KEPT = Path(sys.prefix) / "cpp"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")  # that Debian's cross compiler comes with
MACHINE_AT, AARCH64 = 18, 183  # of an ELF header
PROCESSOR = """processor\t: {}
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""


def run(*words: object) -> str:
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def runtime(onnxruntime_root: Path) -> Path:
    """ONNX Runtime for the other machine, of the version that is installed here."""
    root = KEPT / "onnxruntime-aarch64"
    if not (root / "lib/libonnxruntime.so").exists():
        command = [
            *(sys.executable, str(SOURCE / "prepare_onnxruntime.py"), "--machine", "aarch64", "--output", str(root)),
            *("--headers", str(onnxruntime_root / "include")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            assert "no wheel of onnxruntime==" in done.stderr, done.stderr
            pytest.skip(done.stderr.strip()[-300:])
    return root


@pytest.fixture(scope="module")
def build(runtime: Path, json_include: Path) -> Path:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER}: apt-get install g++-aarch64-linux-gnu")
    folder = KEPT / "aarch64"
    folder.mkdir(parents=True, exist_ok=True)
    with (KEPT / "aarch64.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(
            *("cmake", "-S", SOURCE, "-B", folder, "-GNinja" if shutil.which("ninja") else "-GUnix Makefiles"),
            f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'cmake/aarch64-linux-gnu.cmake'}",
            f"-DONNXRUNTIME_ROOT={runtime}",
            f"-DNLOHMANN_JSON_INCLUDE={json_include}",
            *("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0"),
        )
        run("cmake", "--build", folder, "-j2")
    return folder


def machine_of(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(MACHINE_AT + 2)
    assert head[:4] == b"\x7fELF"
    return int.from_bytes(head[MACHINE_AT:], "little")


def test_library_and_programs_are_of_that_machine(build: Path, runtime: Path) -> None:
    for path in (build / "libarforge.so", build / "arforge-run", build / "arforge-service"):
        assert machine_of(path) == AARCH64
    assert machine_of(runtime / "lib/libonnxruntime.so.1") == AARCH64
    assert machine_of(Path(sys.executable).resolve()) != AARCH64 or sys.platform != "linux"


@pytest.fixture
def emulated(build: Path, runtime: Path, tmp_path: Path) -> list[str]:
    """What starts arforge-run under the emulator, which shows it the other machine's libraries and processor."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"no {EMULATOR}: apt-get install qemu-user")
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "lib").symlink_to(LIBRARIES)
    # this machine's would crash ONNX Runtime as it starts; the kernel's list of processors is this machine's
    count = len(list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))
    (root / "proc/cpuinfo").write_text("".join(map(PROCESSOR.format, range(count))))
    libraries = f"LD_LIBRARY_PATH={runtime / 'lib'}:{build}"
    return [EMULATOR, "-L", str(root), "-E", libraries, str(build / "arforge-run")]


def test_it_draws_the_same_tokens_there(emulated: list[str], bundle: Path, tmp_path: Path) -> None:
    assert run(*emulated, "--help").startswith("Usage: arforge-run BUNDLE")
    words = ("--class", 3, "--schedule", "zipar:4", "--greedy", "--guidance", 2, "--threads", 1, "--quiet")
    run(*emulated, bundle, *words, "--tokens", tmp_path / "tokens.npy")
    with Runner.open(bundle, threads=1) as runner:
        wanted = runner.generate([3], schedule="zipar:4", guidance=2.0, temperature=0.0).tokens
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy").ravel(), wanted.ravel())
