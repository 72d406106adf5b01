"""What a built engine is made of: its layers as the library lists them, and what they must look like."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import onnx_ir as ir

from arforge.runner.errors import EngineError
from arforge.runner.step_graph import cache_names, update_name, written_name

LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId(?:: (?P<stream>\d+))?.*?(?:Metadata: (?P<origin>.*))?$"
)
FROM_HOST = "ShapeHostToDevice"  # copies sizes that the host works out
COPY = re.compile(rf"Name: (.*?), LayerType: {FROM_HOST},")
TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([\d,-]*)\].*?Datatype: (\w+)")
ORIGIN = re.compile(r"\[ONNX Layer: (.*?)\]")
PROFILE = re.compile(r" \[profile (\d+)\]")
PLACE = re.compile(r"_myl(\d+)_\d+$")
LOW = ("Half", "BFloat16")


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # as the library writes it: Half, Float, Int8, …


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str  # gemm, kgen (a generated kernel), …
    profile: int
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    origin: tuple[str, ...]  # ONNX nodes that it stands for
    stream: int = 0  # that it is queued on

    def types(self) -> set[str]:
        """Of what it reads and writes."""
        return {tensor.dtype for tensor in (*self.inputs, *self.constants, *self.outputs)}


@dataclass(frozen=True)
class Expected:
    """What a lowered graph wants of its engine, by the names of its nodes."""

    caches: tuple[str, ...]
    attention: tuple[str, ...]  # fused Attention nodes
    quantized: tuple[str, ...]  # matrix products of int8 factors
    narrow: tuple[str, ...]  # those of a float factor and weights of 4 bits
    low: tuple[str, ...]  # the other products, where they are float16 or bfloat16
    read_only: bool = False  # whether the engine only reads its caches


def parse_layers(text: str) -> list[Layer]:
    """The layers of a builder's listing; none where it is in another form.

    The compiler numbers what it makes of each profile, with gaps; the marks on tensors tell which number is whose.
    """
    matches = [match for line in text.splitlines() if (match := LINE.match(line))]
    numbers = [place[1] if (place := PLACE.search(match["name"])) else match["name"] for match in matches]
    profiles: dict[str, int] = {}
    for number, match in zip(numbers, matches, strict=True):
        marks = PROFILE.findall(match[0])
        profiles[number] = max(profiles.get(number, 0), *(int(mark) for mark in marks), 0)
    copies = [match[1] for line in text.splitlines() if (match := COPY.match(line))]
    marked = [(name, max(*(int(mark) for mark in PROFILE.findall(name)), 0, 0)) for name in copies]
    return [Layer(name, FROM_HOST, profile, (), (), (), ()) for name, profile in marked] + [
        Layer(
            match["name"],
            match["kind"],
            profiles[number],
            tensors(match["inputs"]),
            tensors(match["constants"]),
            tensors(match["outputs"]),
            tuple(ORIGIN.findall(match["origin"] or "")),
            int(match["stream"] or 0),
        )
        for number, match in zip(numbers, matches, strict=True)
    ]


def dump_layers(layers: Sequence[Layer]) -> bytes:
    return json.dumps([asdict(layer) for layer in layers]).encode()


def load_layers(content: bytes) -> list[Layer]:
    """The reverse of `dump_layers`. Raises EngineError for anything else."""
    try:
        return [read_layer(**entry) for entry in json.loads(content)]
    except (ValueError, TypeError, KeyError) as error:
        raise EngineError(f"the list of the engine's layers cannot be read ({error!r}): rebuild the engine") from None


def read_layer(
    name: str,
    kind: str,
    profile: int,
    inputs: Any,
    constants: Any,
    outputs: Any,
    origin: Sequence[str],
    stream: int = 0,
) -> Layer:
    read = [
        tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in part) for part in (inputs, constants, outputs)
    ]
    return Layer(name, kind, profile, read[0], read[1], read[2], tuple(origin), stream)


def tensors(text: str) -> tuple[Tensor, ...]:
    found = TENSOR.findall(text)
    return tuple(
        Tensor(PROFILE.sub("", name), tuple(int(n) for n in shape.split(",") if n), kind) for name, shape, kind in found
    )


def expected(model: ir.Model, caches: int) -> Expected:
    """Read off a lowered graph."""
    products = [node for node in model.graph if node.op_type == "MatMul"]
    quantized = [node for node in products if all(is_dequantized(value) for value in node.inputs)]
    narrow = [node for node in products if node not in quantized and is_narrow(node.inputs[1])]
    low = [
        node
        for node in products
        if node not in quantized and node.outputs[0].dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    ]
    attention = [node for node in model.graph if node.op_type == "Attention"]
    fused, int8, int4, plain = (
        tuple(str(node.name) for node in nodes) for nodes in (attention, quantized, narrow, low)
    )
    names = tuple(cache_names(caches))
    read_only = update_name(names[0]) in {value.name for value in model.graph.outputs}
    return Expected(names, fused, int8, int4, plain, read_only)


def is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def is_narrow(value: ir.Value | None) -> bool:
    """Whether a factor is made of stored codes of 4 bits."""
    turned = value.producer() if value is not None else None
    source = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else value
    codes = source.producer() if source is not None and is_dequantized(source) else None
    return codes is not None and codes.inputs[0] is not None and codes.inputs[0].dtype == ir.DataType.INT4


def check_layers(layers: Sequence[Layer], wanted: Expected, profiles: int) -> list[str]:
    """What is not as it should be, in words; empty where all is well."""
    problems = []
    for profile in range(profiles):
        mine = [layer for layer in layers if layer.profile == profile]
        where = f"profile {profile}"
        if not mine:
            problems.append(f"{where}: no layers listed")
            continue
        check = check_read_only if wanted.read_only else check_caches
        problems += [f"{where}: {problem}" for problem in check(mine, wanted.caches)]
        for name in wanted.attention:
            if len(attention_kernels(mine, (name,))) != 1:
                problems.append(f"{where}: attention {name} is not one kernel")
        for name in wanted.quantized:
            if not any(name in layer.origin and is_int8_product(layer) for layer in mine):
                problems.append(f"{where}: product {name} does not run on int8")
        for name in wanted.narrow:
            if not any(name in layer.origin and is_int4_product(layer) for layer in mine):
                problems.append(f"{where}: product {name} does not read weights of 4 bits")
        for layer in mine:
            floats = [tensor.name for tensor in layer.inputs if tensor.dtype == "Float"]
            if is_product(layer) and floats and set(layer.origin) & set(wanted.low):
                problems.append(f"{where}: product {layer.name} reads float32 {', '.join(floats)}")
    return problems


def check_caches(layers: Iterable[Layer], caches: Iterable[str]) -> list[str]:
    """A cache is updated in place where who writes its output reads that output, and nobody reads the input."""
    problems = []
    for cache in caches:
        output = written_name(cache)
        writers = [layer for layer in layers if any(tensor.name == output for tensor in layer.outputs)]
        if not writers:
            problems.append(f"nothing writes {cache}")
        copies = [layer for layer in layers if any(tensor.name == cache for tensor in layer.inputs)]
        problems += [f"{layer.name} copies {cache}" for layer in copies]
        blind = [layer for layer in writers if not any(t.name in (output, cache) for t in layer.inputs)]
        problems += [f"{layer.name} overwrites {cache}" for layer in blind]
    return problems


def check_read_only(layers: Iterable[Layer], caches: Iterable[str]) -> list[str]:
    """A cache is read where it lies if none but products, of many queries, write anything as large from it.

    The step's own rows are written once.
    """
    problems = []
    for cache in caches:
        readers = [layer for layer in layers if any(tensor.name == cache for tensor in layer.inputs)]
        if not readers:
            problems.append(f"nothing reads {cache}")
        for layer in readers:
            size = max(prod(tensor.shape) for tensor in layer.inputs if tensor.name == cache)
            if not is_product(layer) and any(prod(tensor.shape) >= size for tensor in layer.outputs):
                problems.append(f"{layer.name} copies {cache}")
        update = update_name(cache)
        writers = [layer for layer in layers if any(tensor.name == update for tensor in layer.outputs)]
        if len(writers) != 1:
            problems.append(f"{len(writers)} layers write {update}, expected 1")
    return problems


def attention_kernels(layers: Iterable[Layer], nodes: Iterable[str] = ()) -> list[Layer]:
    """Kernels of a whole attention, by the name that the compiler gives them; of `nodes` alone where given."""
    wanted = set(nodes)
    return [layer for layer in layers if "mha" in layer.name and (not wanted or wanted & set(layer.origin))]


def is_product(layer: Layer) -> bool:
    return layer.kind in ("gemm", "runtime_fusion")  # the second: with what follows it


def is_int8_product(layer: Layer) -> bool:
    return (
        is_product(layer)
        and any(t.dtype == "Int8" for t in layer.inputs)
        and any(t.dtype == "Int8" for t in layer.constants)
    )


def is_int4_product(layer: Layer) -> bool:
    """Whether a product reads weights of 4 bits itself: no kernel before it makes floats of them."""
    return is_product(layer) and any(tensor.dtype == "Int4" for tensor in layer.constants)
