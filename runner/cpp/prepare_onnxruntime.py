"""Makes a folder for ONNXRUNTIME_ROOT: include/ with the C and C++ headers, lib/ with the library.

python runner/cpp/prepare_onnxruntime.py --output FOLDER [--headers PLACE] [--library FOLDER | --machine aarch64]

The library is that of the installed `onnxruntime` (or `onnxruntime-gpu`) wheel, so that C++ and Python run the very
same code; `--library` names another folder that holds one, and `--machine` a machine to compile for, whose wheel of the
same version is taken from the package index. Wheels bring no headers. `--headers` is a folder, or an
archive (.tgz, .zip) or its URL: ONNX Runtime's official release archive has them, as has any package that ships
`onnxruntime_cxx_api.h`. Left out, they come from the npm package of HEADERS below, which needs `npm`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

HEADERS = "com.github.asus4.onnxruntime@0.4.9"  # npm; ONNX Runtime's headers of API version 29, MIT licence
MAIN = "onnxruntime_c_api.h"
MANYLINUX = ("manylinux_2_27", "manylinux_2_28")  # tags of the wheels since 1.23
OLDEST = 23  # API version: tells where a session wants its inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--headers", help=f"folder, archive or URL; default: npm package {HEADERS}")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--library", type=Path, help="folder of libonnxruntime; default: the installed wheel's")
    place.add_argument("--machine", help="of another machine, such as aarch64: from the wheel for it")
    arguments = parser.parse_args()
    headers = dict(find_headers(arguments.headers))
    if arguments.machine:
        arguments.library = foreign_library(arguments.machine, arguments.output / f"wheel-{arguments.machine}")
    library = find_library(arguments.library or wheel_folder())
    api = api_version(headers)
    found = re.search(r"\.(\d+)\.(\d+)\.(\d+)", library.name)
    if found and found[1] == "1" and api > int(found[2]):
        raise SystemExit(f"headers of API version {api} are newer than {library.name}: use older headers")
    include, lib = arguments.output / "include", arguments.output / "lib"
    shutil.rmtree(include, ignore_errors=True)
    shutil.rmtree(lib, ignore_errors=True)
    include.mkdir(parents=True)
    lib.mkdir()
    for name, content in headers.items():
        (include / name).write_bytes(content)
    for path in library.parent.glob("*onnxruntime*"):
        if re.search(r"\.(so|dylib|dll|lib)(\.|$)", path.name) and "pybind" not in path.name:
            (lib / path.name).symlink_to(path.resolve())
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the linker's name, and the soname
        if ".so" in library.name and not (lib / name).exists():
            (lib / name).symlink_to(library.name)
    print(f"{arguments.output}: headers of API version {api}, {library}")


def wheel_folder() -> Path:
    """Where the installed wheel keeps its libraries; the package is not imported."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("onnxruntime is not installed: pip install onnxruntime, or name a folder with --library")
    return Path(found.submodule_search_locations[0]) / "capi"


def foreign_library(machine: str, folder: Path) -> Path:
    """Unpack the libraries of the wheel for Linux on another machine, of the installed version, into `folder`."""
    try:
        wanted = f"onnxruntime=={version('onnxruntime')}"
    except PackageNotFoundError:
        raise SystemExit("onnxruntime is not installed, so no version is chosen: pip install onnxruntime") from None
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--only-binary=:all:", "--quiet"]
        command += [f"--platform={libc}_{machine}" for libc in MANYLINUX]
        done = subprocess.run([*command, f"--dest={scratch}"], capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise SystemExit(f"no wheel of {wanted} for {machine}:\n{done.stderr.strip()}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in wheel.namelist():
                if PurePosixPath(name).name.startswith("libonnxruntime"):
                    (folder / PurePosixPath(name).name).write_bytes(wheel.read(name))
    return folder


def find_library(folder: Path) -> Path:
    patterns = ("libonnxruntime.so.*.*", "libonnxruntime.*.dylib", "onnxruntime.dll", "libonnxruntime.so*")
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            return path
    raise SystemExit(f"{folder} holds no ONNX Runtime library: install onnxruntime, or name a folder with --library")


def find_headers(place: str | None) -> Iterator[tuple[str, bytes]]:
    """Name and content of each header beside the first `onnxruntime_c_api.h` of a folder, archive, URL or package."""
    if place is None:
        yield from packed_headers(npm_package(HEADERS))
    elif re.match(r"https?://", place):
        with urllib.request.urlopen(place, timeout=60) as answer:
            yield from packed_headers(answer.read())
    elif Path(place).is_dir():
        for main_header in sorted(Path(place).rglob(MAIN)):
            yield from ((path.name, path.read_bytes()) for path in main_header.parent.glob("*.h"))
            return
    elif Path(place).is_file():
        yield from packed_headers(Path(place).read_bytes())
    else:
        raise SystemExit(f"no headers at {place}: name a folder, an archive or a URL")


def npm_package(name: str) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed: name ONNX Runtime's release archive with --headers FILE")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", name], cwd=folder, capture_output=True, text=True, check=False)
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            raise SystemExit(f"npm pack {name} failed:\n{done.stderr}")
        return packed[0].read_bytes()


def packed_headers(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The headers of a .zip, or of a tar archive in one pass, in whichever folder of it comes first."""
    if archive[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            members = sorted(PurePosixPath(name) for name in file.namelist() if name.endswith(".h"))
            folder = next((path.parent for path in members if path.name == MAIN), None)
            yield from ((path.name, file.read(str(path))) for path in members if path.parent == folder)
        return
    found: dict[PurePosixPath, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        for member in file:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix == ".h":
                content = file.extractfile(member)
                assert content is not None
                found.setdefault(path.parent, {})[path.name] = content.read()
    yield from next((headers for headers in found.values() if MAIN in headers), {}).items()


def api_version(headers: dict[str, bytes]) -> int:
    match = re.search(rb"#define ORT_API_VERSION (\d+)", headers.get(MAIN, b""))
    if match is None:
        raise SystemExit(f"no {MAIN} in there that names its API version")
    if int(match[1]) < OLDEST:
        raise SystemExit(f"headers of API version {int(match[1])} are too old: {OLDEST} or later is needed")
    return int(match[1])


if __name__ == "__main__":
    main()
