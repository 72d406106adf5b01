"""The loop graph: what it feeds is what the host's decoding feeds, call by call; and what TensorRT-RTX makes of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from fake_gpu import RTX, FakeGpu, fake_library
from made_once import made_once
from numpy.typing import NDArray

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.cli import main
from arforge.engines import tensorrt, tensorrt_loop
from arforge.engines.profiles import plan_profiles
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_between import check_between
from arforge.engines.tensorrt_layers import FROM_HOST, attention_kernels, check_layers, expected, load_layers
from arforge.engines.tensorrt_loop import loop_graph, plan_loop
from arforge.engines.verify import verify_bundle
from arforge.identities import calls_a_launch
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.engine import LoopProgress, StepBuffers
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_identity import build_command
from arforge.runner.bundle import Bundle
from arforge.runner.bundle.engine_identity import SCHEMAS
from arforge.runner.decoding import Drawing, JacobiDecoding
from arforge.runner.errors import EngineError, VerificationError
from arforge.runner.json_file import check_schema
from arforge.runner.loop_graph import STATE, LoopSizes, loop_contract, next_name
from arforge.runner.looped import LoopedDecoding, line_of
from arforge.runner.plan import Plan, Prefixes, make_plan
from arforge.runner.randomness import Randomness
from arforge.runner.schedules import raster, row_ends
from arforge.runner.schedules.schedule import Schedule

NO_ENGINE: Any = None  # a loop needs none
VOCABULARY, SPECIAL = 7, 9
Sample = Callable[[StepBuffers], None]


def model_of(schedule: Schedule) -> Any:
    return SimpleNamespace(cells=schedule.cells, grid=schedule.grid, vocabulary=VOCABULARY)


@dataclass
class Case:
    """A batch of one schedule, whose tokens depend on those before them, and what its images are drawn with."""

    schedule: Schedule
    widths: tuple[int, ...] | None
    prompt: int  # slots
    images: int
    noise: bool
    seed: int

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.plan = make_plan(self.schedule, self.widths, self.prompt)
        self.rows = 2 * self.images
        self.prefixes = Prefixes(
            random.random((self.rows, self.prompt)) < 0.5 if self.prompt else None,
            random.integers(0, 5, (self.rows, 1)) if self.prompt else None,
        )
        cells = self.schedule.cells
        numbers = Randomness.of(random.integers(0, 1 << 62, self.images).astype(np.uint64), cells)
        self.drawing = Drawing(numbers, random.choice([1.0, 1.5, 7.3], self.images))
        self.conditions = random.integers(10, 20, self.rows)
        self.sharp = random.integers(1, 4)

    def known(self) -> NDArray[np.int64]:
        known = np.zeros((self.rows, self.schedule.cells + 1 + self.schedule.specials), np.int64)
        known[:, self.schedule.cells] = self.conditions
        known[:, self.schedule.cells + 1 :] = SPECIAL
        return known

    def buffers(self, width: int) -> StepBuffers:
        images = (self.images, width)
        return StepBuffers(
            tokens=np.zeros((self.rows, width), np.int64),
            positions=np.zeros((self.rows, width), np.int64),
            write_index=np.zeros(self.rows, np.int64),
            mask=np.zeros((self.rows, 1, width, self.plan.slots), np.bool_),
            guidance=np.zeros(images, np.float32),
            next_tokens=np.zeros(images, np.int64),
            uniforms=None if self.noise else np.zeros(images, np.float32),
            noise=np.zeros((*images, VOCABULARY), np.float32) if self.noise else None,
        )

    def sample(self, buffers: StepBuffers) -> None:
        """A model that looks two tokens back, in both rows of an image."""
        fed = buffers.tokens.reshape(2, self.images, -1).sum(axis=0)
        before = np.concatenate([np.zeros((self.images, 1), np.int64), fed[:, :-1]], axis=1)
        number = buffers.uniforms if buffers.noise is None else buffers.noise.argmax(axis=2) / VOCABULARY
        assert number is not None
        mixed = (fed + 3 * before) // self.sharp + (number * VOCABULARY).astype(np.int64)
        buffers.next_tokens[:] = mixed % VOCABULARY


class GraphLoop:
    """A loop of one call at a time, whose graph ONNX Runtime runs; it notes what each call was fed."""

    def __init__(self, case: Case, sizes: LoopSizes, widths: tuple[int, int], sample: Sample) -> None:
        step = "step-noise" if case.noise else "step"
        self._contract = loop_contract(model_of(case.schedule), sizes, step)
        graph = loop_graph(model_of(case.schedule), sizes, step).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._case, self._sample, self._widths, self._sizes = case, sample, widths, sizes
        self.first = case.buffers(widths[0])
        self.calls: list[StepBuffers] = []

    def begin(self, tables: dict[str, NDArray[Any]]) -> None:
        given = {tensor.name: tensor for tensor in self._contract.inputs if tensor.name in tables}
        self._tables = {name: tables[name].astype(tensor.dtype) for name, tensor in given.items()}
        if "seen" in given:
            seen = self._tables["seen"][: 1 if self._sizes.one_mask else None]
            self._tables["seen"] = np.pad(seen, ((0, 0), (0, self._sizes.slots - seen.shape[1])))
        state = {name: np.zeros(self._case.images, np.int64) for name in STATE}
        self.state = {**state, "known": np.zeros((self._case.images, self._case.schedule.cells), np.int64)}
        self._next = self.first

    def run(self) -> LoopProgress:
        buffers = self._next
        self._sample(buffers)
        self.calls.append(buffers)
        given = self._tables | self.state | {"drawn": buffers.next_tokens}
        given["fed"] = np.array([buffers.tokens.shape[1]])
        names = [tensor.name for tensor in self._contract.outputs]
        made = dict(zip(names, self._session.run(names, given), strict=True))
        self.state = {name: made[next_name(name)] for name in STATE}
        self._next = self._case.buffers(self._widths[1])
        for name, array in made.items():
            if name == "mask":
                self._next.mask[:] = array[..., : self._case.plan.slots]
            elif hasattr(self._next, name):
                getattr(self._next, name)[:] = array
        return LoopProgress(**{name: self.state[name] for name in ("place", "passes", "fault")})

    def tokens(self) -> NDArray[np.int64]:
        return self.state["known"]


def cases() -> list[Case]:
    random, found = np.random.default_rng(11), []
    for seed in range(60):
        grid = int(random.integers(1, 6)), int(random.integers(2, 6))
        window = int(random.integers(2, grid[0] * grid[1] + 1))
        interval = int(random.integers(-1, grid[0] * grid[1]))
        make = (lambda *a, **k: row_ends.next_token(a[0], a[1], 0, **k)) if random.random() < 0.4 else raster.next_token
        schedule = make("x", grid, cfg_interval=interval, jacobi=window)
        widths = [None, (1, window), (max(window, 2),), (1, window + 1)][int(random.integers(4))]
        prompt = int(random.choice([0, 0, 3]))
        found.append(Case(schedule, widths, prompt, int(random.integers(1, 4)), bool(random.random() < 0.3), seed))
    return found


def loop_for(case: Case, sample: Sample, *, own_mask: bool, one_mask: bool = False) -> tuple[LoopedDecoding, GraphLoop]:
    line = line_of(case.schedule)
    assert line is not None
    plan: Plan = case.plan
    widths = (min(plan.kinds)[0], max(plan.kinds)[0])
    loop = GraphLoop(case, LoopSizes(len(line), plan.slots + 5, one_mask, own_mask), widths, sample)
    return LoopedDecoding(plan, line, case.known(), case.prefixes, case.drawing, loop, VOCABULARY), loop  # type: ignore[arg-type]


@pytest.mark.parametrize("case", cases(), ids=lambda case: str(case.seed))
def test_each_call_is_fed_what_the_host_feeds(case: Case) -> None:
    own_mask, one_mask = not case.prompt, case.images == 1 and not case.prompt and case.seed % 2 == 0
    looped, loop = loop_for(case, case.sample, own_mask=own_mask and not one_mask, one_mask=one_mask)
    line = case.plan.line
    assert line is not None
    host = JacobiDecoding(case.plan, line, case.known(), case.prefixes, case.drawing)
    calls = []
    while (shape := host.shape) is not None:
        assert looped.shape == shape
        buffers = case.buffers(shape[0])
        host.fill(buffers)
        case.sample(buffers)
        calls.append(buffers)
        looped.fill(loop.first)
        looped.run(NO_ENGINE, (0, 0))
        real = np.minimum(len(line) - host._at, shape[0])  # inputs that are no repeated last one
        host.store(buffers)
        looped.store(loop.first)
        assert not looped.drawn(loop.first).any()
        np.testing.assert_array_equal(looped.passes, host.passes)
        decided = looped.decided
        np.testing.assert_array_equal(decided, host.decided)
        cells, images = decided.shape[1], len(decided)
        np.testing.assert_array_equal(looped.known[:images, :cells][decided], host.known[:images, :cells][decided])
        assert (looped.done, looped.written - loop._widths[1]) == (host.done, host._slot + host._at.max())
        made = loop.calls[-1]
        for name in ("tokens", "positions", "write_index", "guidance", "noise" if case.noise else "uniforms"):
            np.testing.assert_array_equal(getattr(made, name), getattr(buffers, name), err_msg=name)
        for row in range(case.rows if case.prompt else 2 * one_mask):
            here = slice(None, real[row % case.images])
            np.testing.assert_array_equal(made.mask[row, 0, here], buffers.mask[row, 0, here])
    assert looped.shape is None
    np.testing.assert_array_equal(looped.known, host.known)


@pytest.mark.parametrize(("token", "call"), [(-1, 0), (-1, 4), (VOCABULARY, 0), (VOCABULARY + 3, 3)])
def test_what_is_no_token_stops_all_images_where_they_are(token: int, call: int) -> None:
    case = Case(raster.next_token("x", (4, 4), jacobi=3), None, 0, 3, False, 5)
    made = 0

    def sample(buffers: StepBuffers) -> None:
        nonlocal made
        case.sample(buffers)
        if made == call:
            buffers.next_tokens[1, -1] = token
        made += 1

    looped, loop = loop_for(case, sample, own_mask=True)
    before: dict[str, NDArray[Any]] = {}
    for index in range(call + 4):
        looped.fill(loop.first)
        if index == call:
            before = {name: array.copy() for name, array in loop.state.items()}
        looped.run(NO_ENGINE, (0, 0))
        assert looped.drawn(loop.first).tolist() == [[0], [token if index >= call else 0], [0]]
        if index >= call:
            for name in ("known", "place", "passes"):
                np.testing.assert_array_equal(loop.state[name], before[name])
    assert loop.calls[-1].tokens[:, 0].tolist() == loop.calls[call].tokens[:, 0].tolist()  # the same again


@pytest.fixture(scope="module")
def opened(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """LlamaGen's in fp16 and int8, for one image and three."""

    def make(path: Path) -> None:
        shutil.copytree(bundle, path)
        calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=2, check=0))
        for precision in ("fp16", "int8"):
            tensorrt.build(BuildJob(path, RTX, precision, schedules=["ntp", "jacobi:6"], images=[1, 3]))

    return open_bundle(made_once(tmp_path_factory, "rtx-loop.bundle", make))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_built_loops_wait_for_nobody_and_steps_are_as_without(opened: Bundle, precision: str) -> None:
    identity = opened.engine(RTX, precision)
    between = load_layers(opened.path(identity["loop_layers"]).read_bytes())
    pairs = [(1, 6), (6, 6)]
    assert [(one["fed"], one["width"]) for one in identity["loop_profiles"]] == pairs * 2
    assert check_between(between, 4) is None
    assert {layer.kind for layer in between} == {"kgen"}
    assert all(sum(layer.profile == profile for layer in between) <= 6 for profile in range(4))
    step = load_layers(opened.path(identity["layers"]).read_bytes())
    model = ir.load(opened.path(identity["lowered"]))
    assert check_layers(step, expected(model, opened.model.caches), 4) == []
    assert len(attention_kernels(step)) == 4 * opened.model.layers
    assert opened.files[identity["loop"]].bytes < 4e6  # no weights


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("schedule", ["ntp", "jacobi:6"])
def test_tokens_and_calls_are_those_of_the_same_engine_without_a_loop(
    opened: Bundle, precision: str, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    found = []
    identity = opened.engine(RTX, precision)
    for one in (identity, {**identity, "loop": None, "table": None}):
        gpu = FakeGpu()
        library = fake_library(gpu, identity["library"].split()[1])
        library.trt.add(opened, identity)
        plain = replace(opened, image_tokenizer=None)
        with Runner(plain, TensorRTEngine(plain, one, library, gpu)) as runner:  # type: ignore[arg-type]
            made = runner.generate([3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0], schedule, guidance=2.0, batch=3)
        found.append((made.tokens.tolist(), made.passes.tolist(), gpu.launches))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] < found[1][2] / 4


def test_verify_inspect_and_the_build_command_name_it(opened: Bundle, bundle: Path) -> None:
    lines: list[str] = []
    verify_bundle(opened.root, lines.append, target=RTX)
    assert sum(bool(re.search(r": loop: \d kernels between two calls, none", one)) for one in lines) == 2
    shown = CliRunner().invoke(main, ["inspect", str(opened.root)]).output
    assert "top-p, several calls a launch: steps of width 1 and drafts of width 6" in shown
    identity = opened.engine(RTX, "fp16")
    assert "--no-loop" not in build_command(opened.root, identity)
    without = {**identity, "options": {**identity["options"], "loop": False}}
    assert "--no-loop --no-filters" in build_command(opened.root, without)
    refused = CliRunner().invoke(main, ["build", str(bundle), "--no-loop"])
    assert "--no-loop is for TensorRT: leave it out for --target onnxruntime" in refused.output


def test_what_waits_for_the_host_is_found(opened: Bundle, tmp_path: Path) -> None:
    from arforge.engines.tensorrt_verify import verify_engine

    root = Path(shutil.copytree(opened.root, tmp_path / "copy.bundle"))
    copied = open_bundle(root)
    identity = copied.engine(RTX, "fp16")
    path = copied.path(identity["loop_layers"])
    path.write_text(path.read_text().replace('"kgen"', f'"{FROM_HOST}"', 1))
    entry = next(one for one in copied.engines if (one.target, one.precision) == (RTX, "fp16"))
    with pytest.raises(VerificationError, match=r"waits for the host\. Rebuild the engine with `arforge build"):
        verify_engine(copied, entry, lambda line: None)


def test_noise_beyond_what_fits_leaves_the_calls_to_the_host(
    noise_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(noise_bundle)
    profiles = plan_profiles(opened, ["jacobi:6"], [2], [])
    plan, reason = plan_loop(opened, ["jacobi:6"], [2], profiles)
    assert plan is not None
    assert reason is None
    size = 2 * 64 * 32 * 4  # images, cells, tokens of the vocabulary, bytes
    monkeypatch.setattr(tensorrt_loop, "LARGEST_NOISE", size - 1)
    refused = None, f"the noise of 2 images takes {size} bytes, allowed are {size - 1}"
    assert plan_loop(opened, ["jacobi:6"], [2], profiles) == refused


def test_engines_from_before_say_so(opened: Bundle) -> None:
    identity = opened.engine(RTX, "fp16")
    before = {name: value for name, value in identity.items() if not name.startswith(("loop", "table"))}
    check_schema(before, SCHEMAS[RTX], "it", EngineError)
    assert calls_a_launch(before) == "1 call a launch (built before there were more)"
    for name in ("loop", "table"):
        with pytest.raises(EngineError, match="it does not follow the format"):
            check_schema({**before, name: identity[name]}, SCHEMAS[RTX], "it", EngineError)
    check_schema({**identity, "table": None, "table_sizes": None}, SCHEMAS[RTX], "it", EngineError)
    with pytest.raises(EngineError, match="table_sizes"):
        check_schema({**identity, "table": "a.engine", "table_sizes": None}, SCHEMAS[RTX], "it", EngineError)


def test_bundles_without_drafts_say_why_there_is_none(
    rtx_bundle: Path, rtx_arpg_bundle: Path, bundle_copy: Path
) -> None:
    reasons = {"loop_reason": "as asked", "table_reason": "as asked"}
    for path in (rtx_bundle, rtx_arpg_bundle):
        identity = open_bundle(path).engine(RTX, "fp16")
        assert (identity["loop"], identity["loop_reason"]) == (
            None,
            "no schedule runs next-token decoding ahead on drafts",
        )
    built = tensorrt.build(BuildJob(bundle_copy, RTX, "fp16", schedules=["ntp"], loop=False))
    assert {name: built.identity[name] for name in reasons} == reasons
    assert not [path for name in ("loop-*", "table-*") for path in (bundle_copy / "engines").rglob(name)]
