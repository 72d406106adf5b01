"""Time of a decoding step in each form of int8 on ONNX Runtime's CPU provider: blocks or rows, float32 or 8-bit caches.

python bench/int8_forms.py --bundle l.bundle --work FOLDER --output FILE.json [--width 1 …] [--slot 288 …] [--rounds 9]

Forms take turns in every round; × is the median over rounds of a form's time to that of blocks with float32 caches. One
image with guidance is two rows. `--errors SCHEDULE` compares logits with float32's instead, on the tokens that float32
samples, over whole images (`--images`); of a model that takes prompts with `--prompts FILE`, one a line, of which the
first six give the caches their scales and the others are drawn. Where arforge's kernels are at hand, there are graphs
with all of its operators too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import fill

from arforge.calibration.agreement import Comparison
from arforge.calibration.requests import generate, spread
from arforge.calibration.taps import PairedEngine
from arforge.engines.cache_trial import IMAGES, OTHERS, Calibrated, calibrate_caches
from arforge.engines.onnxruntime_attention import narrow_width
from arforge.engines.onnxruntime_caches import Scales
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime, share_weights
from arforge.engines.tensorrt_graph import write_model
from arforge.runner.backends.kernels import find_kernels
from arforge.runner.backends.onnxruntime_engine import FoldedGraph, OnnxRuntimeEngine
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.device import device_name, streaming_bandwidth
from arforge.runner.request import Subjects
from arforge.runner.text.prompts_file import read_prompts

FORMS = ("blocks", "rows")
SEEN = IMAGES + OTHERS
STEPS = 5  # in a row, of which the first does not count
LIBRARIES = ("arforge", "onnxruntime", "onnx-ir", "numpy")


class Forms:
    """Engines of every form, whose graphs lie in a folder."""

    def __init__(self, bundle: Bundle, graph: str, work: Path, threads: int, seen: Subjects | None) -> None:
        self.bundle, self.graph, self.threads = bundle, graph, threads
        source, narrow = bundle.graph(graph, "fp32"), narrow_width(bundle.model)
        own = bundle.model.positions == "sequence"
        plain = {
            form: write_model(lower_for_onnxruntime(source, "int8", narrow, rows=form == "rows"), work / form, graph)[0]
            for form in FORMS
        }
        engine = OnnxRuntimeEngine(bundle, "int8", threads, graph=graph, path=plain["blocks"])
        self.found: Calibrated = calibrate_caches(bundle, engine, seen)
        engine.close()
        self.paths: dict[str, tuple[Path, FoldedGraph | None]] = {}
        for form, path in plain.items():
            folded = lower_for_onnxruntime(
                source, "int8", narrow, rows=form == "rows", scales=self.found.scales, own_positions=own
            )
            share_weights(folded, path)
            low = write_model(folded, work / form, graph)[0]
            self.paths[form] = path, None
            self.paths[f"{form}, 8-bit caches"] = path, FoldedGraph(low, bundle.model.position_rows)
            kinds: dict[str, Scales] = {} if find_kernels() is None else {"": {}, ", 8-bit caches": self.found.scales}
            for kind, scales in kinds.items():
                made = lower_for_onnxruntime(source, "int8", narrow, rows=form == "rows", scales=scales, own=True)
                share_weights(made, path)
                self.paths[f"{form}, own operators{kind}"] = write_model(made, work / form, graph)[0], None

    def open(self, form: str) -> OnnxRuntimeEngine:
        path, folded = self.paths[form]
        return OnnxRuntimeEngine(self.bundle, "int8", self.threads, graph=self.graph, path=path, folded=folded)


def step_times(forms: Forms, images: int, slots: list[int], widths: list[int], rounds: int) -> list[dict[str, Any]]:
    engines = {form: forms.open(form) for form in forms.paths}
    rows: list[dict[str, Any]] = []
    for slot in slots:
        for width in widths:
            taken: dict[str, list[float]] = {form: [] for form in engines}
            end = slot + STEPS * width
            if end > forms.bundle.model.position_rows:
                continue  # so many steps do not follow
            for engine in engines.values():
                engine.prepare(images, 2 * images, end, zero_slots=end, lockstep=width)
            bandwidth = streaming_bandwidth(forms.threads)
            for turn in range(1 + rounds):
                for form, engine in engines.items():
                    seconds = [timed(engine, slot + step * width, width) for step in range(STEPS)]
                    if turn:
                        taken[form].append(1000 * statistics.median(seconds[1:]))
            first = taken[FORMS[0]]
            row: dict[str, Any] = {"images": images, "slot": slot, "width": width, "bytes_per_second": bandwidth}
            row["rounds_milliseconds"] = taken
            row["milliseconds"] = {form: statistics.median(times) for form, times in taken.items()}
            row["least_milliseconds"] = {form: min(times) for form, times in taken.items()}
            row["times_blocks"] = {
                form: statistics.median(one / other for one, other in zip(times, first, strict=True))
                for form, times in taken.items()
            }
            rows.append(row)
            print(f"{images} images, {slot} slots before, {width} tokens:", flush=True)
            for form, ratio in row["times_blocks"].items():
                least = row["least_milliseconds"][form]
                print(
                    f"  {form:22} {row['milliseconds'][form]:7.2f} ms, least {least:7.2f}  {ratio:5.2f} ×", flush=True
                )
    for engine in engines.values():
        engine.close()
    return rows


def timed(engine: OnnxRuntimeEngine, slot: int, width: int) -> float:
    fill(engine.buffers(width), slot, width)
    start = time.perf_counter()
    engine.run(width)
    return time.perf_counter() - start


def errors(forms: Forms, schedule: str, images: int, drawn: Subjects | None) -> list[dict[str, Any]]:
    rows = []
    for form in forms.paths:
        comparison = Comparison(forms.bundle, schedule)
        engine = PairedEngine(forms.bundle, forms.open(form), comparison, forms.threads)
        requests = spread(forms.bundle, (schedule,), images, 1000, 2.0, images, drawn)
        dict(generate(forms.bundle, engine, requests, "", lambda *_: None))
        found = comparison.result()
        rows.append({"form": form, "schedule": schedule, "tokens": found.tokens})
        rows[-1] |= {"logit_error": round(found.logit_error, 5), "same_most_likely": round(found.top1, 4)}
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for graphs, kept")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", action="append", type=int, help="tokens a row and step; default 1, 4, 24")
    parser.add_argument("--slot", action="append", type=int, help="tokens before; default half of an image")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--errors", action="append", metavar="SCHEDULE", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=Path)
    options = parser.parse_args()
    seen = drawn = None
    if options.prompts is not None:
        lines = tuple(read_prompts(options.prompts))
        seen, drawn = Subjects("prompts", lines[:SEEN]), Subjects("prompts", lines[SEEN:])
    bundle = open_bundle(options.bundle)
    forms = Forms(
        bundle, "step-logits" if options.errors else bundle.sampler.graph, options.work, options.threads, seen
    )
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {name: version(name) for name in LIBRARIES},
        "model": options.bundle.stem,
        "threads": options.threads,
        "caches": forms.found.to_json(),
    }
    if options.errors:
        figures["errors"] = [row for name in options.errors for row in errors(forms, name, options.images, drawn)]
    else:
        slots, widths = options.slot or [bundle.model.cells // 2], options.width or [1, 4, 24]
        figures["steps"] = step_times(forms, options.images, slots, widths, options.rounds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
