"""Requests and an engine for images of a batch that get on at paces of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny import TEXT_CONFIG
from tiny_ids import prompt_of

from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine

IMAGES = 5


def asked(kind: str) -> dict[str, Any]:
    """Five images of classes, ids or features, with settings of their own."""
    settings: dict[str, Any] = {"seeds": [5, 1, 9, 2, 5], "guidance": [1.0, 3.0, 1.0, 2.0, 5.0], "top_k": 12}
    random = np.random.default_rng(0)
    width = TEXT_CONFIG.caption_dim
    subjects: dict[str, Any] = {
        "classes": {"classes": list(range(IMAGES))},
        "ids": {"ids": [prompt_of(6 + 3 * index, seed=index) for index in range(IMAGES)]},
        "features": {"features": [0.5 * random.standard_normal((1 + 4 * n, width), np.float32) for n in range(IMAGES)]},
    }
    return {**settings, **subjects[kind]}


class OneMask(OnnxRuntimeEngine):
    """As TensorRT's engines of models of classes: all rows of a step must see the same slots."""

    one_mask = True

    def run(self, width: int, queries: int = 0) -> None:
        mask = self.buffers(width, queries).mask
        assert (mask == mask[:1]).all()
        super().run(width, queries)
