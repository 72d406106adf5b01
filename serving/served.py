"""The models of a service: each a bundle that is open, with a batcher of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from arforge.runner import Runner, open_bundle
from arforge.runner.batcher import Batch, Batcher
from arforge.runner.bundle import Bundle
from arforge.runner.canvas import nothing_known
from arforge.runner.errors import RequestError
from arforge.runner.request import Request
from arforge.runner.targets import default_precision
from arforge.serving.limits import Limits

Observe = Callable[[str, Batch], None]
"""Called with a model's name after each of its batches."""


@dataclass(frozen=True)
class Opening:
    """How bundles are opened."""

    target: str = "onnxruntime"
    precision: str | None = None
    threads: int | None = None
    look_every: int | None = None


@dataclass(frozen=True)
class Served:
    name: str
    runner: Runner
    batcher: Batcher

    @property
    def bundle(self) -> Bundle:
        return self.runner.bundle

    @property
    def takes_classes(self) -> bool:
        return self.bundle.model.condition.kind == "class"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of an image of the model's own grid."""
        rows, columns = self.bundle.model.grid
        return columns * self.downsampling, rows * self.downsampling

    @property
    def downsampling(self) -> int:
        assert self.bundle.image_tokenizer is not None
        return self.bundle.image_tokenizer.downsampling

    def subjects(self, prompt: str, images: int) -> dict[str, Any]:
        """Of a request: the prompt, or the class that it names or numbers. Raises RequestError for an empty one."""
        if not self.takes_classes:
            return {"prompts": [prompt] * images}
        word = prompt.strip()
        if not word:
            raise RequestError("the prompt is empty: this model draws classes, name one or give its number")
        return {"classes": [int(word) if word.isdecimal() and len(word) < 10 else word] * images}

    def grid_of(self, size: str, limits: Limits) -> tuple[int, int]:
        """Rows and columns of tokens of a size "WIDTHxHEIGHT", or of the model's own, "auto". Raises RequestError."""
        rows, columns = self.bundle.model.grid
        if size == "auto":
            return rows, columns
        width, cross, height = size.lower().partition("x")
        own = "{}x{}".format(*self.size)
        if not cross or not (width.isdecimal() and height.isdecimal() and len(size) < 14):
            raise RequestError(f"size {size!r} is no WIDTHxHEIGHT: use {own}, or auto")
        if int(width) * int(height) > limits.pixels:
            raise RequestError(f"size {size} has more than {limits.pixels} pixels, which is this service's limit")
        grid = int(height) // self.downsampling, int(width) // self.downsampling
        if int(height) % self.downsampling or int(width) % self.downsampling:
            raise RequestError(f"size {size} is not a whole number of {self.downsampling}-pixel tokens: use {own}")
        if grid != (rows, columns) and self.bundle.model.order != "random":
            raise RequestError(f"size {size}: this model makes {own} only")
        return grid

    def known(self, grid: tuple[int, int]) -> dict[str, Any]:
        """Of a request whose images have that grid: nothing, unless it is larger than the model's."""
        return {} if grid == self.bundle.model.grid else {"known": nothing_known(grid)}

    def facts(self) -> dict[str, Any]:
        """What a client may want to know."""
        model, sampler = self.bundle.model, self.bundle.sampler
        return {
            "family": model.family,
            "takes": "class" if self.takes_classes else "prompt",
            "classes": model.class_condition.classes if self.takes_classes else None,
            "labels": None if model.labels is None else list(model.labels),
            "size": "{}x{}".format(*self.size),
            "grid": "{}x{}".format(*model.grid),
            "edits": self.edits,
            "schedules": list(self.bundle.specifications),
            "guidance": sampler.guidance,
            "temperature": sampler.temperature,
            "top_k": sampler.top_k,
            "top_p": sampler.top_p,
        }

    @property
    def edits(self) -> bool:
        """Whether it can keep a part of an image."""
        return self.bundle.model.order == "random" and any(graph.name == "encoder" for graph in self.bundle.graphs)


Models = dict[str, Served]


@contextmanager
def opened(
    bundles: Sequence[Path], opening: Opening, limits: Limits, observe: Observe | None = None
) -> Iterator[Models]:
    """The bundles' models by name, that of the file without its ending; closed when the block ends, work done.

    Raises RequestError for a bundle without an image tokenizer or two of one name, and what `Runner.open` does.
    """
    models: Models = {}
    with ExitStack() as stack:
        for name, path in names_of(bundles).items():
            runner = stack.enter_context(
                Runner.open(path, opening.target, opening.precision, opening.threads, opening.look_every)
            )
            check_bundle(runner.bundle)
            seen = None if observe is None else partial(observe, name)
            batcher = stack.enter_context(Batcher(runner, limits.batch, limits.waiting, seen))
            models[name] = Served(name, runner, batcher)
        warm(models)
        yield models


def names_of(bundles: Sequence[Path]) -> dict[str, Path]:
    """The bundles by their models' names. Raises RequestError for two of one name."""
    found: dict[str, Path] = {}
    for path in bundles:
        name = path.resolve().name.removesuffix(".bundle")
        if name in found:
            raise RequestError(f"two bundles are called {name}: rename one of them")
        found[name] = path
    return found


def check_bundle(bundle: Bundle) -> None:
    """Raise RequestError for a bundle that makes no images."""
    if bundle.image_tokenizer is None:
        raise RequestError(f"{bundle.root} has no image tokenizer to answer with: export it with --tokenizer FILE")


def check_bundles(bundles: Sequence[Path], opening: Opening) -> None:
    """What `opened` would say of bundles, as far as it shows without loading an engine."""
    for path in names_of(bundles).values():
        bundle = open_bundle(path)
        check_bundle(bundle)
        precision = opening.precision or default_precision(opening.target, bundle.model.stored_precision)
        bundle.engine(opening.target, precision)


def warm(models: Models) -> None:
    """Draw one image of each class model, so that the first client does not wait for what is opened when first used."""
    for served in models.values():
        if served.takes_classes:
            served.batcher.submit(Request([0])).result()
