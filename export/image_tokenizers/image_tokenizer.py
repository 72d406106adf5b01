"""What the exporter needs to know of a kind of image tokenizer. Each kind's file says all of it, at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from torch import Tensor, nn


class Configuration(Protocol):
    """The dimensions of one image tokenizer."""

    @property
    def codebook_size(self) -> int:
        """Image tokens."""

    @property
    def codebook_width(self) -> int: ...

    @property
    def downsampling(self) -> int:
        """Pixels a token covers, a side."""


class ImageTokenizer(nn.Module, ABC):
    """The module of any kind."""

    def __init__(self, config: Configuration) -> None:
        super().__init__()
        self.downsampling = config.downsampling

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [images, height, width, 3] to int64 tokens [images, rows, columns]."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """The reverse of `encode`."""


C = TypeVar("C", bound=Configuration)


@dataclass(frozen=True)
class ImageTokenizerKind(Generic[C]):
    kind: Literal["vq"]
    title: str  # in messages
    sign: tuple[str, ...]  # parts of tensor names that its checkpoints have, all of them, and others do not
    infer: Callable[[Mapping[str, Sequence[int]]], C]
    """The dimensions, from the shapes of a checkpoint's tensors. Raises KeyError, ValueError, IndexError or
    ZeroDivisionError for the tensors of something else."""
    problem: Callable[[C], str | None]  # what keeps these dimensions from being a model, in words
    module: Callable[[C], ImageTokenizer]

    def fits(self, shapes: Mapping[str, object]) -> bool:
        """Whether tensors of these names show its signs."""
        return all(any(part in name for name in shapes) for part in self.sign)
