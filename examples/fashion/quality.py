"""Measures every schedule of the demo models against real images, and writes docs/quality.

    python examples/fashion/quality.py sets       # real images as array files, also for `arforge evaluate`
    python examples/fashion/quality.py measure    # hours on two cores; a run that was cut off goes on
    python examples/fashion/quality.py int8       # what int8 costs: the same seeds once more
    python examples/fashion/quality.py int4       # and what weights of 4 bits cost
    python examples/fashion/quality.py time       # milliseconds an image, on an otherwise idle machine
    python examples/fashion/quality.py render     # the tables of docs/quality.md and its picture

`measure` takes whatever checkpoints are shipped: first the guidance of each family, then its schedules there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import blocks
import click
import data
import demo
import quality_page

from arforge.calibration.int8 import CalibrationJob as Calibration
from arforge.calibration.int8 import calibrate
from arforge.calibration.quality import evaluation as quality
from arforge.calibration.quality.classifier import Classifier
from arforge.calibration.quality.evaluation import DISTANCE, Samples
from arforge.calibration.quality.features import FeatureExtractor, feature_side
from arforge.calibration.quality.frechet import Gaussian, Moments, frechet_distance
from arforge.calibration.quality.image_set import ImageSet, open_image_set
from arforge.calibration.ranges import Rule
from arforge.engines import onnxruntime
from arforge.engines.low_precision import has_graphs
from arforge.engines.onnxruntime_job import QUANTIZATIONS
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import sha256_of
from arforge.runner.images import save_npz
from arforge.runner.request import Sampling, Subjects

DOCS = Path(__file__).parent.parent.parent / "docs"
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
GUIDANCE_SAMPLES = 1000
SAMPLES = 10_000
BATCH = 100
TIMED_IMAGES, TIMED_ROUNDS = 200, 3
ZIPAR_OPTIONS = (
    "first-row=windowed",
    "seed=nearest",
    "holes=masked",
    "seed=nearest,holes=masked",
    "first-row=windowed,seed=nearest,holes=masked",
)
# The first one of a family also finds its guidance.
SCHEDULES = {
    "llamagen": (
        *("ntp", "zipar:6", "zipar:4", "zipar:3", "zipar:2"),
        *(f"zipar:{window},{option}" for window in (2, 4) for option in ZIPAR_OPTIONS),
        *("jacobi:4", "zipar:4,jacobi=8", "zipar:adaptive=1", "zipar:adaptive=2"),
    ),
    "par": ("par:4",),
    "arpg": (
        *("arpg:64", "arpg:32", "arpg:16", "arpg:8", "arpg:4"),
        *(f"arpg:16,{option}" for option in ("ratio=cosine", "cfg=constant", "order=1", "groups=causal")),
        "arpg:8,groups=causal",
    ),
}
INT8 = {"llamagen": ("ntp", "zipar:2"), "par": ("par:4",), "arpg": ("arpg:8",)}
INT4 = {"llamagen": ("ntp", "zipar:2"), "par": ("par:4",), "arpg": ("arpg:8",)}
LOW_CACHES = "blocks, 8-bit caches"
CALIBRATED = 32  # images a schedule that the ranges of the static kind come from
OTHER_SEEDS = (10_000, 20_000)  # the first schedule again, for the spread of the measure
FLOORS = (0, 10_000, 20_000)  # where the training images that stand for a perfect generator start
TOKENIZED = "train-0"

FILE = click.option(
    "--json", "file", type=click.Path(path_type=Path), default=DOCS / "quality.json", help="The figures."
)
OUTPUT = click.option("--output", type=click.Path(path_type=Path), default=Path("out"), help="Bundles and image sets.")
FOLDER = click.option("--data", "folder", type=click.Path(path_type=Path), default=data.FOLDER, help="The data set.")


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--samples", default=SAMPLES, show_default=True, help="Training images a set.")
@OUTPUT
@FOLDER
def sets(samples: int, output: Path, folder: Path) -> None:
    """Test and training images as fashion-*.npz."""
    for images in real_sets(output, folder, samples).values():
        click.echo(f"{images.path}: {images.count} images")


@main.command()
@click.option("--samples", default=SAMPLES, show_default=True, help="Images a schedule, and training images.")
@click.option("--guidance-samples", default=GUIDANCE_SAMPLES, show_default=True)
@click.option("--family", "families", type=click.Choice(list(SCHEDULES)), multiple=True, help="[default: all shipped]")
@click.option("--schedule", "chosen", multiple=True, help="[default: all of the family]")
@click.option("--threads", type=int, help="CPU threads.  [default: one a core]")
@FILE
@OUTPUT
@FOLDER
def measure(
    samples: int,
    guidance_samples: int,
    families: tuple[str, ...],
    chosen: tuple[str, ...],
    threads: int | None,
    file: Path,
    output: Path,
    folder: Path,
) -> None:
    """Distances and class accuracies."""
    wanted = families or shipped()
    sets = real_sets(output, folder, samples)
    extractor = FeatureExtractor(feature_side(sets["test"].size), threads)
    reference = quality.gaussian_of(sets["test"], extractor)
    classifier = Classifier(demo.CHECKPOINTS / "classifier.onnx", sets["test"].size, len(data.CLASSES), threads)
    figures = start(file, extractor, sets["test"])
    if not figures["floor"] or figures["samples"] != samples:
        test, labels = data.load("t10k", folder)
        figures["class_accuracy_of_test_images"] = classifier.hits(data.rgb(test), labels) / len(labels)
        figures["samples"] = samples
        figures["floor"] = floors(sets, current_bundle(wanted[0], output), extractor, reference)
        quality.save_json(file, figures)
    for family in wanted:
        bundle = current_bundle(family, output)
        checkpoint = open_bundle(bundle).provenance["checkpoint"]["sha256"]
        with Runner.open(bundle, threads=threads) as runner:
            bench = Bench(runner, checkpoint, reference, extractor, classifier)
            first = SCHEDULES[family][0]
            jobs = [Measurement(first, guidance, guidance_samples) for guidance in GUIDANCE]
            for job in jobs:
                run_once(bench, job, figures, "guidance", file)
            best = quality_page.taken(figures["guidance"], family)
            jobs = [Measurement(schedule, best, samples) for schedule in SCHEDULES[family]]
            if family == "llamagen":
                jobs += [Measurement(first, best, samples, seed) for seed in OTHER_SEEDS]
            for job in jobs:
                if not chosen or job.schedule in chosen:
                    run_once(bench, job, figures, "schedules", file)


@dataclass(frozen=True)
class Measurement:
    schedule: str
    guidance: float
    samples: int
    first_seed: int = 0


@dataclass(frozen=True)
class Bench:
    """A model, and what its images are judged by."""

    runner: Runner
    checkpoint: str  # sha256
    reference: Gaussian
    extractor: FeatureExtractor
    classifier: Classifier
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the engine, beside the job's

    def row(self, job: Measurement) -> dict[str, Any]:
        """The job as it stands in the figures, without a result."""
        return {"family": self.runner.bundle.model.family, **self.facts, **asdict(job), "checkpoint": self.checkpoint}

    def run(self, job: Measurement) -> dict[str, Any]:
        sampling = Sampling(job.guidance, temperature=1.0, top_k=0, top_p=1.0)
        samples = Samples(
            job.samples, Subjects("classes", tuple(range(len(data.CLASSES)))), sampling, job.first_seed, BATCH
        )
        found = quality.evaluate_schedule(
            self.runner, job.schedule, samples, self.reference, self.extractor, self.classifier
        )
        # times of this long run are not kept: `time` takes them side by side
        return {name: value for name, value in found.to_json().items() if not name.startswith("ms_")}


# What a table has one row of: a measurement with other facts takes the place of the row.
IDENTITY = {
    "guidance": ("family", "schedule", "first_seed", "guidance"),
    "schedules": ("family", "schedule", "first_seed"),
    "int8": ("family", "schedule", "quantization"),
    "int4": ("family", "schedule", "bits", "block", "head_bits"),
}


def run_once(bench: Bench, job: Measurement, figures: dict[str, Any], table: str, file: Path) -> None:
    """Do a job unless its row is there."""
    wanted, rows = bench.row(job), figures[table]
    if any(wanted.items() <= row.items() for row in rows):
        return
    row = {**wanted, **bench.run(job)}
    click.echo(json.dumps(row))
    figures[table] = [old for old in rows if any(old[name] != row[name] for name in IDENTITY[table])] + [row]
    quality.save_json(file, figures)


@main.command()
@click.option("--threads", type=int, help="CPU threads.  [default: one a core]")
@click.option("--family", "families", type=click.Choice(list(SCHEDULES)), multiple=True, help="[default: all]")
@FILE
@OUTPUT
@FOLDER
def int8(threads: int | None, families: tuple[str, ...], file: Path, output: Path, folder: Path) -> None:
    """Every kind of int8 on the schedules measured in float32, with the same seeds and guidance."""
    figures = json.loads(file.read_text())
    sets = real_sets(output, folder, figures["samples"])
    extractor = FeatureExtractor(feature_side(sets["test"].size), threads)
    reference = quality.gaussian_of(sets["test"], extractor)
    classifier = Classifier(demo.CHECKPOINTS / "classifier.onnx", sets["test"].size, len(data.CLASSES), threads)
    figures.setdefault("int8", [])
    for family in families or INT8:
        bundle = current_bundle(family, output)
        checkpoint = open_bundle(bundle).provenance["checkpoint"]["sha256"]
        if not has_graphs(open_bundle(bundle), "int8"):
            calibrate(Calibration(bundle, Rule("max", 100.0), samples=CALIBRATED, check=0, threads=threads))
        for quantization in (*QUANTIZATIONS, LOW_CACHES):
            with open_int8(bundle, quantization, threads) as runner:
                bench = Bench(runner, checkpoint, reference, extractor, classifier, {"quantization": quantization})
                for row in quality_page.first_seeds(figures):
                    if row["family"] == family and row["schedule"] in INT8[family]:
                        job = Measurement(row["schedule"], row["guidance"], row["samples"])
                        run_once(bench, job, figures, "int8", file)


def open_int8(bundle: Path, quantization: str, threads: int | None) -> AbstractContextManager[Runner]:
    if quantization == LOW_CACHES:
        return blocks.open_with_low_caches(open_bundle(bundle), threads)
    onnxruntime.build(bundle, "int8", quantization=quantization)
    return Runner.open(bundle, precision="int8", threads=threads)


@main.command()
@click.option("--threads", type=int, help="CPU threads.  [default: one a core]")
@click.option("--family", "families", type=click.Choice(list(INT4)), multiple=True, help="[default: all]")
@click.option("--schedule", "chosen", multiple=True, help="[default: all of the family]")
@FILE
@OUTPUT
@FOLDER
def int4(
    threads: int | None, families: tuple[str, ...], chosen: tuple[str, ...], file: Path, output: Path, folder: Path
) -> None:
    """Weights in blocks of 4 bits on the schedules measured in float32, with the same seeds and guidance."""
    figures = json.loads(file.read_text())
    sets = real_sets(output, folder, figures["samples"])
    extractor = FeatureExtractor(feature_side(sets["test"].size), threads)
    reference = quality.gaussian_of(sets["test"], extractor)
    classifier = Classifier(demo.CHECKPOINTS / "classifier.onnx", sets["test"].size, len(data.CLASSES), threads)
    figures.setdefault("int4", [])
    for family in families or INT4:
        bundle = open_bundle(current_bundle(family, output))
        checkpoint = bundle.provenance["checkpoint"]["sha256"]
        for row in quality_page.first_seeds(figures):
            if row["family"] != family or row["schedule"] not in (chosen or INT4[family]):
                continue
            for case in blocks.INT4:
                with blocks.open_in_blocks(bundle, case, threads) as runner:
                    bench = Bench(runner, checkpoint, reference, extractor, classifier, asdict(case))
                    run_once(
                        bench, Measurement(row["schedule"], row["guidance"], row["samples"]), figures, "int4", file
                    )


@main.command(name="time")
@FILE
@OUTPUT
def take_time(file: Path, output: Path) -> None:
    """Milliseconds an image of every measured schedule, in rounds, so that a slow moment meets all alike."""
    figures = json.loads(file.read_text())
    rows = [row for row in figures["schedules"] if row["first_seed"] == 0]
    runners = {family: Runner.open(current_bundle(family, output)) for family in {row["family"] for row in rows}}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key(row): [] for row in rows}
    for turn in range(TIMED_ROUNDS + 1):
        for row in rows:
            classes = [index % len(data.CLASSES) for index in range(TIMED_IMAGES)]
            request = {"schedule": row["schedule"], "guidance": row["guidance"], "batch": BATCH}
            result = runners[row["family"]].generate(classes, **request)
            each = (1000 * result.seconds / len(classes), 1000 * result.image_seconds / len(classes))
            if turn > 0:  # the first round warms up
                times[key(row)].append(each)
    for row in rows:
        tokens, decoder = (statistics.median(part) for part in zip(*times[key(row)], strict=True))
        row |= {"ms_per_image": tokens + decoder, "ms_per_image_tokens": tokens, "ms_per_image_decoder": decoder}
        click.echo(f"{row['schedule']:50} {tokens:6.1f} + {decoder:.1f} ms")
    for runner in runners.values():
        runner.close()
    figures["timing"] = {
        **quality.environment(),
        "target": "onnxruntime",
        "precision": "fp32",
        "batch": BATCH,
        "rule": f"median of {TIMED_ROUNDS} rounds over all schedules, {TIMED_IMAGES} images a schedule and round",
    }
    quality.save_json(file, figures)


@main.command()
@FILE
def render(file: Path) -> None:
    """The tables between the marks of quality.md, and the picture, beside the figures."""
    order = [(family, schedule) for family, schedules in SCHEDULES.items() for schedule in schedules]
    quality_page.write_page(file, order)
    quality_page.write_picture(file)


def real_sets(output: Path, folder: Path, count: int) -> dict[str, ImageSet]:
    """The test images, and stretches of `count` training images, as array files in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    test, _ = data.load("t10k", folder)
    train, _ = data.load("train", folder)
    pieces = {"test": test} | {f"train-{first}": train[first : first + count] for first in FLOORS}
    sets = {}
    for name, images in pieces.items():
        if len(images) > 1:
            path = output / f"fashion-{name}.npz"
            save_npz(path, data.rgb(images))
            sets[name] = open_image_set(path)
    return sets


def start(file: Path, extractor: FeatureExtractor, reference: ImageSet) -> dict[str, Any]:
    """The figures so far; those of another extractor or reference are dropped."""
    facts = {
        "measure": quality.MEASURE,
        "features": extractor.facts(),
        "reference": {"set": "Fashion-MNIST test images, padded to 32x32", "images": reference.count},
    }
    kept = json.loads(file.read_text()) if file.exists() else {}
    if any(kept.get(name) != value for name, value in facts.items()):
        kept = {}
    empty: dict[str, Any] = {"samples": 0, "floor": [], "guidance": [], "schedules": []}
    return empty | kept | facts | quality.environment()


def floors(
    sets: dict[str, ImageSet], bundle: Path, extractor: FeatureExtractor, reference: Gaussian
) -> list[dict[str, Any]]:
    """Training images against the test images, as they are and through the tokenizer.

    The first is what a perfect generator of images would get, the second a perfect generator of tokens.
    """
    opened = open_bundle(bundle)
    encoder, decoder = (open_session(opened.graph(name, "fp32"), None) for name in ("encoder", "decoder"))
    found = []
    for name, images in sets.items():
        if name == "test":
            continue
        plain, coded = Moments(), Moments()
        for part in images.batches(BATCH):
            plain.add(extractor(part))
            if name == TOKENIZED:
                (tokens,) = encoder.run(["tokens"], {"images": part})
                coded.add(extractor(decoder.run(["images"], {"tokens": tokens})[0]))
        entries = {name: plain} | ({f"{name}, through the tokenizer": coded} if name == TOKENIZED else {})
        for what, moments in entries.items():
            distance = frechet_distance(moments.gaussian(), reference)
            found.append({"set": what, "images": images.count, DISTANCE: distance})
            click.echo(f"{what}: {distance:.3f}")
    return found


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["family"], row["schedule"]


def shipped() -> list[str]:
    return [family for family in SCHEDULES if (demo.CHECKPOINTS / f"{family}.safetensors").exists()]


def current_bundle(family: str, output: Path) -> Path:
    """A bundle in `output` of the shipped checkpoint; made where there is none."""
    checkpoint = sha256_of(demo.CHECKPOINTS / f"{family}.safetensors")
    for bundle in sorted(output.glob("*.bundle")):
        if open_bundle(bundle).provenance["checkpoint"]["sha256"] == checkpoint:
            return bundle
    return demo.compile_bundle(family, output)


if __name__ == "__main__":
    main()
