from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as runtime
import pytest
from click.testing import CliRunner

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.runner import EngineError, Runner, open_bundle

WEIGHTS = "graphs/fp32/weights/model.weights"


def test_building_records_what_the_engine_was_proven_with(bundle_copy: Path) -> None:
    built = onnxruntime.build(bundle_copy, widths=[8, 2, 8])
    opened = open_bundle(bundle_copy)
    opened.check_hashes()
    identity = opened.engine("onnxruntime", "fp32")
    assert identity == built.identity
    assert identity["widths"] == [2, 8]
    assert identity["library"] == f"onnxruntime {runtime.__version__}"
    assert identity["graph"].startswith("graphs/fp32/step-onnxruntime-")
    for part in ("graph", "source"):
        assert identity[f"{part}_sha256"] == opened.sha256(identity[part])
    assert built.load_seconds > 0


def test_a_graph_of_an_earlier_build_goes(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def graphs() -> list[str]:
        found = [path.relative_to(bundle_copy).as_posix() for path in bundle_copy.glob("graphs/fp32/step-onnx*")]
        assert found == [name for name in open_bundle(bundle_copy).files if "/step-onnx" in name]
        return found

    onnxruntime.build(bundle_copy)
    [before] = graphs()
    monkeypatch.setattr("arforge.engines.onnxruntime_attention.MOST", 7)
    onnxruntime.build(bundle_copy)
    [after] = graphs()
    assert after != before


def test_building_again_replaces_the_engine(bundle_copy: Path, runner: Runner) -> None:
    onnxruntime.build(bundle_copy, widths=[8])
    onnxruntime.build(bundle_copy)
    opened = open_bundle(bundle_copy)
    assert opened.engine("onnxruntime", "fp32")["widths"] is None
    assert len(opened.engines) == 1
    with Runner.open(bundle_copy) as rebuilt:
        np.testing.assert_array_equal(rebuilt.generate([3]).tokens, runner.generate([3]).tokens)


@pytest.mark.parametrize("precision", ["fp16", "int2", ""])
def test_a_precision_that_the_target_lacks_is_refused(bundle: Path, precision: str) -> None:
    with pytest.raises(EngineError, match=f"target onnxruntime has no precision '{precision}': use fp32"):
        onnxruntime.build(bundle, precision=precision)


@pytest.mark.parametrize("widths", [[0], [4, -1]])
def test_widths_below_one_are_refused(bundle: Path, widths: list[int]) -> None:
    with pytest.raises(EngineError, match="must all be at least 1"):
        onnxruntime.build(bundle, widths=widths)


@pytest.mark.parametrize("width", [1, 5])
def test_weights_that_give_no_numbers_are_refused_and_nothing_is_entered(bundle_copy: Path, width: int) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    path = bundle_copy / WEIGHTS
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(EngineError, match="gives non-finite values in key_cache_0: check the weights"):
        onnxruntime.build(bundle_copy, widths=[width])
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_weights_that_write_nothing_are_refused(bundle_copy: Path) -> None:
    path = bundle_copy / WEIGHTS
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(EngineError, match="does not update key_cache_0 in place"):
        onnxruntime.build(bundle_copy)


def test_a_width_that_the_graph_cannot_run_is_refused_when_building(bundle_copy: Path) -> None:
    """The runtime's rotary operator takes no more inputs than its table has rows: 1 + 64 here."""
    with pytest.raises(EngineError, match="66"):
        onnxruntime.build(bundle_copy, widths=[2, 66])


def test_an_engine_that_is_not_tried_is_the_same(bundle_copy: Path) -> None:
    wanted = onnxruntime.build(bundle_copy, "int8", quantization="blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "OnnxRuntimeEngine", None)  # nothing opens it
        done = CliRunner().invoke(main, ["build", str(bundle_copy), "--precision", "int8", "--no-trial"])
    assert done.exit_code == 0, done.output
    assert "not tried" in done.output
    assert open_bundle(bundle_copy).engine("onnxruntime", "int8") == wanted.identity
    with pytest.raises(EngineError, match="what is not opened is not measured"):
        onnxruntime.build(bundle_copy, measure_widths=True, trial=False)
