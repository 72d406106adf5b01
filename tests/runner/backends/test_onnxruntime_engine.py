from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine, check_identity, rounded_slots
from arforge.runner.backends.onnxruntime_session import load_library, open_session
from arforge.runner.step_graph import cache_names

LAYERS = 2


@pytest.fixture
def engine(bundle: Path) -> Iterator[OnnxRuntimeEngine]:
    opened = OnnxRuntimeEngine(open_bundle(bundle), "fp32", threads=1)
    yield opened
    opened.close()


def fill(engine: OnnxRuntimeEngine, width: int, slot: int) -> None:
    """Inputs of a step that writes `width` image tokens from `slot` on, each seeing itself and those before."""
    buffers = engine.buffers(width)
    buffers.tokens[:] = (np.arange(width) + slot) % 32
    buffers.positions[:] = 1 + (np.arange(width) + slot) % 64
    buffers.write_index[:] = slot
    buffers.mask[:] = np.arange(buffers.mask.shape[-1]) <= slot + np.arange(width)[:, None]
    buffers.uniforms[:] = 0.5


def addresses(engine: OnnxRuntimeEngine) -> list[int]:
    return [engine.cache(name).ctypes.data for name in cache_names(LAYERS)]


def test_caches_are_written_in_place_without_a_copy(
    engine: OnnxRuntimeEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.prepare(images=1, rows=2, slots=9, zero_slots=0)
    for name in cache_names(LAYERS):
        engine.cache(name)[:] = 0
    fill(engine, width=3, slot=4)
    before = addresses(engine)
    engine.run(3)
    assert addresses(engine) == before
    for name in cache_names(LAYERS):
        written = np.abs(engine.cache(name)).sum(axis=3) > 0
        assert written[:, :, 4:7].all()
        assert not written[:, :, :4].any()
        assert not written[:, :, 7:].any()
    assert capfd.readouterr().err == ""


def test_outputs_bound_elsewhere_leave_the_input_memory_alone(
    engine: OnnxRuntimeEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    """The counter-check: without shared memory the runtime copies the cache, and the test above would fail."""
    engine.prepare(images=1, rows=2, slots=9, zero_slots=0)
    for name in cache_names(LAYERS):
        engine.cache(name)[:] = 0
    fill(engine, width=3, slot=4)
    bound = engine._bound[3, 0, engine._live] = engine._bind(3, 0)
    elsewhere = {name: np.full_like(engine.cache(name), 7) for name in cache_names(LAYERS)}
    for name, array in elsewhere.items():
        bound.binding.bind_output(f"new_{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
    engine.run(3)
    for name, array in elsewhere.items():
        assert not engine.cache(name).any()
        assert np.abs(array[:, :, 4:7]).sum(axis=3).all()
        assert not array[:, :, :4].any()
    assert "TensorScatter" in capfd.readouterr().err


def test_a_generation_logs_no_warning(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Runner.open(bundle, threads=1) as runner:
        runner.generate([1, 2], schedule="zipar:2")
    assert capfd.readouterr().err == ""


def test_a_written_cache_keeps_what_earlier_steps_wrote(engine: OnnxRuntimeEngine) -> None:
    engine.prepare(images=2, rows=2, slots=6, zero_slots=0)
    fill(engine, width=2, slot=0)
    engine.run(2)
    first = {name: engine.cache(name)[:, :, :2].copy() for name in cache_names(LAYERS)}
    fill(engine, width=3, slot=2)
    engine.run(3)
    for name, expected in first.items():
        np.testing.assert_array_equal(engine.cache(name)[:, :, :2], expected)


def test_caches_are_allocated_once_for_requests_of_one_shape(bundle: Path) -> None:
    with Runner.open(bundle, threads=1) as runner:
        runner.generate([1, 2], schedule="zipar:2")
        engine: Any = runner._engine
        caches, buffers = addresses(engine), engine.buffers(1)
        runner.generate([3, 4], schedule="zipar:2")
        assert addresses(engine) == caches
        assert engine.buffers(1) is buffers
        runner.generate([3], schedule="ntp")
        assert addresses(engine) == caches  # a smaller shape uses the same memory


def test_a_larger_request_gets_larger_caches_and_the_right_tokens(bundle: Path, runner: Runner) -> None:
    expected = runner.generate([1, 2, 3], schedule="zipar:2").tokens
    with Runner.open(bundle, threads=1) as own:
        np.testing.assert_array_equal(own.generate([1], [0], schedule="zipar:2").tokens, expected[:1])
        np.testing.assert_array_equal(own.generate([1, 2, 3], schedule="zipar:2").tokens, expected)
        np.testing.assert_array_equal(own.generate([1, 2], schedule="zipar:2").tokens, expected[:2])


@pytest.mark.parametrize("images", [1, 3])
def test_zero_slots_stay_zero_through_other_shapes_and_schedules(bundle: Path, images: int) -> None:
    with Runner.open(bundle, threads=1) as runner:
        runner.generate([5] * 4, schedule="ntp")
        result = runner.generate([1] * images, schedule="zipar:2")
        zero_slots = runner.bundle.schedule("zipar:2").zero_slots
        engine: Any = runner._engine
        assert zero_slots > 0
        for name in cache_names(LAYERS):
            assert not engine.cache(name)[:, :, :zero_slots].any()
            assert engine.cache(name)[:, :, zero_slots:].any()
    with Runner.open(bundle, threads=1) as fresh:
        np.testing.assert_array_equal(fresh.generate([1] * images, schedule="zipar:2").tokens, result.tokens)


def test_prepare_clears_zero_slots_that_an_earlier_schedule_wrote(engine: OnnxRuntimeEngine) -> None:
    engine.prepare(images=1, rows=1, slots=5, zero_slots=0)
    for name in cache_names(LAYERS):
        engine.cache(name)[:] = np.nan
    engine.prepare(images=1, rows=1, slots=5, zero_slots=2)
    for name in cache_names(LAYERS):
        assert (engine.cache(name)[:, :, :2] == 0).all()


def test_logits_come_from_the_graph_for_verification(bundle: Path) -> None:
    engine = OnnxRuntimeEngine(open_bundle(bundle), "fp32", threads=1, graph="step-logits")
    engine.prepare(images=1, rows=2, slots=4, zero_slots=0)
    fill(engine, width=2, slot=0)
    engine.settings.temperature[:] = 0
    engine.run(2)
    buffers = engine.buffers(2)
    assert buffers.logits is not None
    assert buffers.logits.shape == (1, 2, 32)
    np.testing.assert_array_equal(buffers.next_tokens, buffers.logits.argmax(-1))
    engine.close()


def test_an_engine_that_is_not_built_names_the_command(bundle_copy: Path) -> None:
    from arforge.runner.bundle.writer import write_manifest

    write_manifest(bundle_copy, replace(open_bundle(bundle_copy), engines=()))
    message = r"\(built: none\). Build it: arforge build .* --target onnxruntime --precision fp32"
    with pytest.raises(EngineError, match=message):
        Runner.open(bundle_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph_sha256": "0" * 64}, "was built from another graph: rebuild it with `arforge build"),
        ({"graph": "graphs/fp32/other.onnx"}, "was built from another graph"),
        ({"graph": None}, "was built from another graph"),
        ({"graph": ["x"]}, "was built from another graph"),
        ({"widths": []}, r"lists widths \[\]: rebuild it"),
        ({"widths": [0]}, "lists widths"),
        ({"widths": [True]}, "lists widths"),
        ({"widths": "4"}, "lists widths"),
        ({"widths": [2.0]}, "lists widths"),
        ({"widths": [2, 66]}, r"lists widths \[2, 66\]"),  # the model has 65 positions
    ],
)
def test_an_identity_that_does_not_fit_asks_for_a_rebuild(bundle: Path, change: dict[str, Any], message: str) -> None:
    opened = open_bundle(bundle)
    identity = opened.engine("onnxruntime", "fp32")
    check_identity(opened, identity)
    with pytest.raises(EngineError, match=message):
        check_identity(opened, {**identity, **change})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"head_size": 1 << 20}, r"key_cache_0 has heads and head size \(4, 16\), the manifest says \(4, 1048576\)"),
        ({"kv_heads": 2}, r"key_cache_0 has heads and head size \(4, 16\), the manifest says \(2, 16\)"),
        ({"caches": 3}, r"(key|value)_cache_2 has heads and head size missing, the manifest says \(4, 16\)"),
        ({"caches": 1}, r"(key|value)_cache_1 has heads and head size \(4, 16\), the manifest says none"),
    ],
)
def test_a_graph_with_other_caches_than_the_manifest_says_is_refused(
    bundle: Path, facts: dict[str, int], message: str
) -> None:
    opened = open_bundle(bundle)
    lying = replace(opened, model=replace(opened.model, **facts))
    with pytest.raises(EngineError, match=message + ": export the bundle again"):
        OnnxRuntimeEngine(lying, "fp32", threads=1)


def test_a_graph_with_other_inputs_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    asking = replace(opened, model=replace(opened.model, queries=True))
    with pytest.raises(
        EngineError, match=r"input guidance is float32 \[images, width\], expected .*: export the bundle"
    ):
        OnnxRuntimeEngine(asking, "fp32", threads=1)


def test_extra_outputs_are_what_a_step_gave(bundle: Path) -> None:
    opened = open_bundle(bundle)
    path = opened.graph("step", "fp32")
    model = onnx.load(path, load_external_data=False)
    model.graph.output.append(onnx.helper.make_tensor_value_info("rms_norm", onnx.TensorProto.FLOAT, None))
    session = open_session(path, 1, model.SerializeToString())
    engine = OnnxRuntimeEngine(opened, "fp32", 1, session=session, extra_outputs=["rms_norm"])
    engine.prepare(images=1, rows=2, slots=9, zero_slots=0)
    seen = []
    for width, slot in ((2, 0), (3, 2), (2, 5)):
        fill(engine, width, slot)
        engine.run(width)
        found = engine.extra_outputs(width)
        assert list(found) == ["rms_norm"]
        assert found["rms_norm"].shape == (2, width, 64)
        seen.append(found["rms_norm"].copy())
    assert (seen[0] != seen[2]).any()
    engine.close()
    plain = OnnxRuntimeEngine(opened, "fp32", 1)
    plain.prepare(images=1, rows=2, slots=9, zero_slots=0)
    assert plain.extra_outputs(1) == {}
    plain.close()


def test_settings_and_buffers_begin_with_everything_off(engine: OnnxRuntimeEngine) -> None:
    engine.prepare(images=3, rows=6, slots=9, zero_slots=0)
    settings = [engine.settings.temperature, engine.settings.top_k, engine.settings.top_p]
    assert [array.tolist() for array in settings] == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert engine.settings.condition is None
    buffers = engine.buffers(2)
    assert (buffers.guidance == 1).all()
    shapes = {name: array.shape for name, array in vars(buffers).items() if array is not None}
    assert shapes == {
        "tokens": (6, 2),
        "positions": (6, 2),
        "write_index": (6,),
        "mask": (6, 1, 2, 9),
        **dict.fromkeys(("uniforms", "guidance", "next_tokens"), (3, 2)),
    }
    before = engine.settings
    engine.prepare(images=3, rows=6, slots=9, zero_slots=2)
    assert engine.settings is before
    assert engine.buffers(2) is buffers


def test_a_missing_library_names_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"onnxruntime is not installed: pip install 'arforge\[cpu\]'"):
        Runner.open(bundle)


@pytest.mark.parametrize("version", ["1.30.9", "0.99", "1.9.0"])
def test_a_library_that_is_too_old_names_the_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(EngineError, match=rf"onnxruntime {version} is too old: pip install 'onnxruntime>=1.31'"):
        load_library()


@pytest.mark.parametrize("version", ["1.31.0", "1.32.0.dev20260101", "2.0"])
def test_a_library_that_is_new_enough_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert load_library() is onnxruntime


def test_a_graph_that_the_runtime_refuses_is_named(bundle_copy: Path) -> None:
    path = bundle_copy / open_bundle(bundle_copy).engine("onnxruntime", "fp32")["graph"]
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(EngineError, match=r"cannot load .*/step-onnxruntime-\w+\.onnx: .*Export the bundle again"):
        Runner.open(bundle_copy)


@pytest.mark.parametrize("rows", [1, 4])
def test_caches_grow_with_the_steps_and_keep_what_was_written(
    bundle: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound a few slots at a time or all at once, caches and tokens are the same."""
    found: dict[int, tuple[dict[str, Any], list[int], list[int]]] = {}
    for growth in (1, 4, 1000):
        monkeypatch.setattr("arforge.runner.backends.onnxruntime_engine.GROWTH", growth)
        engine = OnnxRuntimeEngine(open_bundle(bundle), "fp32", threads=1)
        engine.prepare(images=rows, rows=rows, slots=22, zero_slots=2)
        live, tokens = [], []
        for slot, width in ((2, 1), (3, 3), (6, 1), (7, 1), (8, 9), (17, 1), (18, 4)):
            fill(engine, width, slot)
            engine.run(width)
            live.append(engine.cache("key_cache_0").shape[2])
            tokens += engine.buffers(width).next_tokens.ravel().tolist()
        found[growth] = ({name: engine.cache(name).copy() for name in cache_names(LAYERS)}, live, tokens)
        engine.close()
    assert found[1][1] == [3, 6, 7, 8, 17, 18, 22]
    assert found[4][1] == [4, 8, 8, 8, 20, 20, 22]
    assert found[1000][1] == 7 * [22]
    for growth in (1, 4):
        assert found[growth][2] == found[1000][2]
        for name, expected in found[1000][0].items():
            assert not found[growth][0][name][:, :, :2].any()
            np.testing.assert_allclose(found[growth][0][name], expected, rtol=1e-4, atol=1e-5)


def test_long_caches_grow_in_few_sizes() -> None:
    sizes = [rounded_slots(needed, 64) for needed in range(1, 8201)]
    assert all(0 <= size - needed < max(64, needed / 16) for needed, size in enumerate(sizes, 1))
    assert sorted(set(sizes))[30:35] == [1984, 2048, 2176, 2304, 2432]
    assert len(set(sizes)) == 65


def test_buffers_stay_where_they_are_while_caches_grow(engine: OnnxRuntimeEngine) -> None:
    engine.prepare(images=1, rows=2, slots=150, zero_slots=0)
    buffers = engine.buffers(1)
    for slot in (0, 63, 64, 149):
        fill(engine, 1, slot)
        engine.run(1)
        assert engine.buffers(1) is buffers
    assert engine.cache("key_cache_0").shape[2] == 150
    engine.prepare(images=1, rows=2, slots=150, zero_slots=0)
    assert engine.cache("key_cache_0").shape[2] == 64  # a new image begins small again


def test_steps_are_bound_once_for_all_generations_of_a_shape(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[tuple[int, int]] = []
    bind = OnnxRuntimeEngine._bind

    def counting(self: OnnxRuntimeEngine, width: int, queries: int) -> Any:
        bound.append((width, self._live))
        return bind(self, width, queries)

    monkeypatch.setattr(OnnxRuntimeEngine, "_bind", counting)
    with Runner.open(bundle, threads=1) as runner:
        first = runner.generate([1, 2], schedule="zipar:2")
        kinds = list(bound)
        assert (
            len(set(kinds)) == len(kinds) > len({width for width, _ in kinds})
        )  # before and after the caches have grown
        again = runner.generate([1, 2], schedule="zipar:2")
        assert bound == kinds
        runner.generate([1], schedule="zipar:2")
        assert bound == 2 * kinds  # of another shape
        other = runner.generate([1, 2], schedule="zipar:2")
        assert bound == 3 * kinds
    for found in (again, other):
        np.testing.assert_array_equal(found.tokens, first.tokens)
