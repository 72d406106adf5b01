"""The graphs that tests take from one another are those that the tracer would make, and no others."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from traced_once import remembered, structure

from arforge.export.trace import fake_module, trace

NAMES = (["x"], ["y"])


class Scaled(nn.Module):
    def __init__(self, width: int = 4, factor: float = 2.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.factor = factor
        self.inner = nn.Linear(width, 4, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[:2]
        return self.inner(x.reshape(rows * columns, -1)) * self.factor


class Shifted(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def traced(folder: Path | None, module: type[Scaled] = Scaled, **changes: float) -> bytes:
    made, mode = fake_module(lambda: module(**changes))
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("columns")}
    with mode:
        call = trace if folder is None else remembered(folder, trace)
        model = call(made, (torch.zeros(2, 3, 4),), (free,), *NAMES)
    return ir.to_proto(model).SerializeToString()


def test_a_graph_that_is_read_is_the_traced_one(tmp_path: Path) -> None:
    plain = traced(None)
    assert traced(tmp_path) == plain
    (kept,) = (path for path in tmp_path.iterdir() if path.suffix != ".lock")
    other = traced(None, factor=3.0)
    kept.write_bytes(other)
    assert traced(tmp_path) == other != plain  # it is read, not traced again


def test_other_modules_have_graphs_of_their_own(tmp_path: Path) -> None:
    assert traced(tmp_path) == traced(None)
    assert traced(tmp_path, factor=3.0) == traced(None, factor=3.0)
    assert traced(tmp_path, Shifted) == traced(None, Shifted)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Scaled(factor=2.5),
        lambda: Scaled(width=8),
        lambda: Scaled(dtype=torch.float16),
        Shifted,
        lambda: Scaled().requires_grad_(False),
        lambda: nn.Sequential(Scaled()),
    ],
)
def test_what_the_tracer_may_see_tells_modules_apart(other: object) -> None:
    one, same, different = (fake_module(build)[0] for build in (Scaled, Scaled, other))  # type: ignore[arg-type]
    assert structure(one) == structure(same) != structure(different)


def test_values_tell_constants_apart_and_shared_weights_are_seen() -> None:
    assert structure(torch.ones(2)) == structure(torch.ones(2)) != structure(torch.zeros(2))
    shared, apart = nn.ModuleList([Scaled(), Scaled()]), nn.ModuleList([Scaled(), Scaled()])
    for pair in (shared, apart):
        for module in pair:
            nn.init.zeros_(module.inner.weight)
            nn.init.zeros_(module.inner.bias)
    assert structure(shared) == structure(apart)
    shared[1].inner.weight = shared[0].inner.weight
    assert structure(shared) != structure(apart)


def test_ranges_of_free_sizes_tell_calls_apart() -> None:
    dims = [torch.export.Dim("length", max=most) for most in (4, 4, 5)]
    assert structure(dims[0]) == structure(dims[1]) != structure(dims[2])
    assert structure(2 * dims[0]) == structure(2 * dims[1]) != structure(3 * dims[0])


def test_what_has_no_name_is_not_kept(tmp_path: Path) -> None:
    class Local(Scaled):
        pass

    assert structure(Local()) is None
    assert traced(tmp_path, Local) == traced(None)
    assert not list(tmp_path.iterdir())
