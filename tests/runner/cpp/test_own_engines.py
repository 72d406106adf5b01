"""Engines that run by arforge's own operators: beside the same without them, and what only they can."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from low_caches import always_quicker
from tiny import TEXT_CONFIG
from tiny_llama import GRIDS

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.runner import Runner
from arforge.runner.backends.kernels import OFF, PLACE
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import open_bundle
from arforge.runner.request import Subjects

FIRST = ("bundle", "par_bundle", "arpg_bundle", "text_bundle")
SEEDS = [9, 2**64 - 1, 6, 0]
TURNED = {"RotaryEmbedding", "TensorScatter", "Attention", "Transpose", "Split"}


@pytest.fixture(scope="module", params=[*FIRST, *GRIDS])
def root(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    kernels: Path,
    ids_bundles: Callable[[str], Path],
) -> Path:
    """A bundle with an int8 engine, whose caches are float32."""
    folder = tmp_path_factory.mktemp(request.param)
    source = ids_bundles(request.param) if request.param in GRIDS else request.getfixturevalue(request.param)
    made = Path(shutil.copytree(source, folder / "engine.bundle"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(kernels))
        onnxruntime.build(made, "int8", quantization="blocks")
    return made


def subjects(runner: Runner) -> dict[str, Any]:
    random = np.random.default_rng(0)
    kind = runner.bundle.model.condition.kind
    if kind == "class":
        return {"classes": [3, 1, 4, 1]}
    if kind == "features":
        return {
            "features": [random.standard_normal((1 + 2 * n, TEXT_CONFIG.caption_dim), np.float32) for n in range(4)]
        }
    ids = [np.arange(1, 1 + length) for length in (4, 17, 1, 9)]
    return {"ids": ids} | ({"unconditional": "image"} if runner.bundle.model.family == "emu3" else {})


def written(root: Path, kernels: str) -> Iterator[tuple[str, np.ndarray]]:
    """What the caches hold after a generation, by name, and the tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, kernels)
        bundle = open_bundle(root)
        engine = OnnxRuntimeEngine.built(bundle, "int8", threads=1)
        runner = Runner(bundle, engine)
        result = runner.generate(**subjects(runner), seeds=SEEDS, guidance=2.0, greedy=True, images=False)
        yield "tokens", result.tokens
        for name in [name for name in engine._caches if name.startswith("key")][:1]:
            yield name, engine.cache(name).copy()
        engine.close()


def test_it_computes_what_the_library_does(root: Path, kernels: Path) -> None:
    """Keys of the first layer do not depend on attention, so tokens that are equal have equal ones."""
    theirs, ours = dict(written(root, OFF)), dict(written(root, str(kernels)))
    same = (theirs["tokens"] == ours["tokens"]).mean()
    assert same > 0.9, same  # products in blocks round alike but for ties
    if same == 1:
        np.testing.assert_allclose(ours["key_cache_0"], theirs["key_cache_0"], atol=1e-4)


def test_a_layer_is_one_operator(root: Path) -> None:
    bundle = open_bundle(root)
    identity = bundle.engine("onnxruntime", "int8")
    graph = onnx.load(bundle.path(identity["own_graph"]), load_external_data=False).graph
    names = [node.op_type for node in graph.node]
    assert names.count("CachedAttention") == bundle.model.layers
    assert "TensorScatter" not in names
    assert "Attention" not in names
    if bundle.model.family in ("llamagen", "par", "arpg"):
        assert not TURNED & set(names)


@pytest.mark.usefixtures("on")
def test_both_languages_give_the_same_tokens(library: Any, root: Path) -> None:
    ours = cpp_abi.Runner(library, root, precision="int8", threads=1)
    with Runner.open(root, precision="int8", threads=1) as theirs:
        given = subjects(theirs)
        for schedule in theirs.bundle.specifications:
            asked = {**given, "seeds": SEEDS, "schedule": schedule}
            np.testing.assert_array_equal(ours.generate(**asked).tokens, theirs.generate(**asked).tokens)
    ours.close()


@pytest.fixture(scope="module", params=["bundle", "text_bundle"])
def low(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: Path) -> Path:
    """A bundle with an int8 engine, whose caches are 8 bits."""
    made = Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path_factory.mktemp("low") / "low.bundle"))
    given = None
    with pytest.MonkeyPatch.context() as patch:
        always_quicker(patch)
        patch.setenv(PLACE, str(kernels))
        if request.param == "text_bundle":
            features = np.random.default_rng(3).standard_normal((5, TEXT_CONFIG.caption_dim), np.float32)
            given = Subjects("features", (features,))
        onnxruntime.build(made, "int8", quantization="blocks", caches="int8", subjects=given)
    return made


@pytest.mark.usefixtures("on")
def test_caches_of_8_bits_go_with_rows_that_write_anywhere(library: Any, low: Path) -> None:
    """Images of a batch run ahead on drafts at paces of their own, and get next-token decoding's tokens."""
    ours = cpp_abi.Runner(library, low, precision="int8", threads=1)
    with Runner.open(low, precision="int8", threads=2) as runner:
        given = {**subjects(runner), "seeds": SEEDS}
        wanted = runner.generate(**given, schedule="ntp").tokens
        for window in (2, 4, 9):
            asked = {**given, "schedule": f"jacobi:{window}"}
            np.testing.assert_array_equal(runner.generate(**asked).tokens, wanted)
            np.testing.assert_array_equal(ours.generate(**asked).tokens, wanted)
        alone = runner.generate(**{name: one[:1] for name, one in given.items()}, schedule="ntp").tokens
        np.testing.assert_array_equal(alone[0], wanted[0])
    ours.close()


def test_without_kernels_the_same_engine_runs_by_the_library(
    low: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(low)
    plain = OnnxRuntimeEngine.built(bundle, "int8")
    monkeypatch.setenv(PLACE, str(kernels))
    own = OnnxRuntimeEngine.built(bundle, "int8")
    assert plain.has_low_caches(1)
    assert not own.has_low_caches(1)  # nothing to choose: they are all there is
    assert own.cache_type == np.int8
    for engine in (plain, own):
        engine.close()


def test_running_ahead_is_measured_with_caches_of_8_bits(
    bundle_copy: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, str(kernels))
    options = ("--precision", "int8", "--cache-precision", "int8", "--measure-jacobi")
    done = CliRunner().invoke(main, ["build", str(bundle_copy), *options])
    assert done.exit_code == 0, done.output
    identity = open_bundle(bundle_copy).engine("onnxruntime", "int8")
    assert {one["images"] for one in identity["jacobi"]} == {1, 8}
    monkeypatch.setenv(PLACE, OFF)
    theirs = OnnxRuntimeEngine.built(open_bundle(bundle_copy), "int8")
    assert ("exact_width" in identity) == bool(theirs.measured)  # what was measured counts where tokens are the same
    theirs.close()
