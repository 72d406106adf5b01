"""What rounding weights to 4 bits costs a demo model's logits: by the way of rounding, and by the layers.

python bench/rounding.py --bundle out/fashion.bundle --output bench/results/rounding.json [--schedule zipar:4]

Weights are rounded and made float32 again, in memory; activations and all else are float32. Calibration and comparison
have images of their own. Logits are guided, on the tokens that the float32 graph samples.

- nearest: what arforge does, the best of six scales a block.
- weighted: the same, errors weighted by how large each input is.
- activation-aware: inputs scaled by how large they are, to the best of eleven powers, before rounding to nearest (AWQ,
  arXiv 2306.00978); where a norm or the layer before can take the scale back.
- compensated: inputs one after another, those left make up for what was lost (GPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from arforge.calibration.agreement import Comparison
from arforge.calibration.layers import Layer, activations, find_layers
from arforge.calibration.quality.evaluation import environment
from arforge.calibration.requests import generate, held_out, spread
from arforge.calibration.smooth import find_folds
from arforge.calibration.taps import Arrays, PairedEngine, TappedEngine
from arforge.export.quantization import STEPS, block_size, dequantized, quantized, rounded
from arforge.export.stored_tensors import take_in
from arforge.export.wide_weights import load_wide
from arforge.runner import open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle

Matrix = NDArray[np.float32]
Rounding = Callable[[Matrix, NDArray[np.float64], int], Matrix]
"""A matrix [outputs, inputs], the Hessian [inputs, inputs] of its inputs and a block, to the matrix in 4 bits."""

DAMPING = 0.01  # of the Hessian's mean diagonal
POWERS = np.linspace(0, 1, 11)
GROUPS = {
    "queries, keys, values": ("wqkv",), "output of attention": (".wo",), "w1 and w3": (".w1", ".w3"), "w2": (".w2",),
    "first layer": ("layers.0.",), "last layer": ("layers.4.",), "head": ("output",),
}  # of the demo models, by parts of names  # fmt: skip


class Moments:
    """Of all inputs x of layers, by tensor: the sums of x xᵀ and of |x|, and how many."""

    def __init__(self) -> None:
        self.hessians: dict[str, NDArray[np.float64]] = {}
        self.sizes: dict[str, NDArray[np.float64]] = {}

    def __call__(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
            self.hessians[name] = self.hessians.get(name, 0) + rows.T @ rows
            self.sizes[name] = self.sizes.get(name, 0) + np.abs(rows).sum(axis=0)


def nearest(values: Matrix, _: NDArray[np.float64], block: int, bits: int = 4) -> Matrix:
    return dequantized(*quantized(values, bits, block), bits)


def weighted(values: Matrix, hessian: NDArray[np.float64], block: int) -> Matrix:
    blocks = values.reshape(len(values), -1, block)
    weights = np.diag(hessian).astype(np.float32).reshape(-1, block)
    largest = np.maximum(np.abs(blocks).max(axis=2), np.finfo(np.float32).tiny)
    tried = [largest / np.float32(steps) for steps in STEPS[4]]
    made = np.stack([rounded(blocks, scales, 4) * scales[..., None] for scales in tried])
    best = (np.square(made - blocks) * weights).sum(axis=3).argmin(axis=0)
    return np.take_along_axis(made, best[None, ..., None], axis=0)[0].reshape(values.shape)


def compensated(values: Matrix, hessian: NDArray[np.float64], block: int) -> Matrix:
    """With the scales of `nearest`; the inputs that are largest come first."""
    scales = quantized(values, 4, block)[1]
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)] + DAMPING * np.diag(hessian).mean() * np.eye(len(order))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left, made = values[:, order], np.empty_like(values)
    for at, place in enumerate(order):
        scale = scales[:, place // block]
        made[:, place] = rounded(left[:, at, None], scale, 4)[:, 0] * scale
        error = (left[:, at] - made[:, place]) / factor[at, at]
        left[:, at + 1 :] -= np.outer(error, factor[at, at + 1 :])
    return made


def activation_aware(
    weights: list[Matrix], hessian: NDArray[np.float64], sizes: NDArray[np.float64], block: int
) -> list[Matrix]:
    """Of all matrices that read one tensor, with the scale of the least squared error of their products."""
    best, least = weights, np.inf
    for power in POWERS:
        scale = (np.maximum(sizes / sizes.mean(), 1e-6) ** power).astype(np.float32)
        made = [nearest(values * scale, hessian, block) / scale for values in weights]
        error = sum(squared(found - values, hessian) for found, values in zip(made, weights, strict=True))
        if error < least:
            best, least = made, error
    return best


def squared(error: Matrix, hessian: NDArray[np.float64]) -> float:
    return float(((error @ hessian) * error).sum())


class Study:
    """A bundle's layers, what they read on some images, and other images to compare on."""

    def __init__(
        self, bundle: Bundle, schedule: str, guidance: float, samples: int, checked: int, threads: int
    ) -> None:
        self.bundle, self.schedule, self.threads = bundle, schedule, threads
        self.path = bundle.graph("step-logits", "fp32")
        self.model = load_wide(self.path)
        for tensor in self.model.graph.initializer:
            take_in(tensor, self.path.parent)
        self.layers = find_layers(self.model.graph)
        stored = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.weights = {
            layer.weight: np.ascontiguousarray(numpy_helper.to_array(stored[layer.weight]).T) for layer in self.layers
        }
        requests = spread(bundle, (schedule,), samples, 0, guidance, samples)
        self.unseen = held_out(requests, checked, bundle.model)
        self.seen = Moments()
        engine = TappedEngine(bundle, list(activations(self.layers)), self.seen, threads)
        dict(generate(bundle, engine, requests, "", lambda *_: None))

    def rounded(self, rounding: Rounding, block: int, chosen: Callable[[Layer], bool]) -> dict[str, Matrix]:
        """All matrices: of 8 bits, those of the `chosen` layers of 4."""
        return {
            layer.weight: rounding(self.weights[layer.weight], self.hessian(layer), self.block(layer, block))
            if chosen(layer)
            else nearest(self.weights[layer.weight], self.hessian(layer), self.block(layer, 256), bits=8)
            for layer in self.layers
        }

    def activation_aware(self, block: int) -> dict[str, Matrix]:
        made = self.rounded(nearest, block, self.inner)
        for fold in find_folds(self.model.graph, self.layers):
            layer = next(layer for layer in self.layers if layer.activation == fold.activation)
            if self.inner(layer):
                sizes, weights = self.seen.sizes[fold.activation], [self.weights[name] for name in fold.readers]
                found = activation_aware(weights, self.hessian(layer), sizes, self.block(layer, block))
                made |= dict(zip(fold.readers, found, strict=True))
        return made

    def inner(self, layer: Layer) -> bool:
        return layer is not self.layers[-1]

    def hessian(self, layer: Layer) -> NDArray[np.float64]:
        return self.seen.hessians[layer.activation]

    def block(self, layer: Layer, widest: int) -> int:
        found = block_size(layer.inputs, widest)
        assert found is not None
        return found

    def compare(self, made: Mapping[str, Matrix]) -> dict[str, float]:
        """With the float32 graph, on images that were not seen."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in made:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(made[tensor.name].T), tensor.name))
        session = open_session(self.path, self.threads, model.SerializeToString())
        follower = OnnxRuntimeEngine(self.bundle, "fp32", self.threads, graph="step-logits", session=session)
        comparison = Comparison(self.bundle, self.schedule)
        paired = PairedEngine(self.bundle, follower, comparison, self.threads)
        dict(generate(self.bundle, paired, self.unseen, "", lambda *_: None))
        found = comparison.result()
        return {"logit_error": round(found.logit_error, 4), "same_most_likely": round(found.top1, 4)}


def measure(study: Study) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def row(made: Mapping[str, Matrix], **facts: Any) -> None:
        rows.append({**facts, **study.compare(made)})
        print(json.dumps(rows[-1]), flush=True)

    row(study.rounded(nearest, 64, lambda _: False), rounding="nearest", four_bits="none", block=256)
    for block in (64, 32):
        for name, rounding in {"nearest": nearest, "weighted": weighted, "compensated": compensated}.items():
            row(study.rounded(rounding, block, study.inner), rounding=name, four_bits="all but the head", block=block)
        row(study.activation_aware(block), rounding="activation-aware", four_bits="all but the head", block=block)
    everything = study.rounded(nearest, 64, lambda _: True)
    row(everything, rounding="nearest", four_bits="all", block=64)
    total = sum(values.size for values in study.weights.values())
    for name, patterns in GROUPS.items():
        group = [layer for layer in study.layers if any(part in layer.name for part in patterns)]
        share = sum(study.weights[layer.weight].size for layer in group) / total
        made = study.rounded(nearest, 64, group.__contains__)
        row(made, rounding="nearest", four_bits=name, block=64, share_of_weights=round(share, 3))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--schedule", default="zipar:4")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--samples", type=int, default=64, help="Images that are calibrated with.")
    parser.add_argument("--checked", type=int, default=48, help="Other images, that are compared.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    study = Study(bundle, options.schedule, options.guidance, options.samples, options.checked, options.threads)
    facts = {
        "measure": "guided logits beside float32's on its tokens; products not named have 8 bits",
        "family": bundle.model.family,
        "checkpoint": bundle.provenance["checkpoint"]["sha256"],
        "command": " ".join(["python bench/rounding.py", *sys.argv[1:]]),
        **environment(),
        "threads": options.threads,
        "results": measure(study),
    }
    options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
