"""What weights in blocks cost the demo models: logits beside float32's, and how often an image is of its class.

python bench/blocks.py --work FOLDER --output FILE.json [--family llamagen …] [--samples 500] [--threads 1]

Each case is an export of its own and the engine that `arforge build` makes of it. Logits are compared on the tokens
that the float32 graph samples; images have the same classes and seeds in every case.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arforge.calibration.agreement import Comparison
from arforge.calibration.requests import generate, spread
from arforge.calibration.taps import PairedEngine
from arforge.engines import onnxruntime
from arforge.engines.onnxruntime_attention import narrow_width
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.image_codec import OnnxRuntimeCodec
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle

EXAMPLE = Path(__file__).parent.parent / "examples" / "fashion"
CHECKPOINTS = EXAMPLE / "checkpoints"
SCHEDULES = {"llamagen": "zipar:4", "par": "par:4", "arpg": "arpg:16"}
GUIDANCE = {"llamagen": 2.0, "par": 2.0, "arpg": 6.0}
CASES: tuple[tuple[str, int | None], ...] = (
    ("fp32", None), ("bf16", None), ("int8", 128), ("int8", 32), ("int4", 128), ("int4", 64), ("int4", 32),
)  # fmt: skip
LIBRARIES = ("arforge", "onnxruntime", "onnx-ir", "numpy")
COMPARED = 24  # images whose logits are compared


def exported(family: str, precision: str, block: int | None, work: Path) -> Bundle:
    from arforge.export.config import read_config
    from arforge.export.exporter import ExportJob, export_bundle
    from arforge.export.families import FAMILIES

    bundle = work / f"{family}-{precision}-{block}.bundle"
    known = FAMILIES[family]
    job = ExportJob(
        known,
        read_config(CHECKPOINTS / f"{family}.json", known),
        CHECKPOINTS / f"{family}.safetensors",
        CHECKPOINTS / "tokenizer.safetensors" if precision == "fp32" else None,  # pictures are the reference's
        bundle,
        [SCHEDULES[family]],
        overwrite=True,
        precision=precision,  # type: ignore[arg-type]
        block=block,
    )
    export_bundle(job)
    onnxruntime.build(bundle, precision if precision.startswith("int") else "fp32")
    return open_bundle(bundle)


def logits(reference: Bundle, found: Bundle, schedule: str, threads: int) -> dict[str, float]:
    """How far the case's logits are from the reference's, and how often both find one token most likely."""
    precision = found.model.stored_precision
    source = found.graph("step-logits", "fp32")
    in_blocks = precision in ("int8", "int4")
    lowered = lower_for_onnxruntime(source, precision if in_blocks else "fp32", narrow_width(found.model), shared=True)
    path = write_model(lowered, source.parent, "step-logits-compared")[0]
    comparison = Comparison(reference, schedule)
    follower = OnnxRuntimeEngine(found, precision, threads, graph="step-logits", path=path)
    requests = spread(reference, (schedule,), COMPARED, 1000, 2.0, COMPARED)
    dict(generate(reference, PairedEngine(reference, follower, comparison, threads), requests, "", lambda *_: None))
    path.unlink()
    result = comparison.result()
    return {"logit_error": round(result.logit_error, 4), "same_most_likely": round(result.top1, 4)}


def measure(family: str, samples: int, work: Path, threads: int) -> list[dict[str, Any]]:
    sys.path.insert(0, str(EXAMPLE))
    from evaluate import load_classifier

    classifier, schedule = load_classifier(), SCHEDULES[family]
    rows: list[dict[str, Any]] = []
    reference = exported(family, "fp32", None, work)
    codec, classes = OnnxRuntimeCodec(reference, threads), [index % 10 for index in range(samples)]
    for precision, block in CASES:
        bundle = reference if precision == "fp32" else exported(family, precision, block, work)
        with Runner.open(bundle.root, threads=threads) as runner:
            settings = {"schedule": schedule, "guidance": GUIDANCE[family], "temperature": 1.0, "batch": 100}
            tokens = runner.generate(classes, **settings).tokens  # type: ignore[arg-type]
        images = codec.decode(tokens.reshape(samples, *reference.model.grid))
        accuracy = classifier.hits(images, classes) / samples
        size = bundle.files[bundle.stored_graph("step", "fp32").weights].bytes
        row = {"family": family, "schedule": schedule, "precision": precision, "block": block, "weights_bytes": size}
        rows.append({**row, **logits(reference, bundle, schedule, threads), "class_accuracy": round(accuracy, 4)})
        print(json.dumps(rows[-1]), flush=True)
        if bundle is not reference:
            shutil.rmtree(bundle.root)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--family", choices=SCHEDULES, action="append")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = [
        row
        for family in options.family or ["llamagen"]
        for row in measure(family, options.samples, options.work, options.threads)
    ]
    facts = {
        "measure": "share of images that a classifier of real ones assigns to their class; logits on float32's tokens",
        "samples": options.samples,
        "seeds": f"0 to {options.samples - 1}",
        "machine": f"{platform.machine()} CPU, {options.threads} threads",
        "versions": {name: version(name) for name in LIBRARIES},
        "results": found,
    }
    options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
