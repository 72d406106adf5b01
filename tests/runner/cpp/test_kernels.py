"""Our own kernels in place of ONNX Runtime's products in blocks: what they compute, and both languages' tokens."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import onnx
import pytest
from cpp_paces import compare
from low_caches import always_quicker
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny import CONFIG, TEXT_CONFIG

from arforge.engines import onnxruntime
from arforge.engines.kernels import compiler
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import EngineError, Runner
from arforge.runner.backends.kernels import (
    OURS,
    PLACE,
    THEIRS,
    find_kernels,
    usual_place,
    with_kernels,
    worth_compiling,
)
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Precision, open_bundle
from arforge.runner.profiling.operator_times import TracedEngine

CLASSES, SEEDS = [3, 1, 4, 1], [9, 2**64 - 1, 6, 0]
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
SHAPES = [(8, 256, 512, 128), (8, 256, 300, 130), (8, 16, 80, 72), (4, 64, 256, 64), (4, 32, 96, 100), (4, 16, 48, 5)]


def model(
    bits: int, block: int, inputs: int, outputs: int, changes: dict[str, int] | None = None
) -> tuple[bytes, NDArray[np.float64]]:
    """A graph of one product from "x" to "y", and its weights [inputs, outputs]."""
    random = np.random.default_rng(bits * block + inputs)
    blocks = -(-inputs // block)
    codes = random.integers(0, 1 << bits, (outputs, blocks * block), np.uint8)
    scales = random.random((outputs, blocks), np.float32) / 100
    weights = (codes.astype(np.float64) - (1 << bits - 1)) * np.repeat(scales, block, axis=1)
    stored = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4} | (changes or {})
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **facts)
    tensors = {"codes": stored.reshape(outputs, blocks, -1), "scales": scales}
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "width", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    versions = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=versions, ir_version=11)
    return made.SerializeToString(), weights[:, :inputs].T


def product(content: bytes, rows: NDArray[np.float32], threads: int = 2) -> NDArray[np.float32]:
    given: NDArray[np.float32] = open_session(Path("product"), threads, content).run(None, {"x": rows})[0]
    return given


def rounded(rows: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    """Activations as they are multiplied: by blocks, the largest is code 127."""
    filled = np.zeros((*rows.shape[:-1], -(-rows.shape[-1] // block) * block))
    filled[..., : rows.shape[-1]] = rows
    parts = filled.reshape(*rows.shape[:-1], -1, block)
    scales = np.maximum(np.abs(parts).max(-1, keepdims=True), 1e-30) / 127
    return (np.rint(parts / scales) * scales).reshape(filled.shape)[..., : rows.shape[-1]]


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("bits", "block", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 6), (3, 5), (2, 40)])
def test_products_are_exact_but_for_rounded_activations(
    bits: int, block: int, inputs: int, outputs: int, shape: tuple[int, int]
) -> None:
    content, weights = model(bits, block, inputs, outputs)
    rows = np.random.default_rng(1).standard_normal((*shape, inputs), np.float32)
    found, expected = product(content, rows), rounded(rows, block) @ weights
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    whole = rows @ weights
    assert np.abs(found - whole).max() < 0.03 * np.abs(whole).max()


@pytest.mark.parametrize(("bits", "block", "inputs", "outputs"), SHAPES)
def test_they_are_the_librarys_but_for_the_order_of_sums(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, bits: int, block: int, inputs: int, outputs: int
) -> None:
    content, _ = model(bits, block, inputs, outputs)
    rows = np.random.default_rng(2).standard_normal((2, 7, inputs), np.float32)
    expected = product(content, rows)
    monkeypatch.setenv(PLACE, str(kernels))
    np.testing.assert_allclose(product(content, rows), expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("bits", "block"), [(8, 256), (8, 64), (4, 64)])
def test_a_row_has_the_same_bits_in_any_company(bits: int, block: int) -> None:
    content, _ = model(bits, block, 1024, 200)
    rows = np.random.default_rng(3).standard_normal((1, 48, 1024), np.float32)
    whole = product(content, rows)
    assert np.array_equal(product(content, rows, threads=1), whole)
    for width in range(1, 14):
        for first in (0, 48 - width):
            part = product(content, rows[:, first : first + width])
            assert np.array_equal(part, whole[:, first : first + width]), (width, first)
    assert np.array_equal(product(content, rows.reshape(12, 4, -1)), whole.reshape(12, 4, -1))


@pytest.mark.usefixtures("instructions")
def test_zeros_stay_zeros_and_what_is_no_number_shows_in_its_row_alone() -> None:
    content, weights = model(8, 256, 512, 70)
    rows = np.ones((1, 5, 512), np.float32)
    rows[0, 0], rows[0, 1, 300], rows[0, 3, 7], rows[0, 4] = 0, np.nan, -np.inf, 1e-42
    found = product(content, rows)
    assert not found[0, 0].any()
    assert np.isnan(found[0, [1, 3]]).all()
    np.testing.assert_allclose(found[0, 2], weights.sum(0), rtol=1e-4, atol=1e-4)
    assert np.isfinite(found[0, 4]).all()


@pytest.mark.parametrize(("bits", "block", "inputs", "outputs"), SHAPES)
def test_all_instructions_give_the_same_bits(on: Path, bits: int, block: int, inputs: int, outputs: int) -> None:
    choose = ctypes.CDLL(str(on)).arforge_kernels_choose
    content, _ = model(bits, block, inputs, outputs)
    rows = np.random.default_rng(4).standard_normal((2, 9, inputs), np.float32)
    found = [product(content, rows) for name in (b"AVX-VNNI", b"AVX-512 VNNI") if choose(name)]
    assert choose(b"none") == 0
    for one in found:
        assert np.array_equal(one, found[0])


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    "changes",
    [
        {"K": 0},
        {"K": 1024},
        {"K": -256},
        {"N": 71},
        {"N": 1 << 40},
        {"block_size": 24},
        {"block_size": 0},
        {"bits": 3},
    ],
)
def test_attributes_that_do_not_fit_are_one_error(changes: dict[str, int]) -> None:
    content, _ = model(8, 256, 512, 70, changes)
    with pytest.raises(EngineError, match="cannot load product"):
        product(content, np.ones((1, 1, 512), np.float32))


@pytest.mark.usefixtures("on")
def test_sizes_that_fit_but_for_multiples_of_2_to_the_64th_are_no_product() -> None:
    outputs = 140 * pow((1 << 56) - 1, -1, 1 << 64) % (1 << 64)  # times the blocks of so many inputs it is 140
    content, _ = model(8, 256, 512, 70, {"K": -256, "N": outputs})
    with pytest.raises(EngineError, match="not a product that the kernels know"):
        product(content, np.ones((1, 1, 512), np.float32))


@pytest.mark.usefixtures("on")
def test_rows_of_another_size_are_one_error() -> None:
    content, _ = model(8, 256, 512, 70)
    graph = onnx.load_from_string(content)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "inputs"
    with pytest.raises(Exception, match="rows of another size than the matrix takes"):
        product(graph.SerializeToString(), np.ones((1, 1, 256), np.float32))


def test_only_names_of_operators_change(bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "engine.bundle"))
    onnxruntime.build(root, "int8", quantization="blocks")
    graph = open_bundle(root).path(open_bundle(root).engine("onnxruntime", "int8")["graph"]).read_bytes()
    before, after = onnx.load_from_string(graph), onnx.load_from_string(with_kernels(graph) or b"")
    changed = [node for node in after.graph.node if node.op_type == OURS[2:].decode()]
    assert changed
    for node in changed:
        node.op_type = THEIRS[2:].decode()
    assert before == after
    assert with_kernels(open_bundle(root).graph("step", "fp32").read_bytes()) is None


def test_where_the_library_is_looked_for(kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_kernels() is None  # off in tests
    monkeypatch.setenv(PLACE, str(kernels))
    assert find_kernels() == kernels
    monkeypatch.setenv(PLACE, str(tmp_path / "none.so"))
    with pytest.raises(EngineError, match="compile it with `arforge kernels`, or set ARFORGE_KERNELS=off"):
        find_kernels()
    (tmp_path / "none.so").write_bytes(b"text")
    with pytest.raises(EngineError, match=r"none\.so is no library of arforge's kernels"):
        find_kernels()
    monkeypatch.delenv(PLACE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_kernels() is None
    usual_place().parent.mkdir()
    shutil.copy(kernels, usual_place())
    assert find_kernels() == usual_place()


@pytest.mark.parametrize("more", ["", "int arforge_kernels_generation() { return 1; }"])
def test_a_library_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    source = tmp_path / "old.c"
    source.write_text("int arforge_kernels_supported() { return 1; }\n" + more)
    call = [*compiler(), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "old.so")]
    subprocess.run(call, check=True)
    monkeypatch.setenv(PLACE, str(tmp_path / "old.so"))
    with pytest.raises(EngineError, match=r"old\.so has the operators of another version of arforge: compile it"):
        find_kernels()


def test_build_says_that_they_could_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "cpuinfo"
    information.write_text("flags\t\t: fpu avx2 avx512_vnni avx512_bitalg\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not worth_compiling(information)  # off
    monkeypatch.delenv(PLACE)
    assert worth_compiling(information)
    information.write_text("flags\t\t: fpu avx2 avx_vnni\n")
    assert worth_compiling(information)
    information.write_text("flags\t\t: fpu avx2\n")
    assert not worth_compiling(information)
    assert not worth_compiling(tmp_path / "none")


def test_the_command_compiles_and_says_what_it_lacks(onnxruntime_root: Path, tmp_path: Path) -> None:
    def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {name: value for name, value in os.environ.items() if name not in (PLACE, "ONNXRUNTIME_ROOT", "CXX")}
        command = [sys.executable, "-m", "arforge", "kernels", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=given | environment)

    asked = run()
    assert asked.returncode == 2
    assert "--headers FOLDER, or set ONNXRUNTIME_ROOT" in asked.stderr
    place = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert "has no onnxruntime_cxx_api.h: name the folder" in run("--headers", str(tmp_path), **place).stderr
    root = {"ONNXRUNTIME_ROOT": str(onnxruntime_root), **place}
    assert "no C++ compiler (none): install one, or set CXX" in run(CXX="none", **root).stderr
    failed = run(CXX="c++ --no-such-option", **root)
    assert failed.returncode == 1
    assert "no-such-option" in failed.stderr
    assert not list((tmp_path / "cache").rglob("*kernels*"))
    done = run(**root)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "cache/arforge").iterdir()] == [usual_place().name]
    assert str(tmp_path / "cache/arforge" / usual_place().name) in done.stdout


FORMS = ["bundle-int8", "bundle-int4", "par_bundle-int8", "arpg_bundle-int4", "text_bundle-int8", "bundle-int8-caches"]


@pytest.fixture(scope="module", params=FORMS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: Path) -> tuple[Path, str]:
    """A bundle with an engine of products in blocks, and its precision."""
    name, precision, *low = request.param.split("-")
    root = Path(shutil.copytree(request.getfixturevalue(name), tmp_path_factory.mktemp("kernels") / "engine.bundle"))
    with pytest.MonkeyPatch.context() as patch:
        always_quicker(patch)
        patch.setenv(PLACE, str(kernels))
        form = "blocks" if precision == "int8" else None
        onnxruntime.build(root, precision, quantization=form, caches="int8" if low else "fp32")
    return root, precision


def subjects(runner: Runner) -> dict[str, list[Any]]:
    """Of four images."""
    if runner.bundle.model.condition.kind == "class":
        return {"classes": CLASSES}
    random = np.random.default_rng(0)
    return {"features": [random.standard_normal((1 + 2 * n, TEXT_CONFIG.caption_dim), np.float32) for n in range(4)]}


@pytest.mark.usefixtures("on")
def test_tokens_are_pythons_with_kernels_in_both(library: Any, engine: tuple[Path, str]) -> None:
    root, precision = engine
    ours = cpp_abi.Runner(library, root, precision=precision, threads=1)
    with Runner.open(root, precision=precision, threads=1) as theirs:
        given = subjects(theirs)
        for schedule in theirs.bundle.specifications:
            for settings in ({}, {"greedy": True}):
                compare(ours, theirs, **given, seeds=SEEDS, schedule=schedule, **settings)
    ours.close()


@pytest.mark.usefixtures("on")
def test_an_image_does_not_depend_on_its_batch(engine: tuple[Path, str]) -> None:
    root, precision = engine
    with Runner.open(root, precision=precision, threads=2) as runner:
        ((name, given),) = subjects(runner).items()
        whole = runner.generate(**{name: given}, seeds=SEEDS).tokens
        for index, seed in enumerate(SEEDS):
            alone = runner.generate(**{name: [given[index]]}, seeds=[seed]).tokens
            np.testing.assert_array_equal(alone[0], whole[index])


@pytest.mark.usefixtures("on")
def test_a_profile_names_the_operator(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "engine.bundle"))
    onnxruntime.build(root, "int8", quantization="blocks")

    def operators() -> set[str]:
        engine = TracedEngine.built(open_bundle(root), "int8", 1)
        engine.prepare(1, 2, 4, 1)
        engine.buffers(1).write_index[:] = 1
        engine.run(1)
        names = {one.operator for one in engine.times()}
        engine.close()
        return names

    assert open_bundle(root).engine("onnxruntime", "int8")["library"].endswith(" with arforge's kernels")
    assert {"MatMulBlock"} == operators() & {"MatMulBlock", "MatMulNBits"}
    monkeypatch.setenv(PLACE, "off")
    assert {"MatMulNBits"} == operators() & {"MatMulBlock", "MatMulNBits"}


@pytest.fixture(scope="module", params=["int8", "int4"])
def stored(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored") / "stored.bundle"
    precision: Precision = request.param
    export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, None, root, ["zipar:2"], precision=precision))
    onnxruntime.build(root, precision)
    return root


@pytest.mark.usefixtures("kernels")
def test_kernels_allocate_nothing_and_are_clean_under_sanitizers(release: Any, sanitized: Any, stored: Path) -> None:
    said = output([release.program("allocations"), stored, "zipar:2"])
    assert said.splitlines() == ["28 steps, 28 runs, 0 allocations"] * 3
    assert "36 generations, 0 wrong" in output([sanitized.program("generations"), "threads", stored])


def output(command: list[Any]) -> str:
    words, environment = [str(word) for word in command], {**os.environ, PLACE: "", **SANITIZERS}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr
