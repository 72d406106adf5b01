"""What the exporter needs to know of a kind of image tokenizer. Each kind's file says all of it, at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from torch import Tensor, nn

from arforge.export.image_tokenizers.layout import Layout


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

    @property
    def encoder(self) -> bool:
        """Whether the checkpoint has what makes tokens of images."""


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


Shape = tuple[int, ...]
C = TypeVar("C", bound=Configuration)


@dataclass(frozen=True)
class ImageTokenizerKind(Generic[C]):
    kind: Literal["vq", "vision-vq"]
    title: str  # in messages
    sign: tuple[str, ...]  # parts of tensor names that its checkpoints have, all of them, and others do not
    infer: Callable[[Mapping[str, Sequence[int]], Layout], C]
    """The dimensions, from the shapes of a checkpoint's tensors and how it names them. Raises KeyError, ValueError,
    IndexError or ZeroDivisionError for the tensors of something else."""
    problem: Callable[[C], str | None]  # what keeps these dimensions from being a model, in words
    module: Callable[[C], ImageTokenizer]
    stored_shape: Callable[[str, Shape, Layout], Shape] = lambda name, shape, layout: shape
    """That of a module's parameter in a checkpoint."""
    parameter: Callable[[Tensor, Shape], Tensor] = Tensor.reshape
    """A parameter of that shape, from what a checkpoint stores."""

    def fits(self, names: Collection[str]) -> bool:
        """Whether tensors of these names show its signs."""
        return all(any(part in name for name in names) for part in self.sign)
