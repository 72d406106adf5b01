"""A module of one structure is traced by one process of a test session, and the others read the graph."""

from __future__ import annotations

import fcntl
import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

if TYPE_CHECKING:
    import pytest

PROGRAMS = Path(__file__).with_name("traced_programs")  # on the path of a program, it takes them from $TRACED


def trace_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is exported take the graphs of modules that were traced before: nothing in a test takes longer."""
    from arforge.export import step_graph, trace
    from arforge.export.image_tokenizers import graphs
    from arforge.export.text_encoders import text_encoder

    folder.mkdir(exist_ok=True)
    for module in (graphs, step_graph, text_encoder):
        monkeypatch.setattr(module, "trace", remembered(folder, trace.trace))


def remembered(folder: Path, trace: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    """`trace`, which keeps what it makes in the folder and reads it from there again."""

    def call(
        module: nn.Module, args: tuple[Any, ...], dynamic_shapes: tuple[Any, ...], *names: Sequence[str]
    ) -> ir.Model:
        with unset_fake_temporarily():
            name = structure((module, args, dynamic_shapes, names))
        if name is None:
            return trace(module, args, dynamic_shapes, *names)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():
                proto = ir.to_proto(trace(module, args, dynamic_shapes, *names))
                (folder / f"{name}.part").write_bytes(proto.SerializeToString())
                (folder / f"{name}.part").rename(folder / name)
        return read(folder / name)

    return call


def read(path: Path) -> ir.Model:
    """The graph as it was, whose constants have no types but in their values."""
    proto = onnx.ModelProto.FromString(path.read_bytes())
    model, typed = ir.from_proto(proto), {info.name for info in proto.graph.value_info}
    for name, value in model.graph.initializers.items():
        if name not in typed:
            value.type = value.shape = None
    return model


def structure(value: object) -> str | None:
    """A hash of all that tracing depends on: code by its name, tensors without values by shape and type.

    None where some of it has no name, such as a function inside another.
    """
    written = io.BytesIO()
    try:
        Structure(written).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


class Structure(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.fast = True  # objects that are equal are one
        self.tensors: dict[int, int] = {}

    def persistent_id(self, value: object) -> object:
        if isinstance(value, torch.export.Dim):
            return repr(value), repr(vars(value).get("root"))
        if not isinstance(value, Tensor):
            return None
        place = self.tensors.setdefault(id(value), len(self.tensors))  # two that are equal may still be two weights
        facts = (type(value).__name__, tuple(value.shape), value.stride(), str(value.dtype), value.requires_grad)
        known = not isinstance(value, FakeTensor)
        return place, *facts, bytes(value.detach().clone().untyped_storage()) if known else None
