"""What a profile counts and derives; no test looks at how long anything took."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arforge.runner import RequestError, Runner, compile_schedule, open_bundle
from arforge.runner.plan import make_plan
from arforge.runner.profiling.operator_times import TracedEngine, read_trace
from arforge.runner.profiling.profile import (
    ScheduleProfile,
    Settings,
    TimedEngine,
    Traffic,
    against_first,
    calls_of,
    generate_once,
    profile_schedule,
    summary,
)
from arforge.runner.runner import open_engine


def profiled(path: Path, schedule: str, **settings: object) -> ScheduleProfile:
    bundle = open_bundle(path)
    engine = TimedEngine(open_engine(bundle, "onnxruntime", "fp32", 1))
    with Runner(bundle, engine) as runner:
        return profile_schedule(runner, engine, schedule, Settings(**settings))


def test_every_step_of_every_repeat_is_measured(bundle: Path) -> None:
    profile = profiled(bundle, "zipar:2", images=2, repeats=2, warm_ups=0)
    assert profile.total.shape == profile.engine.shape == (2, 28)
    assert (profile.total >= profile.engine).all()
    assert (profile.engine > 0).all()
    assert (profile.images, profile.rows) == (2, 4)
    assert profile.whole
    assert profile.image_seconds is not None


def test_a_profile_of_the_first_steps_stops_there(bundle: Path) -> None:
    profile = profiled(bundle, "ntp", max_steps=5, guidance=1.0, repeats=1)
    assert profile.total.shape == (1, 5)
    assert not profile.whole
    assert profile.image_seconds is None
    assert profile.rows == 1
    row = summary(profile, Traffic.of(open_bundle(bundle), "fp32", np.dtype(np.float32)), None)
    assert (row["steps"], row["measured_steps"]) == (64, 5)
    assert row["ms_per_image"] is row["images_per_second"] is row["bandwidth_share"] is None
    json.dumps(row, allow_nan=False)


def test_a_schedule_that_runs_ahead_says_how_it_got_on(bundle: Path) -> None:
    traffic = Traffic.of(open_bundle(bundle), "fp32", np.dtype(np.float32))
    row = summary(profiled(bundle, "jacobi:8", repeats=1), traffic, None)
    assert row["steps"] == row["measured_steps"] == len(row["step_widths"]) < 64
    assert row["steps_per_call"] == 64 / row["steps"]
    assert 0 < row["share_of_single_steps"] < 1
    assert set(row["step_widths"]) == set(range(1, 9)) & set(row["step_widths"])
    assert row["step_widths"][0] == 1
    assert "steps_per_call" not in summary(profiled(bundle, "ntp", repeats=1), traffic, None)
    over_zipar = summary(profiled(bundle, "zipar:6,jacobi=7", repeats=1), traffic, None)
    assert over_zipar["steps_per_call"] == 52 / over_zipar["steps"] > 1
    adaptive = summary(profiled(bundle, "zipar:adaptive=2", repeats=1), traffic, None)
    assert adaptive["steps"] == adaptive["measured_steps"] < 64
    assert adaptive["steps_per_call"] == 64 / adaptive["steps"]  # cells
    json.dumps([over_zipar, adaptive], allow_nan=False)


@pytest.mark.parametrize("name", ["images", "repeats", "max_steps"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name.replace('_', '-')} 0 is out of range: use 1 or more"):
        Settings(**{name: 0})


def test_figures_follow_from_the_measured_times() -> None:
    """Two generations of a schedule of four steps with known times."""
    schedule = compile_schedule("zipar:1", (2, 2))
    plan = make_plan(schedule, None)
    calls = calls_of(plan, [(1, 0)] * 4, done=(1, 2, 3, 4))
    assert [call.width for call in calls] == [1, 1, 1, 1]
    total = np.array([[1.0, 2.0, 3.0, 2.0], [3.0, 2.0, 1.0, 2.0]])
    profile = ScheduleProfile(
        schedule="zipar:1",
        calls=calls,
        whole=True,
        steps=4,
        done=(1, 2, 3, 4),
        images=2,
        rows=4,
        total=total,
        engine=total * 0.75,
        image_seconds=4.0,
        watts=10.0,
        sensors=None,
        prompts=np.zeros(2),
        first=total[:, 0],
        prompt_slots=0,
    )
    row = summary(profile, Traffic(weights=1000, slot=10, weight_count=7), bandwidth=4000.0)
    assert row["ms_per_step"] == {"median": 2000.0, "p95": 3000.0, "p99": 3000.0}
    assert row["ms_per_step_by_width"] == [{"width": 1, "steps": 4, **row["ms_per_step"]}]
    assert row["ms_per_image_tokens"] == 4000.0
    assert row["ms_per_image_decoder"] == 2000.0
    assert row["ms_per_image"] == 6000.0
    assert row["images_per_second"] == 2 / 12
    assert row["engine_share"] == 0.75
    assert row["runner_ms_per_step"] == 500.0
    live = [1, 2, 3, 4]
    assert row["cache_bytes_per_step"] == 4 * 10 * np.mean(live)
    assert row["bytes_per_second"] == (4 * 1000 + 4 * 10 * sum(live)) / 8
    assert row["bandwidth_share"] == row["bytes_per_second"] / 4000
    assert row["operations_per_second"] == 4 * 2 * 7 * 4 / 8
    assert row["watts"] == 10.0
    assert row["step_ms"] == [2000.0] * 4


def test_dead_slots_cost_nothing_in_the_count() -> None:
    calls = calls_of(make_plan(compile_schedule("ntp", (8, 8)), None), [(1, 0)] * 64, done=range(1, 65))
    traffic = Traffic(weights=0, slot=8, weight_count=0)
    assert [traffic.cache_bytes(call, 2) for call in calls] == [16 * (index + 1) for index in range(64)]


def test_traffic_is_read_off_the_manifest(bundle: Path, arpg_bundle: Path) -> None:
    for path, extra in ((bundle, 0), (arpg_bundle, 1)):
        opened = open_bundle(path)
        model = opened.model
        traffic = Traffic.of(opened, "fp32", np.dtype(np.float32))
        table = (model.vocabulary + model.class_condition.classes + 1 + extra) * model.config["dim"]
        assert traffic.weight_count == model.parameters - table
        assert traffic.slot == model.layers * 2 * model.config["dim"] * 4
        # float32 weights, the rotary tables, and what aligns them
        stored = (model.parameters - table) * 4
        assert stored <= traffic.weights <= stored * 1.2 + 4096 * 64


def test_queries_and_inputs_share_the_arithmetic() -> None:
    plan = make_plan(compile_schedule("arpg:4", (4, 6)), None)
    sizes = [(step.width, step.queries) for step in plan.steps]
    traffic = Traffic(weights=0, slot=0, weight_count=3)
    for step in calls_of(plan, sizes, done=(1, 2, 3, 4)):
        assert traffic.operations(step, 2) == 6 * (step.width + step.queries)


def test_saved_time_is_against_the_first_schedule() -> None:
    rows = [{"steps": 64, "ms_per_image_tokens": 10.0}, {"steps": 16, "ms_per_image_tokens": 4.0}]
    assert against_first(rows) == [
        {"steps_saved": 0.0, "time_saved": 0.0},
        {"steps_saved": 0.75, "time_saved": 0.6},
    ]


def test_operators_of_a_generation_are_those_of_its_steps(arpg_bundle: Path) -> None:
    opened = open_bundle(arpg_bundle)
    engine = TracedEngine.built(opened, "fp32", 1)
    with Runner(opened, engine) as runner:
        clock, _ = generate_once(runner, "arpg:6", Settings(max_steps=3))
        times = {row.operator: row for row in engine.times()}
    assert len(clock.ends) == 3
    assert times["Attention"].calls == 3 * opened.model.layers
    assert times["TensorScatter"].calls == 3 * 2 * opened.model.caches
    assert "If" not in times
    assert all(row.seconds > 0 for row in (times["MatMul"], times["Attention"]))


def test_traces_are_added_up_by_operator(tmp_path: Path) -> None:
    def event(operator: str, name: str, microseconds: int, cat: str = "Node") -> dict[str, object]:
        return {"cat": cat, "name": name, "dur": microseconds, "args": {"op_name": operator}}

    events = [
        event("MatMul", "a_kernel_time", 5),
        event("Add", "b_kernel_time", 90),
        event("MatMul", "c_kernel_time", 7),
        event("MatMul", "c_fence_before", 1000),
        event("If", "d_kernel_time", 1000),
        event("", "model_run", 1000, cat="Session"),
    ]
    (tmp_path / "t.json").write_text(json.dumps(events))
    found = [(row.operator, row.calls, round(row.seconds * 1e6)) for row in read_trace(tmp_path / "t.json")]
    assert found == [("Add", 1, 90), ("MatMul", 2, 12)]
