"""What an engine is said to take of memory, beside what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from made_once import made_once
from tiny import random_weights

from arforge.cli import main
from arforge.engines import onnxruntime, tensorrt
from arforge.engines.device_memory import estimate, told_memory
from arforge.engines.tensorrt import BuildJob
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY, LlamaGenConfig
from arforge.runner import EngineError, ScheduleError, open_bundle

RTX = "tensorrt-rtx"
WITHIN, BESIDE = 0.15, 24 << 20  # what the process takes: of the estimate, and bytes of the library's own
CONFIG = LlamaGenConfig(dim=512, n_layer=3, n_head=8, grid=(12, 12), vocab_size=2048, num_classes=10, multiple_of=64)
PROGRAM = """
import sys
from pathlib import Path
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.onnxruntime_session import load_library
from arforge.runner.request import Subjects
load_library()

def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) << 10

path, precision, images = sys.argv[1], sys.argv[2], int(sys.argv[3])
open_bundle(path)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the largest from now on
with Runner.open(path, precision=precision, threads=1) as runner:
    runner.generate([1] * images, schedule="zipar:2", batch=images, guidance=2.0)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def larger_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 45 MB of float32 weights, so that they are more than a library's own memory."""

    def make(path: Path) -> None:
        torch.save({"model": random_weights(CONFIG, seed=1)}, path.with_name("larger.pt"))
        export_bundle(ExportJob(FAMILY, CONFIG, path.with_name("larger.pt"), None, path, ("zipar:2",)))
        path.with_name("larger.pt").unlink()
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "larger.bundle", make)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
@pytest.mark.parametrize("images", [1, 16])
def test_a_process_takes_what_was_said(larger_bundle: Path, images: int) -> None:
    said = estimate(open_bundle(larger_bundle), "onnxruntime", "fp32", [images], ["zipar:2"])
    command = [sys.executable, "-c", PROGRAM, str(larger_bundle), "fp32", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "clear_refs" in done.stderr:
        pytest.skip("the system does not let a process forget its largest size")
    assert done.returncode == 0, done.stderr
    taken = int(done.stdout)
    assert abs(taken - said.total) <= WITHIN * said.total + BESIDE, (taken, said)
    if images > 1:
        assert said.caches > 2 * BESIDE  # which is what the test is about


def test_tensorrt_s_builder_names_what_was_said(larger_bundle: Path, tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copytree(larger_bundle, tmp_path / "copy.bundle"))
    said = estimate(open_bundle(path), RTX, "fp16", [1, 2], ["zipar:2"])
    assert said.built is None
    tensorrt.build(BuildJob(path, RTX, "fp16", ["8.6"], ["zipar:2"], images=[1, 2]))
    built = estimate(open_bundle(path), RTX, "fp16", [1, 2], ["zipar:2"])
    identity = open_bundle(path).engine(RTX, "fp16")
    assert built.built == identity["memory"]
    assert (built.slots, built.images) == (identity["slots"], 2)
    for one in (said, built):
        assert one.weights == pytest.approx(identity["memory"]["weights"], rel=WITHIN)
        assert one.activations == pytest.approx(identity["memory"]["activations"], rel=WITHIN)


def test_fewer_bits_and_images_take_less(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for target, precisions in (("onnxruntime", ("fp32", "int8", "int4")), (RTX, ("fp32", "fp16", "int8", "int4"))):
        weights = [estimate(opened, target, precision, [1], []).weights for precision in precisions]
        assert weights == sorted(weights, reverse=True)
        assert len(set(weights)) == len(weights)
    one, four = (estimate(opened, "onnxruntime", "fp32", [images], ["ntp"]) for images in (1, 4))
    assert four.caches == 4 * one.caches
    assert one.caches == 2 * 2 * 2 * 4 * one.slots * 16 * 4  # layers, keys and values, rows, heads, slots, size, bytes
    assert one.decoder > 0
    with pytest.raises(ScheduleError):
        estimate(opened, "onnxruntime", "fp32", [1], ["par:4"])
    with pytest.raises(EngineError):
        estimate(opened, RTX, "fp16", [0], [])


def test_inspect_shows_it(bundle: Path) -> None:
    words = ["inspect", str(bundle), "--memory", "--target", RTX, "--images", "1,4", "--schedule", "ntp"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert f"memory of a {RTX} fp16 engine, up to 4 images, 64 slots: " in result.output
    assert "  decoder  " in result.output
    facts = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)["memory"]
    assert facts["total"] == sum(facts[name] for name in ("weights", "caches", "activations", "decoder", "prompts"))
    refused = CliRunner().invoke(main, ["inspect", str(bundle), "--images", "4"])
    assert refused.exit_code == 2
    assert "go with --memory" in refused.stderr


def test_what_the_builder_does_not_name_is_none() -> None:
    assert told_memory(["Total Host Persistent Memory: 80 bytes", "Total Weights Memory: 5 bytes"]) is None
    lines = [f"Total Activation Memory: {size} bytes" for size in (7, 9, 8)]
    assert told_memory([*lines, "Total Weights Memory: 5 bytes"]) == {"weights": 5, "activations": 9}
