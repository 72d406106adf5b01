"""The TensorRT backend on real engines' graphs and identities, with ONNX Runtime in place of library and GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import RTX, FakeGpu, Opened
from numpy.typing import NDArray

from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.runner import EngineError, Request, Runner, open_bundle
from arforge.runner.backends import cuda
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.step_graph import cache_names


@pytest.fixture(scope="session")
def built(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """LlamaGen's for one and three images, with filters."""
    return build_copy(bundle, schedules=["ntp", "zipar:4"], images=[1, 3], filters=True)


@pytest.fixture(scope="session")
def built_arpg(arpg_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """ARPG's for two images, without filters."""
    return build_copy(arpg_bundle, schedules=["arpg:3"], images=[2])


SETTINGS = [
    {"guidance": 2.0},
    {"guidance": 1.0},
    {"guidance": 1.5, "temperature": 0.7, "top_k": 9},
    {"guidance": 3.0, "temperature": 1.3, "top_p": 0.8},
    {"guidance": 2.0, "greedy": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_tokens_and_images_are_those_of_onnxruntime(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], schedule: str, settings: dict[str, Any]
) -> None:
    mine, engine, gpu = open_fake(built)
    classes, seeds = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]
    expected = runner.generate(classes, seeds, schedule, **settings)
    for batch in (1, 2, 3, 32):  # 2 is filled up to 3, and so is what 32 leaves
        found = mine.generate(classes, seeds, schedule, batch=batch, **settings)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.images, expected.images)
    assert engine.captured
    assert gpu.launches > 0


@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_a_batch_of_mixed_settings_gives_each_image_what_onnxruntime_does(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], schedule: str
) -> None:
    mine, engine, _ = open_fake(built)
    request = Request(
        [3, 1, 4, 1, 5],
        [9, 2**64 - 1, 6, 5, 0],
        schedule,
        guidance=[1, 2.0, 1.5, 3.0, 1],
        temperature=[1.0, 0.7, 1, 1.3, 1],
        top_k=[0, 9, 0, 3, 0],
        top_p=[1, 1, 0.8, 0.9, 1],
        greedy=[False, False, False, False, True],
    )
    expected = runner.generate(request).tokens
    for batch in (1, 2, 3, 32):
        found = mine.generate(replace(request, batch=batch)).tokens
        np.testing.assert_array_equal(found, expected)
    assert engine.captured


def test_rows_that_see_different_slots_are_refused(built: Path, open_fake: Callable[..., Opened]) -> None:
    _, engine, _ = open_fake(built)
    for images, rows in ((3, 6), (2, 4), (2, 2)):  # of a batch that it was built for, and filled up to one
        engine.prepare(images, rows, 10, 0)
        buffers = engine.buffers(1)
        assert buffers.mask.shape == (rows, 1, 1, 10)
        buffers.mask[..., :3] = True
        engine.run(1)
        buffers.mask[rows - 1, ..., 2] = False
        with pytest.raises(
            EngineError, match=r"see different slots, and tensorrt-rtx \S+ has one mask for all: decode"
        ):
            engine.run(1)


def test_random_order_runs_on_pairs_of_widths_and_queries(
    built_arpg: Path, arpg_runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, _, _ = open_fake(built_arpg)
    for guidance in (1.0, 4.0):
        expected = arpg_runner.generate([0, 9, 5], schedule="arpg:3", guidance=guidance)
        found = mine.generate([0, 9, 5], schedule="arpg:3", guidance=guidance)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.images, expected.images)


def test_a_grid_that_the_decoder_was_not_built_for_is_decoded_by_onnxruntime(
    built_arpg: Path, arpg_runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, engine, _ = open_fake(built_arpg)
    tokens = np.arange(3 * 5 * 6).reshape(3, 5, 6) % 32
    expected = arpg_runner._codec.decode(tokens)
    np.testing.assert_array_equal(mine._codec.decode(tokens), expected)
    assert len(engine._loaded.library.trt.engines) == 1  # the step's alone
    np.testing.assert_array_equal(mine.encode(expected), arpg_runner.encode(expected))


def test_each_shape_is_captured_once_and_only_launched_after(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, engine, gpu = open_fake(built)
    engine_tokens = replace(mine.bundle, image_tokenizer=None)
    mine.bundle = engine_tokens  # no image decoder, whose program would count
    engine._tables._identity = {**engine.identity, "table": None}  # the host makes each call
    steps = len(mine.plan("zipar:4").steps)
    kinds = {(step.width, step.queries) for step in mine.plan("zipar:4").steps}
    mine.generate([1], schedule="zipar:4")
    assert gpu.launches == steps - len(kinds)  # the first of each shape runs as it is
    outside = len(gpu.copied)
    assert outside == 4 * len(kinds)  # in and out, once done and once captured
    addresses = {program: context_addresses(program) for program in engine._programs.values()}
    mine.generate([2], schedule="zipar:4")
    assert gpu.launches == 2 * steps - len(kinds)
    assert len(gpu.copied) == outside
    assert {program: context_addresses(program) for program in engine._programs.values()} == addresses


def context_addresses(program: Any) -> dict[str, int]:
    return dict(program._context.addresses)


def test_caches_stay_where_they_are_and_are_never_copied(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, engine, gpu = open_fake(built)
    mine.generate([1, 2, 3], schedule="zipar:4")
    model, slots = mine.bundle.model, engine.identity["slots"]
    size = 6 * model.kv_heads * slots * model.head_size * 4
    for program in engine._programs.values():
        bound = context_addresses(program)
        for name in cache_names(model.caches):
            assert bound[name] == bound[f"new_{name}"] == engine._caches.addresses[name]
            assert name not in program.inputs
    assert max(gpu.copied) < size
    assert len({*engine._caches.addresses.values()}) == 2 * model.caches


def test_the_caches_hold_what_onnxruntimes_do(built: Path, runner: Runner, open_fake: Callable[..., Opened]) -> None:
    mine, engine, _ = open_fake(built)
    for guidance in (2.0, 1.0):
        for one in (mine, runner):
            one.generate([4, 2], schedule="ntp", guidance=guidance)
        other = runner._live_engine()
        live = mine.plan("ntp").slots - 1
        for name in cache_names(mine.bundle.model.caches):
            found: NDArray[Any] = engine.cache(name)
            wanted = other.cache(name)
            assert found.shape == (*wanted.shape[:2], live + 1, wanted.shape[3])
            np.testing.assert_allclose(found[:, :, :live], wanted[:, :, :live], atol=1e-5)


def test_without_capture_it_runs_all_the_same(built: Path, runner: Runner, open_fake: Callable[..., Opened]) -> None:
    mine, engine, gpu = open_fake(built, capturable=False)
    np.testing.assert_array_equal(
        mine.generate([7], schedule="zipar:4").tokens, runner.generate([7], schedule="zipar:4").tokens
    )
    assert not engine.captured
    assert gpu.launches == 0


def test_compiled_kernels_are_kept(built: Path, open_fake: Callable[..., Opened], tmp_path: Path) -> None:
    open_fake(built)[0].close()
    (kept,) = (tmp_path / "kernels").iterdir()
    assert kept.name.startswith("step-")
    assert kept.name.endswith("-sm86.kernels")
    assert kept.read_bytes() == b"kernels"
    kept.write_bytes(b"kernels and more")
    open_fake(built)[0].close()
    assert kept.read_bytes() == b"kernels and more"
    kept.write_bytes(b"of another version")  # which the library refuses
    open_fake(built)[0].close()
    assert kept.read_bytes() == b"kernels"


def test_a_folder_that_cannot_be_written_is_no_hindrance(
    built: Path, open_fake: Callable[..., Opened], tmp_path: Path
) -> None:
    (tmp_path / "kernels").write_text("a file in the way")
    runner, _, _ = open_fake(built)
    runner.generate([1], schedule="zipar:4")
    runner.close()


def test_wishes_that_the_engine_was_not_built_for(
    built: Path, built_arpg: Path, open_fake: Callable[..., Opened]
) -> None:
    mine, engine, _ = open_fake(built)
    with pytest.raises(EngineError, match=r"schedule decodes 4 tokens in a step, the engine was built for widths"):
        mine.generate([1], schedule="zipar:2,holes=masked")
    with pytest.raises(
        EngineError, match=r"decodes up to 3 images together, not 4; rebuild it \(with --images\): `arf"
    ):
        engine.prepare(4, 8, 10, 0)
    with pytest.raises(EngineError, match=r"has 8\d cache slots, the schedule needs 900; rebuild it \(with --schedule"):
        engine.prepare(1, 2, 900, 0)
    other, random_order, _ = open_fake(built_arpg)
    with pytest.raises(EngineError, match=r"steps of 1 tokens and 1 queries; rebuild it \(with --schedule\)"):
        other.generate([1], schedule="arpg:24")
    random_order.prepare(1, 2, 10, 0)
    with pytest.raises(
        EngineError, match=r"not built for steps of 1 tokens and 5 queries; rebuild it \(with --schedule"
    ):
        random_order.buffers(1, 5)
    for limits in ({"top_k": 3}, {"top_k": [0, 3]}, {"top_p": [1.0, 0.5]}):
        with pytest.raises(EngineError, match=r"built without top-k and top-p; rebuild it \(with --filters\)"):
            other.generate([1, 2], schedule="arpg:3", **limits)


def test_the_engine_for_this_gpu_is_chosen(built: Path, open_fake: Callable[..., Opened], tmp_path: Path) -> None:
    path = Path(shutil.copytree(built, tmp_path / "two.bundle"))
    tensorrt.build(BuildJob(path, RTX, "fp32", ["12.0"], ["ntp"]))
    identities = open_bundle(path).identities(RTX, "fp32")
    assert [identity["compute_capabilities"] for identity in identities] == [[], ["12.0"]]
    assert open_fake(path, compute_capability="8.9")[1].identity["compute_capabilities"] == []
    with pytest.raises(EngineError, match="built for compute capability 8.6 and later, here is .* 7.5: rebuild it"):
        open_fake(path, compute_capability="7.5")


def test_a_library_that_refuses_or_fails_is_quoted(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, engine, _ = open_fake(built)
    mine.generate([1], schedule="ntp")
    engine._loaded.library.trt.engines[0].failure = "out of registers"
    with pytest.raises(EngineError, match=r"tensorrt-rtx 1\..* failed in .*\.engine: out of registers"):
        mine.generate([1], schedule="zipar:4")
    engine._loaded.library.trt.known.clear()
    with pytest.raises(EngineError, match=r"cannot load .*\.engine: the file is not an engine"):
        TensorRTEngine(mine.bundle, engine.identity, engine._loaded.library, FakeGpu())  # type: ignore[arg-type]


def test_an_engine_that_copies_its_caches_is_refused(
    built: Path, open_fake: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_gpu import FakeEngine

    monkeypatch.setattr(FakeEngine, "get_aliased_input_tensor", lambda self, name: None)
    with pytest.raises(EngineError, match="does not update key_cache_0 in place; rebuild it"):
        open_fake(built)


def test_without_a_gpu_it_says_so(built: Path) -> None:
    if cuda.gpu_compute_capability() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match=r"no CUDA GPU here, or no driver .*: use --target onnxruntime"):
        Runner.open(built, target=RTX, precision="fp32")
    with pytest.raises(EngineError, match="has no tensorrt-rtx fp16 engine .*Build it: arforge build"):
        Runner.open(built, target=RTX, precision="fp16")
