"""Bundles that are wrong, in every way that the Python reader is tested with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner import compile_schedule, open_bundle
from arforge.runner.schedules.file import dump

HERE = Path(__file__).parent / "runner"
STEP, NTP = "graphs/fp32/step.onnx", "schedules/ntp.schedule"
Edit = Callable[[Path], object]


def table(name: str) -> Any:
    """Another test's module, for the cases that it lists."""
    spec = spec_from_file_location(f"cases_of_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MANIFEST_CASES = table("bundle/test_manifest_schema")
SCHEDULE_CASES = table("schedules/test_file")


@dataclass(frozen=True)
class Case:
    name: str
    edit: Edit
    schedule: str = "ntp"


def manifest(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(root: Path) -> None:
        content = json.loads((root / "manifest.json").read_text())
        replace(root, "manifest.json", json.dumps(change(content) or content).encode())

    return edit


def replace(root: Path, path: str, content: bytes) -> None:
    """Write a file anew: those of a copy are links to the original's."""
    (root / path).unlink()
    (root / path).write_bytes(content)


def fitted(path: str, content: bytes) -> Edit:
    """Another content, whose size the manifest knows."""

    def edit(root: Path) -> None:
        replace(root, path, content)
        manifest(lambda found: found["files"][path].update(bytes=len(content)))(root)

    return edit


def identity(change: dict[str, Any] | bytes) -> Edit:
    def edit(root: Path) -> None:
        path = open_bundle(root).engines[0].path
        content = change
        if isinstance(content, dict):
            content = json.dumps({**json.loads((root / path).read_text()), **content}).encode()
        fitted(path, content)(root)

    return edit


def linked(path: str) -> Edit:
    def edit(root: Path) -> None:
        moved = root.with_suffix(".elsewhere")
        (root / path).rename(moved)
        (root / path).symlink_to(moved)

    return edit


def circle(root: Path) -> None:
    """A folder that leads to itself."""
    shutil.rmtree(root / "graphs")
    (root / "graphs").symlink_to("graphs")


def lengthened(change: int) -> Edit:
    return lambda root: replace(root, STEP, (root / STEP).read_bytes()[: change or None] + b"x" * max(change, 0))


def extra_path(path: str) -> Edit:
    return manifest(lambda found: found["files"].update({path: {"bytes": 0, "sha256": "0" * 64}}))


def cases() -> Iterator[Case]:
    yield Case("sound", lambda root: None)
    yield Case("nothing there", shutil.rmtree)
    for place, value in MANIFEST_CASES.CHANGES:
        edit = manifest(lambda found, place=place, value=value: MANIFEST_CASES.changed(found, place, value))
        yield Case(f"schema {place} {str(value)[:60]}", edit)
    texts = (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100000,
        b'{"format": NaN}',
        b"9" * 5000,
        b"[]",
        b"null",
        b"{}",
        b"\xef\xbb\xbf{}",
    )
    for text in texts:
        yield Case(f"manifest {text[:16]!r}", lambda root, text=text: replace(root, "manifest.json", text))
    for version in (1, 3, -1, "2", True, 2.0):
        yield Case(f"version {version!r}", manifest(lambda found, version=version: found.update(version=version)))
    yield Case("newer", manifest(lambda found: found.update(version=3, new_part={})))
    yield Case("no manifest", lambda root: (root / "manifest.json").unlink())
    yield Case("manifest linked", linked("manifest.json"))
    yield Case("manifest too large", lambda root: replace(root, "manifest.json", b" " * (1 << 25)))
    for path in (
        "/etc/passwd",
        "../x",
        "graphs/../../x",
        "graphs/..",
        "a\\b",
        "c:/x",
        "a\0b",
        "./a",
        "a//b",
        "a/",
        ".",
    ):
        yield Case(f"path {path!r}", extra_path(path))
    for path in ("a\nb", "a.", "a ", "\x7f", "\u00fc", "\u2028", "Graphs/x", STEP.upper()):
        yield Case(f"path {path!r}", extra_path(path))
    for levels in (30, 31, 32, 33):
        yield Case(
            f"{levels} levels", manifest(lambda found, levels=levels: found["provenance"].update(x=nested(levels)))
        )
    for text in (b'{"format": "x", "version": 1e999, ', b'{"format": "x", '):
        yield Case(f"added {text!r}", lambda root, text=text: prefixed(root, text))
    yield Case("path below a file", extra_path(f"{STEP}/x"))
    yield Case("path too long", extra_path("a" * 300))
    yield Case("file linked", linked(STEP))
    yield Case("folder linked", linked("graphs"))
    yield Case("folder in a circle", circle)
    yield Case("file missing", lambda root: (root / STEP).unlink())
    yield Case("folder for a file", lambda root: ((root / STEP).unlink(), (root / STEP).mkdir()))
    yield Case("file shorter", lengthened(-1))
    yield Case("file longer", lambda root: replace(root, STEP, (root / STEP).read_bytes() + b"x"))
    yield Case("size that no file has", manifest(lambda found: found["files"][STEP].update(bytes=2**62)))
    for part in ("graphs", "schedules", "engines"):
        yield Case(f"{part} not listed", manifest(lambda found, part=part: found[part][0].update(path="extra")))
    yield Case("weights not listed", manifest(lambda found: found["graphs"][0].update(weights="../outside")))
    yield from absurd_models()
    yield from schedules()
    yield from specifications()
    for text in (b"[]", b"3", b"{", b"\xed\xa0\x80"):
        yield Case(f"identity {text!r}", identity(text))
    wrong = (
        {"graph_sha256": "0" * 64}, {"graph": "x"}, {"graph": None}, {"graph": ["x"]}, {"source": "x"},
        {"source": None}, {"weights": "x"}, {"device": "gpu"}, {"precision": "int8"}, {"library": 3}, {"machine": ""},
    )  # fmt: skip
    for width in (0, -1, True, "4", 2.0, None, 2**30 + 1):
        yield Case(f"identity of exact_width {width}", identity({"exact_width": width}))
    yield from wrong_windows()
    for change in (*wrong, *({"widths": widths} for widths in ([], [0], [True], "4", [2.0], [[1]]))):
        yield Case(f"identity {change}", identity(change))
    yield Case("graph of noise", noisy_graph)


def wrong_windows() -> Iterator[Case]:
    """What an engine cannot have measured of running ahead."""
    fair = {"inputs": 2, "calls": 40.5, "time": 0.9}
    wrong = ({"inputs": 1}, {"inputs": 2.0}, {"images": 0}, {"images": 1.0}, {"time": "1"}, {"time": -1}, {"more": 1})
    for windows in (None, {}, [3], [{}], 65 * [fair], *([{**fair, **change}] for change in wrong)):
        yield Case(f"identity of jacobi {windows}"[:80], identity({"jacobi": windows}))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def prefixed(root: Path, text: bytes) -> None:
    """More fields before the manifest's, so that some are given twice."""
    replace(root, "manifest.json", text + (root / "manifest.json").read_bytes()[1:])


def absurd_models() -> Iterator[Case]:
    classes = {"kind": "class", "classes": 10, "first_class": 32, "null_class": 42}
    features = {"kind": "features", "slots": 120, "width": 2048, "captions": "clean"}
    ids = {
        "kind": "ids", "slots": 64, "vocabulary": 9, "prefix": [0], "before": "", "after": "", "stripped": False,
        "suffix": [2, 3], "start": 1, "padding": None, "reserved": [[7, 8]], "negative": [0, 3],
        "unconditional": "image",
    }  # fmt: skip
    line = {"positions": "sequence", "condition": ids}
    ends = {"specials": [43], "row_end": 0}
    for part, change in (
        ("image_tokenizer", {"codebook_size": 64}),
        ("image_tokenizer", {"image_size": [16, 32]}),
        ("image_tokenizer", {"downsampling": 2**30}),
        ("model", {"position_rows": 64}),
        ("model", {"condition": {**classes, "first_class": 31}}),
        ("model", {"condition": {**classes, "null_class": 41}}),
        ("model", {"condition": {**classes, "classes": 2**30}}),
        ("model", {"condition": {**classes, "slots": 3}}),
        ("model", {"condition": features}),
        ("model", {"condition": {**features, "width": 2**31}}),
        ("model", {"condition": {**features, "captions": "tidy"}}),
        ("model", {"condition": {**features, "captions": None}}),
        ("model", {"condition": {key: features[key] for key in ("kind", "slots", "width")}}),
        ("model", {"condition": ids}),
        ("model", {"condition": {**ids, "padding": -1}}),
        ("model", {"condition": {**ids, "prefix": [2.0]}}),
        ("model", {"condition": {**ids, "prefix": [9]}}),
        ("model", {"condition": {**ids, "suffix": []}}),
        ("model", {"condition": {**ids, "suffix": [2**30]}}),
        ("model", {"condition": {**ids, "start": 0}}),
        ("model", {"condition": {**ids, "start": 3}}),
        ("model", {"condition": {**ids, "start": 2**30}}),
        ("model", {"condition": {**ids, "padding": 9}}),
        ("model", {"condition": {**ids, "slots": 2}}),
        ("model", {"condition": {**ids, "slots": 2**30}}),
        ("model", {"condition": {**ids, "negative": [9]}}),
        ("model", {"condition": {**ids, "negative": [0] * 65}}),
        ("model", {"condition": {**ids, "negative": None}}),
        ("model", {"condition": {**ids, "unconditional": "padded"}}),
        ("model", {"condition": {**ids, "before": "x" * 4000, "after": "\u00fc" * 4000}}),
        ("model", {"condition": {**ids, "before": "x" * 4001}}),
        ("model", {"condition": {**ids, "after": "\u00fc" * 4001}}),
        ("model", {"condition": {**ids, "after": None}}),
        ("model", {"condition": {**ids, "stripped": 1}}),
        ("model", {"condition": {**ids, "reserved": [7]}}),
        ("model", {"condition": {**ids, "reserved": [[True, 8]]}}),
        ("model", {"condition": {**ids, "reserved": [[7, 8, 9]]}}),
        ("model", {"condition": {**ids, "reserved": [[8, 7]]}}),
        ("model", {"condition": {**ids, "reserved": [[0, 2**30 + 1]]}}),
        ("model", {"condition": {**ids, "reserved": [[0, 1]] * 65537}}),
        ("model", {"condition": {key: value for key, value in ids.items() if key != "stripped"}}),
        ("model", {"condition": {**ids, "tokens": 9}}),
        ("model", line),
        ("model", {**line, "position_rows": 127}),
        ("model", {**line, "position_rows": 128}),
        ("model", {**line, "condition": {**ids, "slots": 2**30}, "position_rows": 2**30}),
        ("model", {**line, **ends, "position_rows": 136}),
        ("model", {**ends, "position_rows": 72}),
        ("model", {**ends, "position_rows": 73}),
        ("model", {"condition": {**ids, "unconditional": "empty"}}),
        ("model", {"grid": [2**30, 2**30]}),
        ("model", {"family": "unheard of"}),
        ("model", {"order": "random"}),
        ("model", {"positions": "sequence"}),
        ("model", {"caches": 3}),
        ("model", {"layers": 4097}),
        ("model", {"labels": ["a"] * 10}),
        ("model", {"labels": ["a"] * 9}),
        ("model", {"labels": ["a"] * 9 + [7]}),
        ("model", {"labels": ["a"] * 9 + ["b" * 201]}),
        ("model", {"specials": [43]}),
        ("model", {"specials": [42]}),
        ("model", {"specials": [44, 43, 44]}),
        ("model", {"specials": [2**30 + 1]}),
        ("model", {"row_end": 0}),
        ("model", ends),
        ("model", {**ends, "row_end": 1, "position_rows": 73}),
        ("sampler", {"kind": "noise"}),
        ("sampler", {"top_k": 2.0}),
    ):
        yield Case(f"{part} {change}", manifest(lambda found, part=part, change=change: found[part].update(change)))


def contents(sound: bytes) -> dict[str, bytes]:
    """Schedule files that are wrong, by what is wrong with them."""
    small = SCHEDULE_CASES
    found = {
        "magic": b"ARFSCHEE" + sound[8:],
        "version": small.joined(*small.parts(sound), version=2),
        "large header": small.joined(b" " * 70000, b""),
    }
    for text in (b"", b"[]", b"null", b'"\xff"', b"[" * 60000, b"9" * 5000):
        found[f"header {text[:9]!r}"] = small.joined(text, b"")
    for key in small.COUNTS:
        for value in (-1, 2**40, 1.0, None, True):
            found[f"{key} {value}"] = small.with_header(**{key: value})
    for grid in (None, [4], 16, [0, 0], [2**24, 2**24], [4, 5]):
        found[f"grid {grid}"] = small.with_header(grid=grid)
    for key in ("zero_slots", "conditions"):
        for value in (33, 2**16, 2**16 + 1, 2**24):
            found[f"{key} {value}"] = small.with_header(**{key: value})
    for jacobi in (
        -1,
        2.0,
        None,
        True,
        "4",
        [4],
        2**24 + 1,
        2**70,
        4,
    ):  # the last is well written, of a table with rows
        found[f"jacobi {jacobi}"] = small.with_header(jacobi=jacobi)
    for column, _, kind in small.COLUMNS:
        if column != "kept_cell":
            for value in (-1, 99, 2**31 - 1) if kind == "<i4" else (-1, 99, np.nan, np.inf):
                found[f"{column} {value}"] = small.with_column(column, 0, value)
    return found


def moved(position: int) -> bytes:
    """Next-token order, whose last input stands elsewhere."""
    schedule = compile_schedule("ntp", (8, 8))
    *steps, last = schedule.steps
    inputs = (last.inputs[0]._replace(position=position),)
    return dump(dataclasses.replace(schedule, steps=(*steps, dataclasses.replace(last, inputs=inputs))))


def schedules() -> Iterator[Case]:
    for key in ("steps", "slots"):
        yield Case(f"stored {key}", manifest(lambda found, key=key: found["schedules"][0].update({key: 63})))
    yield Case("stored for rows that end", fitted(NTP, dump(compile_schedule("ntp", (8, 8), row_end=0))))
    yield Case("stored with a position beyond the model's", fitted(NTP, moved(70)))
    yield Case("stored with the model's last position", fitted(NTP, moved(64)))
    yield Case("stored for another grid", fitted(NTP, dump(compile_schedule("ntp", (4, 16)))))
    for jacobi in (1, 64, 65):
        line = dataclasses.replace(compile_schedule("ntp", (8, 8)), jacobi=jacobi)
        yield Case(f"stored to run {jacobi} ahead", fitted(NTP, dump(line)))
    sound = dump(compile_schedule("ntp", (8, 8)))
    for length in (0, 7, 15, 16, 40, len(sound) - 1):
        yield Case(f"schedule of {length} bytes", fitted(NTP, sound[:length]))
    for name, content in contents(sound).items():
        yield Case(f"schedule with {name}", fitted(NTP, content))


def specifications() -> Iterator[Case]:
    for text in (
        "zipar:0", f"zipar:{10**20}", "arpg:4", "par:-4", "ntp,cfg-interval=-2", ",", "ntp,=", "zipar:4:4", "jacobi:1",
        "jacobi:65", "jacobi:64", "jacobi", "jacobi:", "jacobi:4:4", "zipar:4,jacobi=4", "jacobi:4,jacobi=4",
        "jacobi:auto", "jacobi:Auto", "zipar:4,jacobi=auto",
    ):  # fmt: skip
        yield Case(f"specification {text}", lambda root: None, text)


def noisy_graph(root: Path) -> None:
    """The step graph is noise of the right size, and its engine knows it."""
    size = (root / STEP).stat().st_size
    replace(root, STEP, np.random.default_rng(0).bytes(size))
