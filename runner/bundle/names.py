"""The names of files that arforge writes into a bundle: what has another name is somebody else's, and stays."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path

MANIFEST = "manifest.json"
TEXT_TOKENIZER = "text/tokenizer.json"
HASH = "[0-9a-f]{12}"
PRECISION = "(?:fp32|fp16|bf16|int8|int4)"
ENGINE = rf"engines/(?:onnxruntime|tensorrt|tensorrt-rtx)-{PRECISION}-\w+(?:\+\w+)*"
LOWERED = "(?:step-onnxruntime|step-tensorrt|decoder-tensorrt)"
PARTIAL = r"\.arforge-[0-9a-f]{16}\.partial"
SCRATCH = rf"\.{PARTIAL}\.\w+"  # onnx-ir's, for a file of that name
FOLDERS = rf"(?:graphs/{PRECISION}|{ENGINE})(?:/weights)?"
# Of builds and calibrations, which are cut off at times; graphs of fp32 come from the exporter alone, which writes all.
ADDED = "|".join(
    (
        rf"graphs/{PRECISION}/{LOWERED}-{HASH}\.onnx",
        rf"graphs/{PRECISION}/weights/{LOWERED}-{HASH}\.weights",
        r"graphs/(?:fp16|bf16|int8|int4)/(?:step|step-logits|step-noise)\.onnx",
        r"graphs/(?:fp16|bf16|int8|int4)/weights/model\.weights",
        r"graphs/int8/calibration\.json",
        rf"{ENGINE}/engine-{HASH}\.json",
        rf"{ENGINE}/step-{HASH}\.onnx",
        rf"{ENGINE}/weights/step-{HASH}\.weights",
        rf"{ENGINE}/(?:step|decoder)-{HASH}\.engine",
        rf"{ENGINE}/layers-{HASH}\.json",
        rf"{ENGINE}/(?:loop|table)-{HASH}\.(?:onnx|engine|json)",
        rf"{ENGINE}/timing-{HASH}\.cache(?:\.lock)?",
        rf"(?:{FOLDERS}/)?(?:{SCRATCH}/)?{PARTIAL}",
    )
)
EXPORTED = "|".join(
    (
        re.escape(MANIFEST),
        re.escape(TEXT_TOKENIZER),
        rf"graphs/{PRECISION}/[a-z-]+\.onnx",
        rf"graphs/{PRECISION}/weights/[a-z-]+\.weights",
        r"schedules/[^/]+\.schedule",
    )
)


def is_added(path: str) -> bool:
    """Whether a build or a calibration writes a file of that path below the bundle."""
    return re.fullmatch(ADDED, path) is not None


def is_folder(path: str) -> bool:
    """Whether arforge makes a folder of that path below the bundle, to put files into."""
    return re.fullmatch(f"{FOLDERS}(?:/{SCRATCH})?", path) is not None


def foreign(root: Path, listed: Container[str]) -> Iterator[str]:
    """Paths below `root` that neither its manifest lists nor arforge writes; links are not followed."""
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted((*files, *links)):
            path = (Path(folder) / name).relative_to(root).as_posix()
            if path not in listed and re.fullmatch(f"{EXPORTED}|{ADDED}", path) is None:
                yield path
