"""Whether int8 is quicker in blocks or by rows on this machine, by the products of a step alone.

All else of a step is the same in both. Any weights take as long as the model's, so nothing of it is read but shapes:
products of one input stand together, as they share its codes, in copies that no cache holds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from arforge.engines.decode_widths import GAIN
from arforge.engines.onnxruntime_blocks import CONTRIB, quantize_products, stored_matrix
from arforge.engines.onnxruntime_rows import quantize_rows
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle
from arforge.runner.plan import make_plan
from arforge.runner.step_graph import guided_rows

FORMS: dict[str, Callable[[ir.Model], int]] = {
    "blocks": lambda model: quantize_products(model, "int8"),
    "rows": quantize_rows,
}
COPIED = 64 << 20  # bytes of weights, or more, that a run reads, where the model has as many
ROUNDS = 7

Group = tuple[int, tuple[int, ...]]
"""Products of one input: how many numbers it has, and how many each product gives."""

Steps = Mapping[int, int]
"""Steps of an image by width."""


@dataclass(frozen=True)
class Tried:
    seconds: Mapping[str, Mapping[int, float]]  # of a step's products, by form and width
    quicker: str


def try_products(bundle: Bundle) -> Tried:
    """Time the products of one image with guidance in each form, at the widths of the stored schedules."""
    schedules = [
        Counter(step.width for step in make_plan(bundle.schedule(name), widths=None).steps)
        for name in bundle.specifications
    ]
    widths = sorted(set().union(*schedules))
    seconds = {form: dict.fromkeys(widths, 0.0) for form in FORMS}
    for group, uses in groups(ir.load(bundle.graph(bundle.sampler.graph, "fp32"))).items():
        for form, found in timed(group, uses, widths).items():
            for width in widths:
                seconds[form][width] += uses * found[width]
    return Tried(seconds, quicker(seconds, schedules))


def quicker(seconds: Mapping[str, Mapping[int, float]], schedules: Sequence[Steps]) -> str:
    """ "rows" where they save an image more than noise, as a mean of the schedules; else "blocks", which err less."""
    blocks, rows = (
        [sum(steps * seconds[form][width] for width, steps in one.items()) for one in schedules]
        for form in ("blocks", "rows")
    )
    ratio = statistics.mean(one / other for one, other in zip(rows, blocks, strict=True))
    return "rows" if ratio < 1 - GAIN else "blocks"


def groups(model: ir.Model) -> Counter[Group]:
    """How often a step has each group of products with stored matrices."""
    products: dict[ir.Value | None, list[ir.Value]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and (weight := stored_matrix(node.inputs[1])) is not None:
            products.setdefault(node.inputs[0], []).append(weight)
    shapes = [[tuple(weight.const_value.shape.numpy()) for weight in one] for one in products.values()]  # type: ignore[union-attr]
    return Counter((one[0][0], tuple(outputs for _, outputs in one)) for one in shapes)


def timed(group: Group, uses: int, widths: Sequence[int]) -> dict[str, dict[int, float]]:
    """Median seconds of a group in each form and width; forms take turns, so that other load falls on both alike."""
    copies = min(uses, math.ceil(COPIED / (group[0] * sum(group[1]))))
    sessions = {form: open_session(Path(form), None, made(group, copies, form)) for form in FORMS}
    taken: dict[str, dict[int, float]] = {form: {} for form in FORMS}
    for width in widths:
        rows = np.random.default_rng(0).standard_normal((guided_rows(1, guided=True) * width, group[0]), np.float32)
        given = {f"x{copy}": rows for copy in range(copies)}
        bound = {form: bind(session, given) for form, session in sessions.items()}
        once: dict[str, list[float]] = {form: [] for form in FORMS}
        for turn in range(1 + ROUNDS):
            for form, session in sessions.items():
                start = time.perf_counter()
                session.run_with_iobinding(bound[form])
                if turn:
                    once[form].append(time.perf_counter() - start)
        for form, seconds in once.items():
            taken[form][width] = statistics.median(seconds) / copies
    return taken


def bind(session: Any, given: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return binding


def made(group: Group, copies: int, form: str) -> bytes:
    """A model of copies of a group, each with an input and weights of its own."""
    inputs, outputs = group
    kind = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24, CONTRIB: 1}, name="products")
    zeros = {size: ir.Tensor(np.broadcast_to(np.float32(0), (inputs, size))) for size in outputs}
    for copy in range(copies):
        source = ir.Value(name=f"x{copy}", shape=ir.Shape(["rows", inputs]), type=kind)
        graph.inputs.append(source)
        for index, size in enumerate(outputs):
            name = f"{copy}.{index}"
            weight = ir.Value(name=f"w{name}", shape=zeros[size].shape, type=kind, const_value=zeros[size])
            graph.register_initializer(weight)
            product = ir.Value(name=f"p{name}", shape=ir.Shape(["rows", size]), type=kind)
            graph.append(ir.Node("", "MatMul", [source, weight], outputs=[product]))
            graph.outputs.append(ir.Value(name=f"y{name}", shape=product.shape, type=kind))
            graph.append(ir.Node("", "Identity", [product], outputs=[graph.outputs[-1]]))
    model = ir.Model(graph, ir_version=11)
    FORMS[form](model)
    RemoveUnusedNodesPass()(model)
    rng = np.random.default_rng(0)
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor):
            value.const_value = arbitrary(value.const_value, rng)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def arbitrary(tensor: ir.TensorProtocol, rng: np.random.Generator) -> ir.TensorProtocol:
    """Codes or scales in place of those that would be made of weights."""
    shape, dtype = tensor.shape.numpy(), tensor.dtype.numpy()
    if tensor.dtype == ir.DataType.FLOAT:
        return ir.Tensor(np.full(shape, 0.01, np.float32), name=tensor.name)
    return ir.Tensor(np.frombuffer(rng.bytes(math.prod(shape)), dtype).reshape(shape), name=tensor.name)
