"""Calls an image by sampler and vocabulary, on a toy whose tokens depend on their neighbours.

python bench/samplers.py --output bench/results/samplers.json [--vocabulary 256 …] [--window 16 …] [--images 4]

Logits of a cell are products of random vectors of the tokens to the left, above, and above to the right, scaled until
the mean perplexity is `--perplexity` of the vocabulary. The runner's own decoding drafts and keeps; no engine runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import StepBuffers
from arforge.runner.decoding import Decoding, Drawing, JacobiDecoding, TableDecoding
from arforge.runner.device import device_name
from arforge.runner.plan import NO_PREFIXES, make_plan
from arforge.runner.randomness import Randomness
from arforge.runner.schedules.specification import compile_schedule

GRID = (12, 12)
WIDTH = 16  # numbers of a token's vectors


class Toy:
    """A model of neighbours in place of a decoder."""

    def __init__(self, vocabulary: int, share: float) -> None:
        random = np.random.default_rng(0)
        self.given = random.standard_normal((3, vocabulary, WIDTH)).astype(np.float32)
        self.heads = random.standard_normal((WIDTH, vocabulary)).astype(np.float32)
        self.scale = 1.0
        low, high = 1e-3, 4.0
        samples = random.integers(0, vocabulary, (64, 3))
        for _ in range(24):
            self.scale = (low + high) / 2
            logits = self.of(samples)
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            perplexity = float(np.exp(-(shares * np.log(shares + 1e-30)).sum(-1)).mean())
            low, high = (self.scale, high) if perplexity > share * vocabulary else (low, self.scale)

    def of(self, neighbours: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (cells, vocabulary) behind the tokens (cells, 3)."""
        state = sum(self.given[place][neighbours[:, place]] for place in range(3))
        logits: NDArray[np.float32] = self.scale * (state @ self.heads)
        return logits


def drawn(logits: NDArray[np.float32], buffers: StepBuffers) -> NDArray[np.int64]:
    """As the step graphs draw."""
    if buffers.noise is not None:
        return (logits - np.log(-np.log(buffers.noise[0]))).argmax(-1)
    assert buffers.uniforms is not None
    shares = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
    return (shares <= buffers.uniforms[0][:, None] * shares[:, -1:]).sum(-1)


def neighbours(buffers: StepBuffers, known: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens to the left, above, and above to the right of the cells that a call decides: (width, 3), else 0."""
    cells, columns = buffers.positions[0], GRID[1]  # an input at position p decides cell p
    row, column = np.divmod(cells, columns)
    places = (
        (cells - 1, column > 0),
        (cells - columns, row > 0),
        (cells - columns + 1, (row > 0) & (column < columns - 1)),
    )
    return np.stack([np.where(there, known[np.where(there, place, 0)], 0) for place, there in places], axis=1)


def made(width: int, slots: int, vocabulary: int, sampler: str) -> StepBuffers:
    """Memory of a call for one row."""
    random = {
        "uniforms": np.zeros((1, width), np.float32) if sampler == "uniform" else None,
        "noise": np.zeros((1, width, vocabulary), np.float32) if sampler == "noise" else None,
    }
    return StepBuffers(
        tokens=np.zeros((1, width), np.int64),
        positions=np.zeros((1, width), np.int64),
        write_index=np.zeros(1, np.int64),
        mask=np.zeros((1, 1, width, slots), np.bool_),
        guidance=np.zeros((1, width), np.float32),
        next_tokens=np.zeros((1, width), np.int64),
        **random,
    )


def decoded(toy: Toy, vocabulary: int, schedule: str, sampler: str, seed: int) -> tuple[list[int], int]:
    """The tokens of an image, and its calls."""
    plan, cells = make_plan(compile_schedule(schedule, GRID), None), GRID[0] * GRID[1]
    known = np.zeros((1, cells + 1), np.int64)
    drawing = Drawing(Randomness.of(np.array([seed], np.uint64), cells), np.ones(1))
    decoding: Decoding
    if plan.line is None:
        decoding = TableDecoding(plan, known, NO_PREFIXES, drawing)
    else:
        decoding = JacobiDecoding(plan, plan.line, known, NO_PREFIXES, drawing)
    while (shape := decoding.shape) is not None:
        buffers = made(shape[0], plan.slots, vocabulary, sampler)
        decoding.fill(buffers)
        buffers.next_tokens[0] = drawn(toy.of(neighbours(buffers, known[0])), buffers)
        decoding.store(buffers)
    return known[0, :cells].tolist(), int(decoding.passes[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, action="append", help="default: 256, 1024, 4096, 16384")
    parser.add_argument("--window", type=int, action="append", help="default: 4, 16, 32")
    parser.add_argument("--perplexity", type=float, default=0.3)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for vocabulary in arguments.vocabulary or (256, 1024, 4096, 16384):
        toy = Toy(vocabulary, arguments.perplexity)
        for sampler in ("uniform", "noise"):
            alone = [decoded(toy, vocabulary, "ntp", sampler, seed) for seed in range(arguments.images)]
            for window in arguments.window or (4, 16, 32):
                ahead = [
                    decoded(toy, vocabulary, f"jacobi:{window}", sampler, seed) for seed in range(arguments.images)
                ]
                if any(one[0] != other[0] for one, other in zip(alone, ahead, strict=True)):
                    raise SystemExit(f"jacobi:{window} gives other tokens than ntp")
                row = {"vocabulary": vocabulary, "sampler": sampler, "window": window}
                rows.append({**row, "calls": float(np.mean([calls for _, calls in ahead])), "of": alone[0][1]})
                print(json.dumps(rows[-1]), flush=True)
    figures = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {name: version(name) for name in ("arforge", "numpy")},
        "perplexity": arguments.perplexity,
        "images": arguments.images,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
