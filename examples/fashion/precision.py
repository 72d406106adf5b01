"""The number format of training."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def mixed() -> AbstractContextManager[object]:
    """bfloat16 products on processors with AVX-512; on others they are several times slower than float32's."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast("cpu", torch.bfloat16, enabled=wide)
