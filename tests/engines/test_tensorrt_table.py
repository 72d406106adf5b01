"""The table graph: what it feeds is what the host's decoding feeds, call by call; and what TensorRT-RTX makes of it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_gpu import RTX, FakeGpu, fake_library
from made_once import made_once
from numpy.typing import NDArray

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.engines import tensorrt, tensorrt_loop, tensorrt_table
from arforge.engines.profiles import plan_profiles
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_between import check_between
from arforge.engines.tensorrt_layers import FROM_HOST, load_layers
from arforge.engines.tensorrt_table import plan_table, table_graph
from arforge.engines.verify import verify_bundle
from arforge.options import calls_a_launch
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.engine import StepBuffers, TableProgress
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.bundle import Bundle
from arforge.runner.decoding import Drawing, TableDecoding
from arforge.runner.errors import VerificationError
from arforge.runner.plan import Prefixes, make_plan
from arforge.runner.randomness import Randomness
from arforge.runner.schedules import random_order, raster, regions, row_ends
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.table_graph import STATE, TableSizes, next_name, table_contract, table_of_plan
from arforge.runner.tabled import TabledDecoding

NO_ENGINE: Any = None  # a loop needs none
VOCABULARY, SPECIAL = 7, 9


@dataclass
class Case:
    """A batch of one schedule, whose tokens depend on what each call is fed."""

    schedule: Schedule
    widths: tuple[int, ...] | None
    prompt: int  # slots
    images: int
    noise: bool
    seed: int

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.plan = make_plan(self.schedule, self.widths, self.prompt)
        self.rows, cells = 2 * self.images, self.schedule.cells
        self.prefixes = Prefixes(
            random.random((self.rows, self.prompt)) < 0.5 if self.prompt else None,
            random.integers(0, 5, (self.rows, 1)) if self.prompt else None,
        )
        numbers = Randomness.of(random.integers(0, 1 << 62, self.images).astype(np.uint64), cells)
        self.drawing = Drawing(numbers, random.choice([1.0, 1.5, 7.3], self.images))
        self.conditions = random.integers(10, 20, self.rows)
        self.tokens = np.tile(random.integers(0, VOCABULARY, (self.images, cells)), (2, 1))
        self.model: Any = SimpleNamespace(
            cells=cells, grid=self.schedule.grid, vocabulary=VOCABULARY, queries=self.schedule.queries
        )

    def known(self) -> NDArray[np.int64]:
        cells = self.schedule.cells
        known = np.zeros((self.rows, cells + 1 + self.schedule.specials), np.int64)
        known[:, list(self.schedule.kept)] = self.tokens[:, list(self.schedule.kept)]
        known[:, cells] = self.conditions
        known[:, cells + 1 :] = SPECIAL
        return known

    def buffers(self, width: int, queries: int) -> StepBuffers:
        images = (self.images, queries or width)
        return StepBuffers(
            tokens=np.zeros((self.rows, width), np.int64),
            positions=np.zeros((self.rows, width), np.int64),
            write_index=np.zeros(self.rows, np.int64),
            mask=np.zeros((self.rows, 1, width, self.plan.slots), np.bool_),
            guidance=np.zeros(images, np.float32),
            next_tokens=np.zeros(images, np.int64),
            uniforms=None if self.noise else np.zeros(images, np.float32),
            noise=np.zeros((*images, VOCABULARY), np.float32) if self.noise else None,
            query_positions=np.zeros((self.rows, queries), np.int64) if queries else None,
        )

    def sample(self, buffers: StepBuffers) -> None:
        fed = buffers.tokens.reshape(2, self.images, -1).sum(axis=(0, 2))[:, None]
        number = buffers.uniforms if buffers.noise is None else buffers.noise.argmax(axis=2) / VOCABULARY
        assert number is not None
        places = np.arange(number.shape[1])
        buffers.next_tokens[:] = (fed + places + (number * VOCABULARY).astype(np.int64)) % VOCABULARY


class GraphTable:
    """A loop of one call at a time, whose graph ONNX Runtime runs; it notes what each call was fed."""

    def __init__(self, case: Case, room: int, *, own_mask: bool, one_mask: bool) -> None:
        """`room`: for how much more than the plan."""
        sizes = TableSizes(*(size + room for size in vars(TableSizes.of(case.plan)).values()))
        slots = case.plan.slots + room
        step = "step-noise" if case.noise else "step"
        contract = table_contract(case.model, sizes, step, slots, one_mask=one_mask, own_mask=own_mask)
        graph = table_graph(case.model, contract).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._case, self._contract, self._sizes, self._slots = case, contract, sizes, slots
        self.calls: list[StepBuffers] = []
        self.spoilt: dict[int, tuple[int, int, int]] = {}  # call: image, output, what it samples

    def begin(self, given: dict[str, NDArray[Any]]) -> None:
        case = self._case
        self._dimensions = {"images": case.images, "rows": case.rows, "drawn": case.images * self._sizes.most}
        self._tables = {}
        for tensor in self._contract.inputs:
            source = given if tensor.name in given else table_of_plan(case.plan)
            if tensor.name in source:
                array = np.full(tensor.sizes(self._dimensions), -2 if tensor.name == "decided_by" else 0, tensor.dtype)
                array[tuple(map(slice, source[tensor.name].shape))] = source[tensor.name]
                self._tables[tensor.name] = array
        self.state = {name: np.zeros(case.images, np.int64) for name in STATE}
        self.state |= {"known": self._tables.pop("known"), "call": np.array([-1])}
        self._drawn = np.full(self._dimensions["drawn"], 12345)
        self._feed(0)

    def run(self) -> TableProgress:
        call = len(self.calls)
        self.calls.append(self._next)
        self._case.sample(self._next)
        if call in self.spoilt:
            image, output, token = self.spoilt[call]
            self._next.next_tokens[image, output] = token
        flat = self._next.next_tokens.reshape(-1)
        self._drawn[: len(flat)] = flat
        self._feed(min(call + 1, len(self._case.plan.steps) - 1))
        return TableProgress(len(self.calls), self.state["fault"], self.state["fault_call"])

    def known(self) -> NDArray[np.int64]:
        return self.state["known"]

    def _feed(self, call: int) -> None:
        """Run the graph before that call."""
        case, step = self._case, self._case.plan.steps[call]
        numbers = {
            "image_numbers": np.arange(case.images),
            "row_zeros": np.zeros(case.rows, np.int64),
            "width_numbers": np.arange(step.width),
            "query_numbers": np.arange(step.queries),
        }
        wanted = {tensor.name for tensor in self._contract.inputs}
        given = self._tables | self.state | numbers | {"drawn": self._drawn}
        names = [tensor.name for tensor in self._contract.outputs]
        found = self._session.run(names, {name: given[name] for name in wanted})
        made = dict(zip(names, found, strict=True))
        self.state = {name: made[next_name(name)] for name in STATE}
        self._next = case.buffers(step.width, step.queries)
        for name, array in made.items():
            if name == "mask":
                assert not array[..., case.plan.slots :].any()
                self._next.mask[:] = array[..., : case.plan.slots]
            elif hasattr(self._next, name):
                assert getattr(self._next, name).shape == array.shape
                getattr(self._next, name)[:] = array


def cases() -> list[Case]:
    random, found = np.random.default_rng(3), []
    for seed in range(60):
        grid = int(random.integers(2, 5)), int(random.integers(3, 6))
        cells, interval = grid[0] * grid[1], int(random.integers(-1, 8))
        kept = tuple(sorted(random.choice(cells, int(random.integers(0, cells - 3)), replace=False).tolist()))
        made = [
            lambda grid=grid, interval=interval: raster.next_token("x", grid, cfg_interval=interval),
            lambda grid=grid: row_ends.next_token("x", grid, 0),
            lambda grid=grid: raster.zipar("x", grid, 2, holes="masked"),
            lambda grid=grid, interval=interval: raster.zipar("x", grid, 2, cfg_interval=interval),
            lambda: regions.par("x", (4, 4), 4),
            lambda grid=grid: random_order.arpg("x", grid, 3),
            lambda grid=grid, kept=kept: random_order.arpg("x", grid, 3, kept=kept),
        ]
        schedule = made[seed % len(made)]()
        widest = max(step.width for step in schedule.steps)
        most = max(widest, *(len(step.targets) for step in schedule.steps)) if schedule.queries else widest
        widths = [None, (most,), tuple(sorted({1, 2, most})), (1, most + 3)][int(random.integers(4))]
        prompt = int(random.choice([0, 3])) if not schedule.queries else 0
        found.append(Case(schedule, widths, prompt, int(random.integers(1, 4)), bool(random.random() < 0.3), seed))
    return found


def tabled_for(case: Case, room: int = 0, *, own_mask: bool = False) -> tuple[TabledDecoding, GraphTable]:
    loop = GraphTable(case, room, own_mask=own_mask, one_mask=not case.prompt and not own_mask)
    return TabledDecoding(case.plan, case.known(), case.prefixes, case.drawing, loop, VOCABULARY), loop  # type: ignore[arg-type]


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.seed % 7}-{case.seed}")
def test_each_call_is_fed_what_the_host_feeds(case: Case) -> None:
    own_mask = case.seed % 7 == 0 and not case.prompt and case.seed % 2 == 0
    tabled, loop = tabled_for(case, room=case.seed % 3, own_mask=own_mask)
    host = TableDecoding(case.plan, case.known(), case.prefixes, case.drawing)
    while (shape := host.shape) is not None:
        assert tabled.shape == shape
        call, step = host.done, case.plan.steps[host.done]
        buffers = case.buffers(*shape)
        host.fill(buffers)
        case.sample(buffers)
        tabled.fill(buffers)
        tabled.run(NO_ENGINE, shape)
        host.store(buffers)
        tabled.store(buffers)
        assert not tabled.drawn(buffers).any()
        assert tabled.done == host.done
        fed, kept = loop.calls[call], step.target_rows
        for name in ("tokens", "positions", "write_index", "guidance", "query_positions"):
            np.testing.assert_array_equal(getattr(fed, name), getattr(buffers, name), err_msg=name)
        if not own_mask:
            rows = case.rows if case.prompt else 1
            np.testing.assert_array_equal(fed.mask[:rows], buffers.mask[:rows])
        numbers = "noise" if case.noise else "uniforms"
        np.testing.assert_array_equal(getattr(fed, numbers)[:, kept], getattr(buffers, numbers)[:, kept])
        np.testing.assert_array_equal(tabled.decided, host.decided)
        np.testing.assert_array_equal(tabled.known, host.known)
    assert tabled.shape is None


@pytest.mark.parametrize(("token", "call"), [(-1, 0), (-1, 4), (VOCABULARY, 0), (VOCABULARY + 3, 3)])
def test_what_is_no_token_is_told_with_its_call_and_image(token: int, call: int) -> None:
    """Also where the host looks later; and what no cell gets is none of its business."""
    case = Case(raster.zipar("x", (4, 4), 2), (1, 3), 0, 3, False, 5)
    tabled, loop = tabled_for(case)
    step = case.plan.steps[call]
    unused = next((row for row in range(step.width) if row not in step.target_rows), None)
    loop.spoilt = {call: (1, int(step.target_rows[-1]), token), call + 1: (2, 0, -1)}
    if unused is not None:
        loop.spoilt[call - 1] = (0, unused, -1)
    buffers = case.buffers(1, 0)
    tabled.fill(buffers)
    for _ in range(call + 3):
        loop.run()
    tabled.run(NO_ENGINE, (1, 0))
    assert tabled.done == call
    assert tabled.drawn(buffers).tolist() == [[0], [token], [0]]
    assert loop.known().min() >= 0
    assert loop.known()[:, : case.schedule.cells].max() < VOCABULARY


@pytest.fixture(scope="module")
def opened(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """LlamaGen's in fp16 and int8, for one image and three."""

    def make(path: Path) -> None:
        shutil.copytree(bundle, path)
        calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=2, check=0))
        for precision in ("fp16", "int8"):
            tensorrt.build(BuildJob(path, RTX, precision, schedules=["ntp", "zipar:4"], images=[1, 3]))

    return open_bundle(made_once(tmp_path_factory, "rtx-table.bundle", make))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_built_tables_wait_for_nobody(opened: Bundle, precision: str) -> None:
    identity = opened.engine(RTX, precision)
    between = load_layers(opened.path(identity["table_layers"]).read_bytes())
    shapes = [(one["images"], one["width"]) for one in identity["table_profiles"]]
    assert shapes == [(images, width) for images in (1, 3) for width in (1, 2, 3)]
    assert check_between(between, 6) is None
    assert {layer.kind for layer in between} == {"kgen"}
    assert not any("Half" in layer.types() for layer in between)
    assert opened.files[identity["table"]].bytes < 4e6  # no weights


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_tokens_are_those_of_the_same_engine_without_a_table(
    opened: Bundle, precision: str, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    found = []
    identity = opened.engine(RTX, precision)
    for one in (identity, {**identity, "table": None}):
        gpu = FakeGpu()
        library = fake_library(gpu, identity["library"].split()[1])
        library.trt.add(opened, identity)
        plain = replace(opened, image_tokenizer=None)
        with Runner(plain, TensorRTEngine(plain, one, library, gpu)) as runner:  # type: ignore[arg-type]
            made = runner.generate([3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0], schedule, guidance=2.0, batch=3)
        found.append((made.tokens.tolist(), made.passes.tolist(), gpu.launches))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] < found[1][2] / 4


def test_verify_and_inspect_name_it(opened: Bundle) -> None:
    lines: list[str] = []
    verify_bundle(opened.root, lines.append, target=RTX)
    assert (
        sum(bool(re.search(r": table: \d kernels between two calls, none of which waits", one)) for one in lines) == 2
    )
    identity = opened.engine(RTX, "fp16")
    assert calls_a_launch(identity) == "several calls a launch: steps of width 1, 2, 3"
    assert calls_a_launch({**identity, "table": None}) == (
        "1 call a launch (no schedule runs next-token decoding ahead on drafts)"
    )


def test_what_waits_for_the_host_is_found(opened: Bundle, tmp_path: Path) -> None:
    from arforge.engines.tensorrt_verify import verify_engine

    root = Path(shutil.copytree(opened.root, tmp_path / "copy.bundle"))
    copied = open_bundle(root)
    path = copied.path(copied.engine(RTX, "fp16")["table_layers"])
    path.write_text(path.read_text().replace('"kgen"', f'"{FROM_HOST}"', 1))
    entry = next(one for one in copied.engines if (one.target, one.precision) == (RTX, "fp16"))
    with pytest.raises(VerificationError, match=r"waits for the host\. Rebuild the engine with `arforge build"):
        verify_engine(copied, entry, lambda line: None)


def test_tables_beyond_what_fits_leave_the_calls_to_the_host(
    noise_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(noise_bundle)
    profiles = plan_profiles(opened, ["ntp"], [2], [])
    plan, reason = plan_table(opened, ["ntp"], [2], profiles)
    assert plan is not None
    assert reason is None
    noise, seen = 2 * 64 * 32 * 4, 64 * profiles.slots  # bytes
    monkeypatch.setattr(tensorrt_loop, "LARGEST_NOISE", noise - 1)
    refused = None, f"the noise of 2 images takes {noise} bytes, allowed are {noise - 1}"
    assert plan_table(opened, ["ntp"], [2], profiles) == refused
    monkeypatch.setattr(tensorrt_table, "LARGEST_TABLE", seen - 1)
    refused = None, f"what the inputs of its steps see takes {seen} bytes, allowed are {seen - 1}"
    assert plan_table(opened, ["ntp"], [2], profiles) == refused


def test_drafts_and_rows_that_start_by_themselves_have_no_table(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for name in ("jacobi:6", "zipar:adaptive=4"):
        profiles = plan_profiles(opened, [name], [1], [])
        assert plan_table(opened, [name], [1], profiles) == (None, "in no schedule are all steps settled beforehand")
