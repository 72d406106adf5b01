"""How often a generated image is of its class, judged by the classifier that `train.py` made on real images.

    python examples/fashion/evaluate.py out/fashion.bundle --write

Finds the best guidance for the family's first schedule, then looks at the others there.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import data

from arforge.calibration.quality.classifier import Classifier
from arforge.runner import Runner
from arforge.runner.backends.onnxruntime_session import load_library
from arforge.version import VERSION

CHECKPOINTS = Path(__file__).parent / "checkpoints"
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
SCHEDULES = {
    "llamagen": ("ntp", "zipar:6", "zipar:4", "zipar:3", "zipar:2"),
    "par": ("par:4",),
    "arpg": ("arpg:8", "arpg:16", "arpg:32"),
}


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--samples", default=1000, show_default=True)
@click.option("--data", "folder", type=click.Path(path_type=Path), default=data.FOLDER, help="Folder of the data set.")
@click.option("--write", is_flag=True, help="Keep the figures beside the checkpoints.")
def main(bundle: Path, samples: int, folder: Path, write: bool) -> None:
    classifier = load_classifier()
    real, labels = data.load("t10k", folder)
    figures = {"real test images": classifier.hits(data.rgb(real), labels) / len(real)}
    click.echo(f"real test images  {figures['real test images']:.3f}")
    with Runner.open(bundle) as runner:

        def measure(schedule: str, guidance: float) -> float:
            share = class_accuracy(runner, classifier, samples, schedule, guidance)
            figures[f"{schedule}, guidance {guidance:g}"] = share
            click.echo(f"{schedule:10} guidance {guidance:3g}  {share:.3f}")
            return share

        family = runner.bundle.model.family
        first, *others = SCHEDULES[family]
        best = max(GUIDANCE, key=lambda guidance: measure(first, guidance))
        for schedule in others:
            measure(schedule, best)
    if write:
        facts = {
            "measure": "share of generated images that a classifier trained on real images assigns to their class",
            "samples": samples,
            "seeds": f"0 to {samples - 1}",
            "temperature": 1.0,
            "versions": {"arforge": VERSION, "onnxruntime": load_library().__version__},
            "best guidance": best,
            "figures": {name: round(value, 4) for name, value in figures.items()},
        }
        (CHECKPOINTS / f"{family}.figures.json").write_text(json.dumps(facts, indent=1) + "\n")


def load_classifier() -> Classifier:
    return Classifier(CHECKPOINTS / "classifier.onnx", (32, 32), len(data.CLASSES))


def class_accuracy(runner: Runner, classifier: Classifier, samples: int, schedule: str, guidance: float) -> float:
    """Share of `samples` images, going round the classes with seeds from 0 up, that get their class."""
    classes = [index % 10 for index in range(samples)]
    result = runner.generate(classes, schedule=schedule, guidance=guidance, temperature=1.0, batch=100)
    assert result.images is not None
    return classifier.hits(result.images, classes) / samples


if __name__ == "__main__":
    main()
