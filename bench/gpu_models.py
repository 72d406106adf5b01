"""The models of the GPU's checks, with random weights: a small one of every family, and one of full size."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from build_engines import export

from arforge.runner.bundle import open_bundle
from arforge.runner.conditions import sample_subjects
from arforge.runner.output import write_whole

SIZE = "llamagen:L:24x24"
DIMENSIONS: dict[str, Any] = {
    "dim": 256,
    "n_layer": 4,
    "n_head": 4,
    "grid": (8, 8),
    "vocab_size": 512,
    "multiple_of": 64,
}
OWN: dict[str, dict[str, Any]] = {
    "llamagen": {"num_classes": 10},
    "par": {"num_classes": 10},
    "arpg": {"num_classes": 10},
    "llamagen-t2i": {"caption_dim": 48, "caption_slots": 120},
    "janus": {"n_kv_head": 4, "words": 100100},
}
SCHEDULES = {"llamagen": ("ntp", "zipar:2"), "par": ("par:4",), "arpg": ("arpg:8",)}
USUAL = ("ntp", "zipar:2")


def schedules_of(family: str) -> tuple[str, ...]:
    return SCHEDULES.get(family, USUAL)


def make(name: str, work: Path) -> Path:
    """The bundle of a small model by its family, with a CPU engine, or of `size`; made where it is not there."""
    path = work / f"{name}.bundle"
    if path.exists():
        return path
    if name == "size":
        family, variant, grid = SIZE.split(":")
        rows, columns = (int(side) for side in grid.split("x"))
        return export(family, variant, (rows, columns), work).rename(path)
    import torch

    from arforge.engines import onnxruntime
    from arforge.export.exporter import ExportJob, export_bundle
    from arforge.export.families import FAMILIES

    family_ = FAMILIES[name]
    config = family_.config(**DIMENSIONS, **OWN[name])
    random = torch.Generator().manual_seed(1)
    weights = {part: drawn(part, shape, random) for part, shape in family_.checkpoint_shapes(config).items()}
    checkpoint = work / f"{name}.pt"
    write_whole(checkpoint, lambda file: torch.save(weights, file))
    made = work / f"{name}.made.bundle"
    shutil.rmtree(made, ignore_errors=True)
    export_bundle(ExportJob(family_, config, checkpoint, None, made, schedules_of(name)))
    onnxruntime.build(made)
    checkpoint.unlink()
    return made.rename(path)


def drawn(name: str, shape: tuple[int, ...], random: Any) -> Any:
    """Weights whose greedy tokens vary from cell to cell."""
    import torch

    values = torch.randn(shape, generator=random)
    if "norm" in name:
        return 1 + 0.1 * values
    if "uncond_embedding" in name:
        return values / shape[1] ** 0.5
    return values * (1.0 if "embedding" in name else 0.08)


def add_int8(root: Path, schedule: str) -> None:
    """The graph of int8 products, calibrated on little: its tokens are no measure of quality."""
    from arforge.calibration.int8 import CalibrationJob, calibrate
    from arforge.calibration.ranges import Rule
    from arforge.engines.low_precision import has_graphs

    bundle = open_bundle(root)
    if not has_graphs(bundle, "int8"):
        subjects = sample_subjects(bundle.model, 1)
        job = CalibrationJob(root, Rule("max", 100.0), [schedule], samples=1, check=0, smooth=0, subjects=subjects)
        calibrate(replace(job, batch=1))
