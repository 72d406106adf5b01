"""Keys and values in 8 bits: the folded graph, what is rounded, when it is run, and what a build says of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from low_caches import always_quicker
from numpy.typing import NDArray

from arforge.cli import main
from arforge.engines import cache_trial, onnxruntime
from arforge.engines.cache_trial import IMAGES, STEPS, WORST, calibrate_caches, rounded, widest
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.engines.verify import verify_bundle
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.folded_graph import NUMBERS, USUAL_ROWS
from arforge.runner.backends.onnxruntime_engine import FoldedGraph, OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle
from arforge.runner.request import Subjects
from arforge.runner.step_graph import cache_names

SLOTS, KNOWN = 24, 9
images_of = cache_trial.drawn
NAMES = ["bundle", "grouped_bundle", "par_bundle", "arpg_bundle"]
Scales = Mapping[str, NDArray[np.float32]]


@pytest.fixture(params=NAMES)
def opened(request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(request.getfixturevalue(request.param))


def all_scales(opened: Bundle, scale: float) -> dict[str, NDArray[np.float32]]:
    """A scale for each channel, no two alike."""
    model = opened.model
    channels = scale * (1 + np.arange(model.kv_heads * model.head_size, dtype=np.float32) / 100)
    return dict.fromkeys(cache_names(model.caches), channels)


def folded_engine(opened: Bundle, tmp_path: Path, scales: Scales, width: int = 99) -> OnnxRuntimeEngine:
    """An engine whose plain graph is the bundle's own float32 one."""
    source = opened.graph("step-logits", "fp32")
    path = write_model(lower_for_onnxruntime(source, "fp32", 5, scales=scales), tmp_path, "step")[0]
    graph = FoldedGraph(path, width)
    return OnnxRuntimeEngine(opened, "fp32", threads=1, graph="step-logits", path=source, folded=graph)


def one_step(
    engine: OnnxRuntimeEngine, rows: int, width: int, lockstep: int, scales: Scales | None = None
) -> dict[str, NDArray[np.generic]]:
    """A step behind `KNOWN` random slots, with a mask that differs by row and query: logits and caches."""
    engine.prepare(images=rows, rows=rows, slots=SLOTS, zero_slots=SLOTS, lockstep=lockstep)
    model = engine._bundle.model
    names = cache_names(model.caches)
    for index, name in enumerate(names):
        for row in range(rows):
            values = np.random.default_rng((index, row)).standard_normal((model.kv_heads, KNOWN, model.head_size))
            if scales is not None:
                scale = scales[name].reshape(model.kv_heads, 1, model.head_size)
                codes = np.clip(np.rint(values / scale), -STEPS, STEPS)
                values = codes if engine.cache(name).dtype == np.int8 else codes * scale
            engine.cache(name)[row, :, :KNOWN] = values
    queries = width + 2 if model.queries else 0
    buffers = engine.buffers(width, queries)
    buffers.mask[:] = False
    if buffers.query_positions is not None:
        buffers.query_positions[:] = 1 + (np.arange(queries) + 7 * np.arange(rows)[:, None]) % 20
    for row in range(rows):
        rng = np.random.default_rng((row, width))
        buffers.tokens[row] = rng.integers(0, 8, width)
        buffers.mask[row, 0, :, :KNOWN] = rng.integers(0, 2, (width, KNOWN))
        buffers.mask[row, 0, :, KNOWN : KNOWN + width] = rng.integers(0, 2, (width, width))
    buffers.mask[..., 0] = True
    buffers.positions[:] = 1 + np.arange(width)
    buffers.write_index[:] = KNOWN
    engine.run(width, queries)
    assert buffers.logits is not None
    return {"logits": buffers.logits.copy(), **{name: engine.cache(name).copy() for name in names}}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [1, 2, 12])
def test_rows_as_heads_give_the_same_in_float32(opened: Bundle, rows: int, width: int, tmp_path: Path) -> None:
    engine = folded_engine(opened, tmp_path, {})
    plain, found = (one_step(engine, rows, width, lockstep) for lockstep in (0, width))
    engine.close()
    for name, array in plain.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, atol=3e-5 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize("width", [1, 4])
def test_a_step_rounds_what_it_writes_and_computes_with_that(opened: Bundle, width: int, tmp_path: Path) -> None:
    scales = all_scales(opened, 0.04)
    engine = folded_engine(opened, tmp_path, scales)
    plain, found = (one_step(engine, 2, width, lockstep, scales) for lockstep in (0, width))
    engine.close()
    model, written = opened.model, slice(KNOWN, KNOWN + width)
    for name in ("key_cache_0", "value_cache_0"):  # of later layers the values differ by what the first rounded
        scale = scales[name].reshape(1, model.kv_heads, 1, model.head_size)
        assert found[name].dtype == np.int8
        error = np.abs(found[name][:, :, written] * scale - plain[name][:, :, written])
        inside = np.abs(plain[name][:, :, written]) < STEPS * scale
        assert inside.mean() > 0.5
        assert (error <= 0.51 * scale)[inside].all()
        assert (found[name][:, :, written.stop :] == 0).all()
    error = np.abs(found["logits"] - plain["logits"]).max() / np.abs(plain["logits"]).max()
    assert 0 < error < 0.1


@pytest.mark.parametrize("width", [1, 5])
def test_a_row_has_the_same_bits_whatever_their_number(opened: Bundle, width: int, tmp_path: Path) -> None:
    scales = all_scales(opened, 0.04)
    engine = folded_engine(opened, tmp_path, scales)
    alone, among = (one_step(engine, rows, width, width, scales) for rows in (1, 6))
    engine.close()
    for name, array in alone.items():
        np.testing.assert_array_equal(among[name][:1], array, err_msg=name)
        assert not np.array_equal(among[name][1:2], array)


@pytest.mark.parametrize(
    ("name", "packed"),
    [("bundle", {True}), ("grouped_bundle", {False}), ("par_bundle", {False}), ("arpg_bundle", {False})],
)
def test_queries_keys_and_values_of_as_many_heads_of_16_channels_are_packed(
    name: str, packed: set[bool], request: pytest.FixtureRequest
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    model = lower_for_onnxruntime(opened.graph("step", "fp32"), "int8", 5, scales=all_scales(opened, 1))
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == opened.model.layers * NUMBERS
    assert {node.attributes.get_int("do_rotary", 0) == 1 for node in nodes} == packed
    assert any(node.op_type == "RotaryEmbedding" for node in model.graph) == (False in packed)


def test_more_slots_than_positions_are_taken(bundle: Path, tmp_path: Path) -> None:
    """Stand-ins take slots beside those of cells: the operator wants a row of its rotary tables for each."""
    opened = open_bundle(bundle)
    engine, slots = folded_engine(opened, tmp_path, {}), opened.model.position_rows + 9
    logits = []
    for lockstep in (0, 2):
        engine.prepare(images=1, rows=1, slots=slots, zero_slots=slots, lockstep=lockstep)
        buffers = engine.buffers(2)
        buffers.write_index[:], buffers.positions[:] = slots - 2, opened.model.position_rows - 1
        buffers.mask[..., slots - 2 :] = True
        engine.run(2)
        assert buffers.logits is not None
        logits.append(buffers.logits.copy())
    engine.close()
    np.testing.assert_allclose(logits[1], logits[0], atol=3e-5 * np.abs(logits[0]).max())


def test_positions_count_where_nothing_stands_before_a_step(opened: Bundle, tmp_path: Path) -> None:
    """The operator alone would count them from the first on: the step behind kept cells would be turned wrongly."""
    engine, logits = folded_engine(opened, tmp_path, {}), []
    queries = 9 if opened.model.queries else 0  # more than there are slots in use
    for lockstep in (0, 5):
        engine.prepare(images=2, rows=2, slots=SLOTS, zero_slots=0, lockstep=lockstep)
        buffers = engine.buffers(5, queries)
        buffers.tokens[:], buffers.positions[:] = [[1, 2, 3, 4, 5], [5, 3, 2, 1, 4]], [0, 9, 2, 2, 11]
        buffers.mask[..., :5] = np.tri(5, dtype=bool)
        engine.run(5, queries)
        assert buffers.logits is not None
        logits.append(buffers.logits.copy())
    engine.close()
    np.testing.assert_allclose(logits[1], logits[0], atol=3e-5 * np.abs(logits[0]).max())


def test_a_layer_without_scales_stays_float32(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    scales = {name: one for name, one in all_scales(opened, 0.04).items() if name.endswith("_1")}
    engine = folded_engine(opened, tmp_path, scales)
    engine.prepare(images=1, rows=2, slots=SLOTS, zero_slots=0, lockstep=1)
    kinds = {name: engine.cache(name).dtype.name for name in cache_names(opened.model.caches)}
    engine.buffers(1).mask[..., 0] = True
    engine.run(1)
    engine.close()
    assert kinds == {name: "int8" if name in scales else "float32" for name in cache_names(2)}


def test_wide_and_ragged_steps_have_float32_caches(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    engine = folded_engine(opened, tmp_path, all_scales(opened, 0.04), width=4)
    kinds = []
    for rows, lockstep in ((2, 4), (2, 5), (2, 1), (6, 1), (6, 0), (2, 0)):
        engine.prepare(images=rows, rows=rows, slots=SLOTS, zero_slots=0, lockstep=lockstep)
        assert engine.cache("key_cache_0").shape[0] == rows
        kinds.append(engine.cache_type.name)
    engine.close()
    assert kinds == ["int8", "float32", "int8", "int8", "float32", "float32"]


def test_a_graph_is_opened_again_for_new_numbers_of_rows_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle)
    engine = folded_engine(opened, tmp_path, all_scales(opened, 0.04))
    first = [one_step(engine, rows, 2, 2) for rows in (5, 9)]
    times: list[Path] = []
    monkeypatch.setattr(engine, "_open", lambda path, content: times.append(path) or open_session(path, 1, content))
    for rows in (*USUAL_ROWS[:-1], 9, 5):  # nine has taken the place of the last
        again = one_step(engine, rows, 2, 2)
    assert not times
    np.testing.assert_array_equal(again["key_cache_1"], first[0]["key_cache_1"])
    one_step(engine, USUAL_ROWS[-1], 2, 2)
    assert len(times) == 1
    engine.close()


def test_the_error_and_what_is_clipped_are_measured() -> None:
    scales = np.array([1, 2, 1, 1], np.float32)  # of two heads of two channels
    cache = np.array([[[[3, 6], [0, 0]], [[127, 130], [-2, 0]]]], np.float32)
    error, clipped = rounded(cache, scales)
    assert clipped == 1 / 8
    assert error == pytest.approx(3 / np.sqrt(np.square(cache).sum()))
    assert rounded(np.zeros_like(cache), scales) == (0, 0)


def test_scales_come_of_images_and_others_try_them(bundle: Path) -> None:
    opened = open_bundle(bundle)
    engine = OnnxRuntimeEngine(opened, "fp32", threads=1)
    chosen = Subjects("classes", (3, 1))
    found = calibrate_caches(opened, engine, chosen)
    largest = np.abs(cache_trial.drawn(opened, engine, chosen, range(IMAGES))["key_cache_0"]).max(axis=(0, 2)).ravel()
    engine.close()
    np.testing.assert_allclose(found.scales["key_cache_0"], 1.3 * largest / 127, rtol=1e-6)
    assert 0 < found.error < WORST
    assert found.clipped < 0.01
    assert found.kept == ()


def test_a_layer_whose_caches_have_outliers_is_kept(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: object) -> dict[str, NDArray[np.float32]]:
        made = {name: np.random.default_rng(0).standard_normal((2, 4, 9, 16)) for name in names}
        made["value_cache_0"][0, :, 0] = 5000  # in each channel, so that a scale of its own does not help
        return {name: cache.astype(np.float32) for name, cache in made.items()}

    names = cache_names(2)
    opened = open_bundle(bundle)
    monkeypatch.setattr(cache_trial, "drawn", drawn)
    first = drawn()
    spoilt = {name: cache.copy() for name, cache in first.items()}
    spoilt["value_cache_0"][0, :, 0] = 0
    turns = iter([first, spoilt])
    monkeypatch.setattr(cache_trial, "drawn", lambda *_: next(turns))
    found = calibrate_caches(opened, None)  # type: ignore[arg-type]
    assert found.kept == (0,)
    assert set(found.scales) == {"key_cache_1", "value_cache_1"}
    assert found.error < WORST


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({1: 0.8, 2: 0.9, 4: 1.2}, 2),
        ({1: 0.8, 2: 1.01, 4: 0.8}, 4),  # one measure that went wrong
        ({1: 0.98, 2: 0.98, 4: 0.98}, 0),  # within noise
        ({1: 1.1, 2: 1.2}, 0),
        ({1: 1.05, 4: 0.7}, 4),
    ],
)
def test_8_bits_go_up_to_the_width_where_they_stop_paying(ratios: dict[int, float], expected: int) -> None:
    assert widest(ratios) == expected


@pytest.mark.parametrize("quantization", ["blocks", "rows"])
def test_an_engine_with_8_bit_caches_is_built_and_holds_what_it_promises(
    bundle_copy: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_quicker(monkeypatch)
    options = ["--precision", "int8", "--quantization", quantization, "--cache-precision", "int8"]
    done = CliRunner().invoke(main, ["build", str(bundle_copy), *options])
    assert done.exit_code == 0, done.output
    opened = open_bundle(bundle_copy)
    opened.check_hashes()
    identity = opened.engine("onnxruntime", "int8")
    widths = sorted({width for name in opened.specifications for width in opened.schedule(name).widths})
    assert identity["cache_width"] == widths[-1]
    assert identity["cache_graph_sha256"] == opened.sha256(identity["cache_graph"])
    for kind in ("fp32", "int8"):
        assert sorted(map(int, identity["cache_milliseconds"][kind])) == widths
    assert identity["cache_check"]["kept"] == []
    assert "exact_width" not in identity
    assert len([name for name in opened.files if name.startswith("engines/onnxruntime-int8-cpu/weights/")]) == 1
    message = f"clipped; 8 bits in schedules of up to {widths[-1]} tokens a step"
    assert message in done.output
    assert message in CliRunner().invoke(main, ["inspect", str(bundle_copy)]).output
    lines: list[str] = []
    verify_bundle(bundle_copy, lines.append)
    assert "engine onnxruntime int8: same tokens alone and in a batch" in lines
    with Runner.open(bundle_copy, precision="int8", threads=1) as runner:
        together = runner.generate(range(5), schedule="zipar:4", guidance=2.0).tokens
        assert runner._engine.cache_type == np.int8
        for batch in (1, 2):
            again = runner.generate(range(5), schedule="zipar:4", guidance=2.0, batch=batch).tokens
            np.testing.assert_array_equal(again, together)
        ahead = runner.generate(range(5), schedule="jacobi:4", guidance=2.0, batch=2).tokens
        assert runner._engine.cache_type == np.float32
        np.testing.assert_array_equal(runner.generate(range(5), schedule="jacobi:4", guidance=2.0).tokens, ahead)
    before = {name for name in opened.files if "onnxruntime-int8" in name}
    onnxruntime.build(bundle_copy, "int8", quantization=quantization)
    gone = before - open_bundle(bundle_copy).files.keys()
    assert identity["cache_graph"] in gone
    assert not opened.path(identity["cache_graph"]).exists()


def test_a_model_of_prompts_is_built_with_those_that_are_given(
    ids_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_quicker(monkeypatch)
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(cache_trial, "drawn", lambda *given: drawn.append(given[2:]) or images_of(*given))
    root = Path(shutil.copytree(ids_bundle, tmp_path / "low.bundle"))
    options = ["--precision", "int8", "--quantization", "rows", "--cache-precision", "int8"]
    asked = ["--prompt", "a cat", "--prompt", "two dogs on the mat", "--unconditional", "image"]
    done = CliRunner().invoke(main, ["build", str(root), *options, *asked])
    assert done.exit_code == 0, done.output
    subjects = Subjects("prompts", ("a cat", "two dogs on the mat"), {"unconditional": "image"})
    for given, images in zip(drawn, (range(4), range(4, 6)), strict=True):
        assert given[1] == images
        assert given[0].take(images).items() >= subjects.take(images).items()  # type: ignore[attr-defined]
    assert "8 bits in schedules of up to" in done.output


def test_caches_that_are_not_quicker_stay_float32(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_trial, "widest", lambda *_: 0)
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--precision", "int8", "--cache-precision", "int8"])
    assert done.exit_code == 0, done.output
    assert "8 bits are not quicker, float32 stays" in done.output
    opened = open_bundle(bundle_copy)
    identity = opened.engine("onnxruntime", "int8")
    assert "cache_graph" not in identity
    assert identity["exact_width"] > 0
    folder = bundle_copy / "engines/onnxruntime-int8-cpu"
    assert {path.relative_to(bundle_copy).as_posix() for path in folder.glob("*.onnx")} == {
        identity[part] for part in ("graph", "own_graph")
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bundle", ("--precision", "fp32"), "8-bit caches go with int8 and int4 that need no calibration"),
        ("bundle", ("--quantization", "static"), "8-bit caches go with int8 and int4 that need no calibration"),
        ("bundle", ("--no-trial",), "8-bit caches are measured: give --cache-precision int8 no --no-trial"),
        ("bundle", ("--measure-jacobi",), "by arforge's own operators alone, which are not here: compile them with"),
        ("text_bundle", (), "takes prompts, and by made-up ones the ranges of its keys and values would be others"),
        ("text_bundle", ("--class", "3"), "takes prompts, not classes"),
        ("bundle", ("--prompt", "a cat"), "takes classes, not prompts"),
        ("bundle", ("--class", "3", "--cache-precision", "fp32"), "images are drawn for 8-bit caches alone"),
        (
            "bundle",
            ("--target", "tensorrt-rtx", "--cache-precision", "fp32", "--class", "3"),
            "what to draw is for",
        ),
        ("bundle", ("--target", "tensorrt-rtx"), "--cache-precision is for ONNX Runtime"),
    ],
)
def test_where_caches_cannot_be_8_bits_a_build_says_so(
    name: str, options: tuple[str, ...], message: str, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(name)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    done = CliRunner().invoke(main, ["build", str(root), "--precision", "int8", "--cache-precision", "int8", *options])
    assert done.exit_code == 1
    assert message in done.output
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_profile_shows_the_operators_that_run(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always_quicker(monkeypatch)
    onnxruntime.build(bundle_copy, "int8", quantization="blocks", caches="int8")
    asked = ["profile", str(bundle_copy), "--precision", "int8", "--max-steps", "2", "--threads", "1", "--layers"]
    for schedule, operator in (("ntp", "GroupQueryAttention"), ("jacobi:4", " Attention ")):
        done = CliRunner().invoke(main, [*asked, "--schedule", schedule])
        assert done.exit_code == 0, done.output
        assert operator in done.output
