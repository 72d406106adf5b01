"""A model repository for Triton: bundles, their configurations, and the file that the Python backend loads."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arforge.runner.bundle import Bundle
from arforge.runner.bundle.writer import beside
from arforge.runner.errors import RequestError
from arforge.serving.triton.inputs import Tensor, inputs_of, outputs_of

VERSION = "1"
BUNDLE = "model.bundle"  # in the folder of the version
MODEL_FILE = Path(__file__).with_name("model.py")
STREAM = "_stream"  # behind the name of the model that gives partial images
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True)
class Model:
    """What the configuration of one model says."""

    name: str
    target: str
    precision: str
    threads: int | None = None  # CPU threads of each instance
    max_batch_size: int = 8  # images decoded at a time
    instances: int = 1
    waiting: int = 64  # requests that may wait
    timeout: float = 60.0  # seconds that they may wait; requests may ask for less
    prompts: str = "bytes"  # one of inputs.PROMPTS
    environment: Path | None = None  # a virtual environment that holds arforge, as the server sees it
    by_path: bool = False  # whether the bundle stays where it is
    stream: bool = False  # whether it gives partial images


def write_models(bundle: Bundle, model: Model, repository: Path, *, previews: bool) -> list[Path]:
    """Write a model into a repository, and with `previews` a second one that streams; returns their folders.

    A model appears whole or not at all. Raises RequestError for a name that is none or is taken, BundleError if a
    folder cannot be written.
    """
    if not NAME.fullmatch(model.name):
        raise RequestError(f"{model.name!r} cannot be a model's name: use letters, digits, '_', '-' and '.' (--name)")
    models = [model, replace(model, name=model.name + STREAM, stream=True)] if previews else [model]
    places = [repository / one.name for one in models]
    for place in places:
        if place.exists() or place.is_symlink():
            raise RequestError(f"{place} is there already: choose another --name or --output, or remove it")
    with beside(repository) as stage:
        for one in models:
            _write(bundle, one, stage / one.name, stage / models[0].name)
        repository.mkdir(exist_ok=True)
        for place in places:
            (stage / place.name).rename(place)
    return places


def config_text(bundle: Bundle, model: Model) -> str:
    """The configuration of a model, as config.pbtxt holds it."""
    own = {
        "bundle": str(bundle.root.resolve()) if model.by_path else BUNDLE,
        "target": model.target,
        "precision": model.precision,
        "threads": "" if model.threads is None else str(model.threads),
    }
    if model.environment is not None:
        own["EXECUTION_ENV_PATH"] = str(model.environment.absolute())
    kind = "KIND_CPU" if model.target == "onnxruntime" else "KIND_GPU"
    lines = [
        f"name: {quoted(model.name)}",
        'backend: "python"',
        f"max_batch_size: {model.max_batch_size}",
        *_tensors("input", inputs_of(bundle, model.prompts)),
        *_tensors("output", outputs_of(bundle, stream=model.stream)),
        f"instance_group [ {{ kind: {kind} count: {model.instances} }} ]",
        "# what waits is taken as soon as an instance is free: waiting for more gains nothing",
        "dynamic_batching {",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {round(model.timeout * 1e6)}",
        "    allow_timeout_override: true",
        f"    max_queue_size: {model.waiting}",
        "  }",
        "}",
        "# settings are request parameters, which Triton's response cache does not look at: leave it off",
        "response_cache { enable: false }",
        *(["model_transaction_policy { decoupled: true }"] if model.stream else []),
        *(f"parameters {{ key: {quoted(k)} value: {{ string_value: {quoted(v)} }} }}" for k, v in own.items()),
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    return f'"{text.translate(ESCAPES)}"'


def _tensors(what: str, tensors: Sequence[Tensor]) -> list[str]:
    """Python models are given each request by itself, so that lengths of its own keep none out of a batch."""
    lines = []
    for one in tensors:
        marks = " optional: true" if one.optional else ""
        marks += " allow_ragged_batch: true" if what == "input" and -1 in one.dims else ""
        dims = ", ".join(map(str, one.dims))
        lines.append(f"{what} [ {{ name: {quoted(one.name)} data_type: TYPE_{one.kind} dims: [ {dims} ]{marks} }} ]")
    return lines


def _write(bundle: Bundle, model: Model, folder: Path, first: Path) -> None:
    """One model; the files of a second one's bundle are those of the first's once more."""
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config_text(bundle, model), "utf-8")
    shutil.copyfile(MODEL_FILE, version / "model.py")
    if not model.by_path:
        source, copy = (bundle.root, shutil.copy2) if folder == first else (first / VERSION / BUNDLE, _linked)
        shutil.copytree(source, version / BUNDLE, copy_function=copy)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
