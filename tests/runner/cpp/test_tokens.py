"""The C++ runner gives the tokens and the images of the Python runner, through its C interface."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from low_caches import always_quicker
from tiny import CONFIG

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.bundle import Precision

CLASSES = [3, 1, 4, 1]
SEEDS = [9, 2**64 - 1, 6, 0]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"greedy": True},
    {"guidance": 1.0},
    {"guidance": 1.5, "temperature": 0.7, "top_k": 9},
    {"guidance": 3.0, "temperature": 1.3, "top_p": 0.8},
    {"guidance": 1.0, "top_k": 20, "top_p": 0.95},
]
FAMILIES = {
    "bundle": ["ntp", "zipar:4", "zipar:2", "zipar:3,first-row=windowed,seed=nearest,holes=masked,cfg-interval=20"],
    "grouped_bundle": ["ntp", "zipar:1", "zipar:6"],
    "par_bundle": ["par:4"],
    "arpg_bundle": ["arpg:8", "arpg:24", "arpg:5,ratio=cosine,cfg=constant,order=7,groups=causal"],
}


def compare(ours: cpp_abi.Runner, theirs: Runner, *arguments: Any, **settings: Any) -> None:
    expected = theirs.generate(*arguments, **settings)
    found = ours.generate(*arguments, **settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)
    assert (found.steps, found.grid) == (expected.steps, expected.grid)
    if expected.images is None:
        assert found.images is None
    else:
        assert found.images is not None
        np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_images_are_pythons(library: Any, request: pytest.FixtureRequest, name: str) -> None:
    root = request.getfixturevalue(name)
    theirs: Runner = request.getfixturevalue({"bundle": "runner"}.get(name, name.replace("bundle", "runner")))
    stored = list(theirs.bundle.specifications)
    assert stored
    ours = cpp_abi.Runner(library, root, threads=1)
    for schedule in {*stored, *FAMILIES[name]}:
        for settings in SETTINGS:
            compare(ours, theirs, CLASSES, SEEDS, schedule=schedule, **settings)
    compare(ours, theirs, CLASSES[:1], [5], schedule=stored[0])
    compare(ours, theirs, CLASSES, SEEDS, schedule=stored[-1], batch=1)
    compare(ours, theirs, [*CLASSES, 0], schedule=stored[-1], batch=3)
    compare(ours, theirs, CLASSES)
    ours.close()


def test_a_tokenizer_of_bf16_codes_images_as_pythons(library: Any, bf16_tokenizer_bundle: Path) -> None:
    ours = cpp_abi.Runner(library, bf16_tokenizer_bundle, threads=1)
    with Runner.open(bf16_tokenizer_bundle, threads=1) as theirs:
        compare(ours, theirs, CLASSES, SEEDS, schedule="zipar:4")
        images = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 3), dtype=np.uint8)
        expected = theirs.encode(images)
    np.testing.assert_array_equal(ours.encode(images, expected.size).reshape(expected.shape), expected)
    ours.close()


MIXED: dict[str, list[Any]] = {
    "guidance": [1.0, 2.5, 1.5, 1.0],
    "temperature": [0.7, 0.0, 1.3, 1.0],
    "top_k": [0, 5, 9, 0],
    "top_p": [1.0, 0.8, 1.0, 0.9],
}


@pytest.mark.parametrize("batch", [4, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_batch_gives_each_image_what_it_has_alone(
    library: Any, request: pytest.FixtureRequest, name: str, batch: int
) -> None:
    theirs: Runner = request.getfixturevalue({"bundle": "runner"}.get(name, name.replace("bundle", "runner")))
    ours = cpp_abi.Runner(library, request.getfixturevalue(name), threads=1)
    for schedule in FAMILIES[name][:2]:
        mixed = ours.generate(CLASSES, SEEDS, schedule=schedule, batch=batch, **MIXED)
        for image in range(4):
            alone = {key: values[image] for key, values in MIXED.items()}
            found = ours.generate(CLASSES[image : image + 1], SEEDS[image : image + 1], schedule=schedule, **alone)
            np.testing.assert_array_equal(found.tokens[0], mixed.tokens[image])
        compare(ours, theirs, CLASSES, SEEDS, schedule=schedule, batch=batch, **MIXED)
        compare(ours, theirs, CLASSES, SEEDS, schedule=schedule, guidance=MIXED["guidance"], top_k=7)
    ours.close()


LOW = [
    "bundle caches",
    "grouped_bundle caches",
    "par_bundle caches",
    "arpg_bundle caches",
]  # with keys and values in 8 bits


@pytest.fixture(scope="module", params=[*FAMILIES, *(f"{name} rows" for name in FAMILIES), "static", *LOW])
def int8_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, _, quantization = request.param.replace("static", "bundle static").partition(" ")
    source = request.getfixturevalue(name)
    root = Path(shutil.copytree(source, tmp_path_factory.mktemp("cpp-int8") / "int8.bundle"))
    if quantization == "static":
        calibrate(CalibrationJob(root, Rule("max", 100), samples=2, check=0, trials=0, threads=1))
    with pytest.MonkeyPatch.context() as patch:
        always_quicker(patch)
        low = quantization == "caches"
        form = "blocks" if low else quantization or "blocks"
        onnxruntime.build(root, "int8", quantization=form, caches="int8" if low else "fp32")
    return root


def test_int8_tokens_and_images_are_pythons(library: Any, int8_bundle: Path) -> None:
    ours = cpp_abi.Runner(library, int8_bundle, precision="int8", threads=1)
    with Runner.open(int8_bundle, precision="int8", threads=1) as theirs:
        for entry in theirs.bundle.schedules:
            for settings in ({}, {"greedy": True}, {"guidance": 1.0, "top_k": 7}):
                compare(ours, theirs, CLASSES, SEEDS, schedule=entry.specification, **settings)
                compare(ours, theirs, CLASSES[:1], SEEDS[:1], schedule=entry.specification, **settings)
    ours.close()


@pytest.mark.parametrize("int8_bundle", LOW, indirect=True)
def test_8_bit_caches_come_and_go_with_batch_and_schedule(library: Any, int8_bundle: Path) -> None:
    """Images of a batch, alone, and running ahead on drafts, whose caches are float32: each opens another graph."""
    ours = cpp_abi.Runner(library, int8_bundle, precision="int8", threads=1)
    with Runner.open(int8_bundle, precision="int8", threads=1) as theirs:
        schedules = theirs.bundle.specifications
        drafts = ["jacobi:4"] if theirs.bundle.model.order == "raster" else []
        for schedule in (*schedules[:2], *drafts, schedules[0]):
            compare(ours, theirs, CLASSES, SEEDS, schedule=schedule)
            assert theirs._engine.cache_type == (np.float32 if schedule in drafts else np.int8)
            whole, parted = (ours.generate(CLASSES, SEEDS, schedule=schedule, batch=batch) for batch in (4, 3))
            np.testing.assert_array_equal(parted.tokens, whole.tokens)
    ours.close()


def test_a_graph_of_8_bit_caches_without_heads_is_one_clear_error(library: Any, bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "damaged.bundle"))
    with pytest.MonkeyPatch.context() as patch:
        always_quicker(patch)
        onnxruntime.build(root, "int8", quantization="blocks", caches="int8")
    path = open_bundle(root).path(open_bundle(root).engine("onnxruntime", "int8")["cache_graph"])
    path.write_bytes(path.read_bytes().replace(b"num_heads", b"num_headz"))
    with pytest.raises(EngineError, match="has heads for 15 numbers of rows, not 16: rebuild the engine"):
        Runner.open(root, precision="int8")
    with pytest.raises(Failure, match="has heads for 15 numbers of rows, not 16: rebuild the engine") as refused:
        cpp_abi.Runner(library, root, precision="int8")
    assert refused.value.status == STATUS["engine"]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_bundle_that_stores_blocks_runs_them_where_nobody_names_a_precision(
    library: Any, checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    root = tmp_path / "stored.bundle"
    export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, None, root, ["zipar:4"], precision=precision))
    onnxruntime.build(root, precision)
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        for settings in ({}, {"greedy": True}):
            compare(ours, theirs, CLASSES, SEEDS, **settings)
    ours.close()
    with pytest.raises(Failure, match="has no onnxruntime fp32 engine"):
        cpp_abi.Runner(library, root, precision="fp32")


def test_long_caches_grow_alike(library: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Beyond 2,048 slots the bound part grows by more at a time: what a step reads in vain must be as much."""
    root = tmp_path / "long.bundle"
    export_bundle(ExportJob(FAMILY, replace(CONFIG, grid=(46, 46)), checkpoint, None, root, ["ntp"]))
    onnxruntime.build(root, "fp32")
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        compare(ours, theirs, CLASSES[:1], SEEDS[:1])
    ours.close()


def test_int8_of_its_own_weights_is_for_the_cpu_alone(library: Any, int8_bundle: Path) -> None:
    static = open_bundle(int8_bundle).engine("onnxruntime", "int8")["quantization"] == "static"
    with pytest.raises(Failure) as refused:
        cpp_abi.Runner(library, int8_bundle, precision="int8", provider="cuda")
    own = "an int8 engine with weights of its own is for provider cpu, not cuda: use fp32, or"
    expected = "has no provider" if static else own
    assert expected in refused.value.message
    assert refused.value.status == STATUS["engine"]


@pytest.mark.parametrize("widths", [(1, 3, 5), (2,), (8,)])
@pytest.mark.parametrize("name", ["bundle", "arpg_bundle"])
def test_padded_and_narrowed_steps_give_the_same_tokens(
    library: Any, request: pytest.FixtureRequest, tmp_path: Path, name: str, widths: tuple[int, ...]
) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "widths.bundle"))
    onnxruntime.build(root, widths=widths)
    ours = cpp_abi.Runner(library, root, threads=1)
    known = np.full((4, 6), -1)
    known[::2] = np.arange(12).reshape(2, 6)
    with Runner.open(root, threads=1) as theirs:
        for schedule in ("ntp", "zipar:4") if name == "bundle" else ("arpg:24", "arpg:24,groups=causal"):
            compare(ours, theirs, CLASSES, SEEDS, schedule=schedule)
        if name == "arpg_bundle":
            compare(ours, theirs, CLASSES, SEEDS, schedule="arpg:24", known=known)
        elif widths == (2,):
            with pytest.raises(Failure, match="engine was built for widths 2: rebuild it with `arforge build --width"):
                ours.generate(CLASSES, schedule="zipar:1")
    ours.close()


@pytest.mark.parametrize("grid", [(4, 6), (6, 11)])
def test_known_tokens_and_larger_grids_are_pythons(
    library: Any, arpg_bundle: Path, arpg_runner: Runner, grid: tuple[int, int]
) -> None:
    ours = cpp_abi.Runner(library, arpg_bundle, threads=1)
    random = np.random.default_rng(3)
    known = np.where(random.random(grid) < 0.4, random.integers(0, 32, grid), -1)
    each = np.where(known == -1, -1, random.integers(0, 32, (4, *grid)))
    for tokens in (known, each):
        for schedule in ("arpg:8", "arpg:12,groups=causal,order=3"):
            compare(ours, arpg_runner, CLASSES, SEEDS, schedule=schedule, known=tokens, batch=3)
    ours.close()


def test_an_encoded_image_has_pythons_tokens(library: Any, bundle: Path, runner: Runner) -> None:
    ours = cpp_abi.Runner(library, bundle, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (33, 16, 8, 3), dtype=np.uint8)
    expected = runner.encode(images)
    np.testing.assert_array_equal(ours.encode(images, 33 * 32).reshape(expected.shape), expected)
    with pytest.raises(Failure, match="1056 tokens do not fit a capacity of 5") as refused:
        ours.encode(images, 5)
    assert refused.value.status == STATUS["argument"]
    ours.close()


def test_a_bundle_whose_tokenizer_only_decodes_draws_and_says_what_reading_images_needs(
    library: Any, drawing_bundle: Path, runner: Runner
) -> None:
    ours = cpp_abi.Runner(library, drawing_bundle, threads=1)
    compare(ours, runner, CLASSES, SEEDS, schedule="zipar:4")
    with pytest.raises(Failure, match="its image tokenizer only decodes; export it with one that has its encoder"):
        ours.encode(np.zeros((1, 16, 16, 3), np.uint8), 64)
    ours.close()


@pytest.mark.parametrize("steps", [1, 2, 27])
def test_a_cancelled_request_leaves_the_runner_usable(library: Any, bundle: Path, runner: Runner, steps: int) -> None:
    ours = cpp_abi.Runner(library, bundle, threads=1)
    calls: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> bool:
        calls.append((done, total))
        return done == steps

    with pytest.raises(Failure, match=f"cancelled after {steps} of 28 steps") as refused:
        ours.generate(CLASSES, schedule="zipar:2", progress=stop)
    assert refused.value.status == STATUS["cancelled"]
    assert calls == [(done, 28) for done in range(1, steps + 1)]
    compare(ours, runner, CLASSES, SEEDS, schedule="zipar:2")
    ours.close()


def test_threads_that_share_a_runner_get_their_own_tokens(library: Any, bundle: Path, runner: Runner) -> None:
    ours = cpp_abi.Runner(library, bundle, threads=1)
    requests = [{"classes": [index] * (1 + index % 3), "schedule": f"zipar:{2 + index % 4}"} for index in range(8)]
    expected = [runner.generate(**request).tokens for request in requests]
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        found[index] = ours.generate(**requests[index]).tokens

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, tokens in enumerate(expected):
        np.testing.assert_array_equal(found[index], tokens)
    ours.close()


@pytest.fixture(scope="module")
def ours(library: Any, bundle: Path) -> Iterator[cpp_abi.Runner]:
    opened = cpp_abi.Runner(library, bundle, threads=1)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"classes": []}, "request", "no classes given"),
        ({"classes": [10]}, "request", "class 10 is out of range: use 0 to 9"),
        ({"classes": [-1]}, "request", "class -1 is out of range"),
        ({"guidance": 0.5}, "request", "guidance 0.5 is out of range"),
        ({"guidance": np.inf}, "request", "guidance inf is out of range"),
        ({"temperature": -1.0}, "request", "temperature -1 is out of range"),
        ({"top_k": -2}, "request", "top-k -2 is out of range"),
        ({"top_p": 0.0}, "request", "top-p 0 is out of range"),
        ({"batch": 0}, "request", "batch 0 is out of range"),
        (
            {"schedule": "zipper:4"},
            "schedule",
            "unknown schedule 'zipper:4': known: ntp, zipar, zipar:adaptive, par, arpg",
        ),
        ({"schedule": "zipar"}, "schedule", "write it as zipar:WINDOW"),
        ({"schedule": "ntp:3"}, "schedule", "write it as ntp"),
        ({"schedule": "zipar:x"}, "schedule", "needs a whole number, not 'x'"),
        ({"schedule": "zipar:9"}, "schedule", "window 9 does not fit a grid of 8x8"),
        ({"schedule": "zipar:4,seed=far"}, "schedule", "option seed is one of published, nearest"),
        ({"schedule": "zipar:4,sead=nearest"}, "schedule", "unknown option"),
        ({"schedule": "zipar:4,seed=nearest,seed=nearest"}, "schedule", "twice"),
        ({"schedule": "ntp,cfg-interval=-2"}, "schedule", "cfg-interval -2 is out of range"),
        (
            {"schedule": "arpg:4"},
            "schedule",
            "in random order, this model in raster order: use one of ntp, zipar",
        ),
        ({"known": np.full((8, 9), -1)}, "schedule", "cannot keep cells or go beyond the grid"),
        ({"known": np.full((8, 7), -1)}, "request", "a grid of 8x7 is out of range"),
        ({"known": np.full((8, 8), 32)}, "request", "known tokens go from 32 to 32: use -1 to 31"),
        ({"known": np.zeros((8, 8))}, "request", "nothing to decide"),
        ({"guidance": [2.0, 0.5], "classes": [1, 2]}, "request", "guidance 0.5 is out of range: use 1 (off) to 1000"),
        ({"temperature": [np.nan]}, "request", "temperature nan is out of range"),
        ({"top_k": [-1]}, "request", "top-k -1 is out of range: use 0 to 1073741824"),
        ({"top_p": [1.5]}, "request", "top-p 1.5 is out of range: use a number in (0, 1]; 1 is off"),
        ({"size": 8}, "argument", "request has size 8, this library's has"),
    ],
)
def test_a_request_that_does_not_fit_gives_its_code(
    ours: cpp_abi.Runner, settings: dict[str, Any], status: str, message: str
) -> None:
    with pytest.raises(Failure) as refused:
        ours.generate(**{"classes": [1], **settings})
    assert message in refused.value.message
    assert refused.value.status == STATUS[status]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "cuda"}, "has no provider 'cuda' (it has "),
        ({"provider": "tensorrt"}, "has no provider 'tensorrt' (it has "),
        (
            {"provider": "tensorrt-rtx", "plugin": "/nowhere"},
            "cannot load the TensorRT-RTX provider from /nowhere",
        ),
        ({"provider": "openvino"}, "unknown provider 'openvino': use cpu, cuda, tensorrt, tensorrt-rtx"),
        ({"precision": "int8"}, "built: onnxruntime fp32). Build it: arforge build"),
        ({"threads": -1}, "-1 threads"),
    ],
)
def test_an_engine_that_cannot_be_had_gives_its_code(
    library: Any, bundle: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Failure) as refused:
        cpp_abi.Runner(library, bundle, **options)
    assert message in refused.value.message
    assert refused.value.status == STATUS["engine"]
