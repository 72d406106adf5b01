"""The runner inside a program of yours: several requests, progress, cancelling, errors.

    python examples/embed.py BUNDLE OUTPUT.png

Needs `arforge[cpu]` alone: no torch, no onnx.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from arforge.runner import ArforgeError, Cancelled, Request, Runner


def main(bundle: str, output: str) -> int:
    try:
        runner = Runner.open(bundle)
    except ArforgeError as error:  # every error of arforge says what was wrong and what to do
        print(error, file=sys.stderr)
        return 1
    with runner:
        # Settings are an image's own: one batch may mix requests, and each image is what it would be alone.
        mixed = Request(classes=[0, 1, 2], seeds=[7, 7, 7], guidance=[1.0, 2.0, 6.0], temperature=[1.0, 0.9, 0.0])
        steps: list[int] = []
        result = runner.generate(mixed, progress=lambda done, total: steps.append(done))
        print(f"{len(result.tokens)} images in {len(steps)} steps, {1000 * result.seconds:.0f} ms")

        alone = runner.generate(Request(classes=[1], seeds=[7], guidance=2.0, temperature=0.9))
        print("the second alone is the same:", bool((alone.tokens[0] == result.tokens[1]).all()))

        stop = threading.Event()
        try:
            runner.generate(mixed, progress=lambda done, total: stop.set() if done == 3 else None, cancel=stop)
        except Cancelled as error:  # the runner can be used on
            print(error)
        if result.images is not None:
            Image.fromarray(np.concatenate(list(result.images), axis=1)).save(Path(output))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
