"""Features of prompts in files, as arforge-run takes them: what it makes of them, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arforge.runner import Runner
from arforge.runner.conditions import sample_features

USAGE_ERROR, REQUEST_ERROR = 2, 102
SHAPE = (3, 24, 48)
LENGTHS = (12, 17, 22)


def call(program: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in (program, *words)], capture_output=True, text=True, check=False)


def padded() -> tuple[np.ndarray, np.ndarray]:
    """Features of three prompts as an encoder gives them, and their mask; what it makes of padding is no features."""
    features = np.random.default_rng(5).standard_normal(SHAPE, np.float32) * np.float32(0.2)
    mask = (np.arange(SHAPE[1]) < np.array(LENGTHS)[:, None]).astype(np.int64)
    features[mask == 0] = np.nan
    return features, mask


def saved(folder: Path, features: np.ndarray, mask: np.ndarray | None = None, version: Any = None) -> list[Any]:
    """The options that name files of these."""
    words: list[Any] = []
    for name, array in (("--features", features), ("--features-mask", mask)):
        if array is not None:
            words += [name, folder / f"{name[2:]}.npy"]
            with words[-1].open("wb") as file:
                np.lib.format.write_array(file, array, version)
    return words


@pytest.mark.parametrize(
    ("features", "mask", "version"),
    [
        ("<f4", "<i8", None),
        ("<f4", "|b1", (2, 0)),
        ("<f2", "|u1", (3, 0)),
        ("<f8", "<f4", (1, 0)),
        ("<f4", "<f2", None),
    ],
)
def test_arforge_run_gives_pythons_tokens(
    release: Any, text_bundle: Path, text_runner: Runner, tmp_path: Path, features: str, mask: str, version: Any
) -> None:
    given, ones = padded()
    words = saved(tmp_path, given.astype(features), ones.astype(mask), version)
    done = call(
        release.program("arforge-run"), text_bundle, *words, "--samples", 5, "--seed", 7, "--schedule", "zipar:4",
        "--threads", 1, "--tokens", tmp_path / "tokens.npy", "--output", tmp_path / "page.png", "--timings",
        tmp_path / "timings.json", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 images, zipar:4: 40 steps" in done.stdout
    prompts = [one[:length].astype(features).astype(np.float32) for one, length in zip(given, LENGTHS, strict=True)]
    expected = text_runner.generate(
        features=[*prompts, *prompts[:2]], seeds=range(7, 12), schedule="zipar:4", images=False
    )
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy"), expected.tokens)
    assert json.loads((tmp_path / "timings.json").read_text())["condition_seconds"] > 0


def test_without_a_mask_all_rows_count(release: Any, text_bundle: Path, text_runner: Runner, tmp_path: Path) -> None:
    features = np.stack(sample_features(text_runner.bundle.model, 1) * 2)
    words = (*saved(tmp_path, features), "--tokens", tmp_path / "tokens.npy", "--quiet", "--threads", 1)
    done = call(release.program("arforge-run"), text_bundle, *words)
    assert done.returncode == 0, done.stderr
    expected = text_runner.generate(features=list(features), images=False).tokens
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy"), expected)


Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def with_mask(row: int, values: list[int]) -> Change:
    def change(features: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask[row, : len(values)] = values
        return features, mask

    return change


def with_number(value: float) -> Change:
    def change(features: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features[1, 3, 5] = value
        return features, mask

    return change


WRONG: list[tuple[Change, str]] = [
    (lambda f, m: (f[0], m), "features.npy holds float32 [24, 48]: expected float16, float32 or float64 [prompts"),
    (lambda f, m: (f[:0], m), "features.npy holds no prompts: float32 [0, 24, 48]"),
    (
        lambda f, m: (np.nan_to_num(f).astype(np.int32), m),
        "features.npy holds int32 [3, 24, 48]: expected float16",
    ),
    (lambda f, m: (f.astype(">f4"), m), "holds numbers of type '>f4': save them as little-endian float32"),
    (lambda f, m: (f.astype("<c8"), m), "holds numbers of type '<c8': save them as little-endian float32"),
    (lambda f, m: (np.asfortranarray(f), m), "features.npy is in Fortran order: save numpy.ascontiguousarray of it"),
    (lambda f, m: (f.view([("x", "<f4")]), m), "holds numbers of type '[...]': save them"),
    (lambda f, m: (f[:, :, :47], m), "prompt 0 has rows of 47 numbers, the model reads 48: use the text encoder that"),
    (lambda f, m: (f, m[:2]), "features-mask.npy holds int64 [2, 24]: expected the features' mask, ones and zeros ["),
    (lambda f, m: (f, m.T), "mask, ones and zeros [3, 24]"),
    (lambda f, m: (f, m * 2), "features-mask.npy holds other numbers than 1, for a token of the prompt, and 0, for"),
    (with_mask(1, [1, 0, 1]), "features-mask.npy: row 1 has ones behind zeros: expected the prompt's ones first"),
    (with_mask(0, [0]), "features-mask.npy: row 0 has ones behind zeros"),
    (with_mask(2, [0] * 24), "features-mask.npy: row 2 is all padding: a prompt has a token at least"),
    (with_number(np.nan), "prompt 1 holds numbers that are not finite in float32: encode it in float32 or"),
    (
        lambda f, m: (np.where(np.isfinite(f), f, 0).astype(np.float64) * 1e300, m),
        "prompt 0 holds numbers that are not finite in float32",
    ),
    (
        lambda f, m: (np.zeros((1, 121, 48), np.float32), np.ones((1, 121), np.bool_)),
        "prompt 0 has 121 rows, the model has room for 1 to 120: leave out padding with a mask, or",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_arrays_that_do_not_fit_are_refused(
    release: Any, text_bundle: Path, tmp_path: Path, change: Change, message: str
) -> None:
    features, mask = change(*padded())
    if not mask.flags.c_contiguous:
        mask = np.ascontiguousarray(mask)
    words = saved(tmp_path, features if features.flags.c_contiguous or "Fortran" in message else features.copy(), mask)
    done = call(release.program("arforge-run"), text_bundle, *words, "--tokens", tmp_path / "x.npy", "--quiet")
    assert done.returncode == REQUEST_ERROR, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "x.npy").exists()


def npy(
    header: str = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 48), }",
    version: bytes = b"\1\0",
    content: bytes = bytes(384),
    size: int | None = None,
) -> bytes:
    text = header.encode() + b"\n"
    length = (len(text) if size is None else size).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + content


def shaped(shape: str, content: bytes = bytes(384)) -> bytes:
    return npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}", content=content)


NO_HEAD = "its description is none of NumPy's"
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "features.npy is no .npy file"),
    "text": (b"a photograph of a fox\n", "features.npy is no .npy file"),
    "npz": (b"PK\3\4 and more", "features.npy is an archive (.npz): save its one array with numpy.save"),
    "magic alone": (b"\x93NUMPY", "its version is none of 1.0, 2.0 and 3.0"),
    "version 4": (npy(version=b"\4\0"), "its version is none of"),
    "version 1.1": (npy(version=b"\1\1"), "its version is none of"),
    "version 0": (npy(version=b"\0\0"), "its version is none of"),
    "no length": (npy()[:8], NO_HEAD),
    "head cut off": (npy()[:40], "its description is cut off or too long"),
    "head that goes on": (npy(size=60000), "its description is cut off or too long"),
    "head of 4 GB": (npy(version=b"\2\0", size=2**32 - 1), "its description is cut off or too long"),
    "head of the content": (npy(size=200), NO_HEAD),
    "one byte less": (npy(content=bytes(383)), "it has 383 bytes of 384"),
    "no content": (npy(content=b""), "it has 0 bytes of 384"),
    "one byte more": (npy(content=bytes(385)), "bytes follow the array"),
    "a list": (npy("['descr', '<f4']"), NO_HEAD),
    "no dictionary's end": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 48)"), NO_HEAD),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}"), NO_HEAD),
    "twice": (npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 48)}"), NO_HEAD),
    "another key": (shaped("(1, 2, 48), 'x': 1"), NO_HEAD),
    "a call": (shaped("tuple([1, 2, 48])"), NO_HEAD),
    "order 0": (npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 2, 48)}"), NO_HEAD),
    "negative": (shaped("(-1, 2, 48)"), NO_HEAD),
    "fraction": (shaped("(1, 2.5, 48)"), NO_HEAD),
    "no quote's end": (npy("{'descr': '<f4, }"), NO_HEAD),
    "something behind": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 48)} + {}"), NO_HEAD),
    "sides beyond 64 bits": (shaped("(1, 2, 99999999999999999999)"), NO_HEAD),
    "too large": (shaped(f"({2**40}, {2**40}, 48)"), "out of range"),
    "large": (shaped(f"(1, {2**42}, 48)"), "its shape is out of range"),
    "promised": (shaped(f"(1, {2**36}, 48)"), "it has 384 bytes of"),
    "empty and large": (shaped(f"(0, {2**60}, {2**60})", content=b""), "holds no prompts"),
    "objects": (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 48)}"), "holds numbers of type '|O'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_arrays_are_refused(release: Any, text_bundle: Path, tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / "features.npy").write_bytes(content)
    words = ("--features", tmp_path / "features.npy", "--tokens", tmp_path / "x.npy", "--quiet")
    done = call(release.program("arforge-run"), text_bundle, *words)
    assert done.returncode == REQUEST_ERROR, done.stderr
    assert message in done.stderr


def test_a_head_as_others_write_it_is_read(release: Any, text_bundle: Path, tmp_path: Path) -> None:
    head = '{ "shape" : (1,2, 48,),"fortran_order":False , "descr":"<f4"}   '
    (tmp_path / "features.npy").write_bytes(npy(head, content=np.ones(96, np.float32).tobytes()))
    words = ("--features", tmp_path / "features.npy", "--tokens", tmp_path / "x.npy", "--quiet")
    assert call(release.program("arforge-run"), text_bundle, *words).returncode == 0


def test_files_that_are_not_there_and_folders(release: Any, text_bundle: Path, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.npy", "cannot read"), (tmp_path, "is no .npy file")):
        done = call(release.program("arforge-run"), text_bundle, "--features", path, "--tokens", tmp_path / "x.npy")
        assert (done.returncode, message in done.stderr) == (REQUEST_ERROR, True), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--features", "f.npy", "--class", 1), "say what to draw by one of --class and --features"),
        (("--features-mask", "m.npy", "--class", 1), "--features-mask goes with --features"),
        ((), "name a BUNDLE and at least one --class, or --features"),
    ],
)
def test_options_that_do_not_go_together(release: Any, text_bundle: Path, words: tuple[Any, ...], message: str) -> None:
    done = call(release.program("arforge-run"), text_bundle, *words, "--tokens", "x.npy")
    assert (done.returncode, message in done.stderr) == (USAGE_ERROR, True), done.stderr


def test_bundles_that_take_something_else(release: Any, bundle: Path, text_bundle: Path, tmp_path: Path) -> None:
    words = saved(tmp_path, *padded())
    for root, asked, message in (
        (bundle, words, "this llamagen model takes classes, not features"),
        (text_bundle, ("--class", 1), "this llamagen-t2i model takes prompts, not classes: say in words what to draw"),
    ):
        done = call(release.program("arforge-run"), root, *asked, "--tokens", tmp_path / "x.npy", "--quiet")
        assert (done.returncode, message in done.stderr) == (REQUEST_ERROR, True), done.stderr
