"""Real images on disk: a folder of files, or the array file of FID evaluators. Read in batches, never whole."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import EvaluationError, ImageError
from arforge.runner.image_file import image_size, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
ARRAY = "arr_0"
ARRAY_RULE = f"expected {ARRAY}, uint8 [images, height, width, 3], as `arforge run --npz` writes it"


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order."""

    path: Path
    count: int
    size: tuple[int, int]  # height, width
    files: tuple[Path, ...] | None  # of a folder, sorted; None for an array file

    def batches(self, batch: int) -> Iterator[NDArray[np.uint8]]:
        """All images, uint8 [up to `batch`, height, width, 3]; grey ones get three equal channels."""
        if self.files is None:
            yield from array_batches(self.path, batch)
            return
        for first in range(0, self.count, batch):
            yield np.stack([read_pixels(path, self.size) for path in self.files[first : first + batch]])


def open_image_set(path: Path) -> ImageSet:
    """Open a folder (searched recursively) or an `.npz`, reading sizes alone.

    Raises EvaluationError if there are no images, they differ in size, or the array is of another kind.
    """
    if path.is_dir():
        return open_folder(path)
    if not path.exists():
        raise EvaluationError(f"no images at {path}: name a folder of images, or an .npz file with {ARRAY}")
    count, height, width = array_shape(path)
    return ImageSet(path, count, (height, width), None)


def open_folder(folder: Path) -> ImageSet:
    files = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))
    if not files:
        raise EvaluationError(f"no images below {folder}: expected files named {', '.join(SUFFIXES)}")
    sizes = {path: header_size(path) for path in files}
    size = sizes[files[0]]
    for path, other in sizes.items():
        if other != size:
            raise EvaluationError(
                f"{path} is {other[0]}x{other[1]} (height x width), {files[0]} is {size[0]}x{size[1]}: "
                "bring all images to one size"
            )
    return ImageSet(folder, len(files), size, files)


def header_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from the header alone."""
    with evaluated(path):
        return image_size(path)


def read_pixels(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image file as uint8 [height, width, 3]; transparency is dropped."""
    with evaluated(path):
        pixels = read_image(path).pixels
    if pixels.shape[:2] != size:
        raise EvaluationError(f"the image {path} is not what its header says, {size[0]}x{size[1]}: write it again")
    return pixels


@contextmanager
def evaluated(path: Path) -> Iterator[None]:
    """What is wrong with an image file as an EvaluationError."""
    try:
        yield
    except ImageError as error:
        raise EvaluationError(f"cannot read the image {path}: {error.reason}. Remove it, or write it again") from error


def array_shape(path: Path) -> tuple[int, int, int]:
    """Images, height and width of an array file. Raises EvaluationError unless it is one."""
    with open_array(path) as file:
        return read_header(file, path)


def array_batches(path: Path, batch: int) -> Iterator[NDArray[np.uint8]]:
    """The array of an `.npz`, streamed: it may be larger than memory (50,000 images of 256x256 take 9.8 GB)."""
    with open_array(path) as file:
        count, height, width = read_header(file, path)
        for first in range(0, count, batch):
            shape = (min(batch, count - first), height, width, 3)
            try:
                content = file.read(math.prod(shape))
            except (OSError, zipfile.BadZipFile) as error:
                raise EvaluationError(f"{path} is damaged: {error}. Write it again") from error
            if len(content) != math.prod(shape):
                raise EvaluationError(f"{path} is cut short in image {first + len(content) // math.prod(shape[1:])}")
            yield np.frombuffer(content, np.uint8).reshape(shape)


def open_array(path: Path) -> BinaryIO:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} is neither a folder nor an .npz file ({error}): {ARRAY_RULE}") from error
    with archive:  # an open member keeps the file open
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if ARRAY not in names:
            raise EvaluationError(f"{path} holds {', '.join(names) or 'nothing'}: {ARRAY_RULE}")
        return archive.open(f"{ARRAY}.npy")  # type: ignore[return-value]


def read_header(file: BinaryIO, path: Path) -> tuple[int, int, int]:
    """Shape (images, height, width), leaving the file at the first pixel."""
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} is damaged: {error}. {ARRAY_RULE}") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
        order = " in Fortran order" if fortran else ""
        raise EvaluationError(f"{ARRAY} of {path} is {dtype} {list(shape)}{order}: {ARRAY_RULE}")
    if not min(shape):
        raise EvaluationError(f"{ARRAY} of {path} holds no images: its shape is {list(shape)}")
    return shape[0], shape[1], shape[2]
