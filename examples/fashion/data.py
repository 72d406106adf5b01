"""Fashion-MNIST from Debian's `dataset-fashion-mnist` package, padded from 28×28 to 32×32."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load(split: str, folder: Path = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32] and labels int64 [n] of `split`: "train" (60,000) or "t10k" (10,000)."""
    paths = [folder / f"{split}-images-idx3-ubyte.gz", folder / f"{split}-labels-idx1-ubyte.gz"]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        sys.exit(f"missing {', '.join(missing)}: run `apt-get install dataset-fashion-mnist`, or pass --data FOLDER")
    images, labels = (np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8) for path in paths)
    images = images[16:].reshape(-1, 28, 28)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels[8:].astype(np.int64)


def rgb(images: np.ndarray) -> np.ndarray:
    """Grey uint8 [n, height, width] as the generators give it: three equal channels."""
    return np.repeat(images[..., None], 3, axis=-1)
