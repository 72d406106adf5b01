"""From a bundle's step graph to the ONNX graph that TensorRT is given.

TensorRT updates a cache in place only where its number of slots is fixed, and captures a CUDA graph only where
nothing branches. So the slots become the engine's capacity (and rows and images their
number, where there is one), and the sampler's If goes: its filters always run, or
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external
from onnx_ir.passes.common import RemoveUnusedNodesPass

from arforge.engines.attention import Choice, choose_attention, decompose_attention, prepare_fused
from arforge.engines.opset_20 import to_opset_20
from arforge.engines.precision import TYPES, lower_precision
from arforge.engines.tensorrt_blocks import blocks_for_tensorrt, lay_blocks_down
from arforge.engines.tensorrt_mask import make_mask
from arforge.engines.tensorrt_readonly import read_only_caches
from arforge.engines.tensorrt_view import attend_through_views, cut_views
from arforge.export.wide_weights import widen
from arforge.runner.backends.tensorrt_library import RTX
from arforge.runner.bundle import Bundle
from arforge.runner.bundle.writer import new_file, settle, write_hashed
from arforge.runner.errors import BundleError, EngineError
from arforge.runner.step_graph import LIMITS, cache_names, conditioned, guided_rows

ALIGNMENT = 4096  # lets a runtime map a tensor straight from the file
MASK_RANK = 4
DECODER = "decoder-tensorrt"  # the name of a graph beside the bundle's, before a hash
IN_TWO_PARTS = "the step's own keys and values lie beside the caches"
OUTSIDE = 1024  # bytes from which a tensor is stored outside the graph


@dataclass(frozen=True)
class Lowered:
    model: ir.Model
    attention: Choice
    attentions: int  # Attention nodes of the source


def lower_for_tensorrt(
    bundle: Bundle,
    precision: str,
    slots: int,
    images: int | None,
    filters: bool,
    attention: str,
    *,
    own_mask: bool = False,
    target: str = RTX,
    read_only: bool = False,
) -> Lowered:
    """The step graph of that precision for TensorRT. Raises EngineError if it cannot be made.

    `images`: the one batch that it is for, None for several. `own_mask`: each row sees what lies before its inputs, by
    a mask that the graph makes. `read_only`: for versions that update no cache, in operators of opset 20, and of opset
    21 where weights have 4 bits.
    """
    model = typed_graph(bundle, precision, target)
    attentions = sum(node.op_type == "Attention" for node in model.graph)
    choice = Choice("decomposed", IN_TWO_PARTS) if read_only else choose_attention(model, attention)
    if choice.lowering == "fused":
        prepare_fused(model)
    elif choice.lowering == "decomposed" and not read_only:
        decompose_attention(model)
    if own_mask:
        make_mask(model, slots)
    one_mask = not own_mask and not conditioned(bundle.model)
    fix_dimensions(model, bundle.model.caches, slots, images, one_mask=one_mask)
    settle_filters(model, filters)
    if choice.lowering == "view":
        attend_through_views(model, bundle.model.caches)
        cut_views(model, bundle.model.caches)
    if read_only:
        read_only_caches(model, bundle.model.caches, slots)
        lay_blocks_down(model.graph)
        to_opset_20(model)
    return Lowered(model, choice, attentions)


def typed_graph(bundle: Bundle, precision: str, target: str = RTX) -> ir.Model:
    """The step graph in the types of that precision. Raises EngineError if the bundle has none to make it of.

    `target`: the library that is to build it, whose blocks of 4 bits it gets.
    An int8 graph keeps its quantised products, one for int4 has blocks of 4 bits in the float32 graph's; all else in
    them becomes float16.
    """
    try:
        model = ir.load(bundle.graph(bundle.sampler.graph, source_precision(precision)))
    except BundleError:
        if precision == "int8":
            raise EngineError(f"{bundle.root} has no int8 graphs: make them with `arforge calibrate`") from None
        raise
    if precision == "fp32":
        widen(model)
    if precision == "int4":
        widen(model, blocks=(8,))
        blocks_for_tensorrt(model, target)
    if precision in ("int8", "int4"):
        lower_precision(model, TYPES["fp16"])
    return model


def decoder_graph(bundle: Bundle, older: bool = False) -> tuple[Path, tuple[Path, ...]]:
    """The graph of the image decoder with all weights in float32, and the files written for it beside the bundle's own.

    Where the bundle stores float32, that is its own graph, and no file is new. `older`: in operators of opset 20.
    """
    own = bundle.graph("decoder", "fp32")
    model = ir.load(own)
    if not widen(model) and not older:
        return own, ()
    if older:
        to_opset_20(model)
    new = write_model(model, own.parent, DECODER)
    return new[0], new


def source_precision(precision: str) -> str:
    """That of the bundle's graph which an engine of `precision` is made from."""
    return "fp32" if precision == "int4" else precision


def fix_dimensions(model: ir.Model, caches: int, slots: int, images: int | None, *, one_mask: bool = True) -> None:
    """Give the slots of the caches their number wherever it stands, and rows and images theirs if it is just one.

    `one_mask`: the mask becomes one for all rows, which are at the same step: less to copy to the device in each. Where
    rows have prompts of unequal lengths each keeps its own.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    cache, guidance = inputs[cache_names(caches)[0]].shape, inputs["guidance"].shape
    assert cache is not None
    assert guidance is not None
    sizes = {cache[2]: slots}
    if images is not None:
        sizes |= {cache[0]: guided_rows(images, guided=True), guidance[0]: images}
    for value in [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]:
        if value.shape is not None and any(dim in sizes for dim in value.shape):
            value.shape = ir.Shape([sizes.get(dim, dim) for dim in value.shape])
        if one_mask and value.shape is not None and value.dtype == ir.DataType.BOOL and len(value.shape) == MASK_RANK:
            value.shape = ir.Shape([1, *value.shape[1:]])  # the mask, or a part: the same in all rows


def settle_filters(model: ir.Model, filters: bool) -> None:
    """Take the sampler's one If out: `filters` puts its branch in line, else what it leaves off goes for good."""
    branch = next((node for node in model.graph if node.op_type == "If"), None)
    if branch is None:
        raise EngineError("the graph has no If around its filters: export the bundle again")
    wanted, unwanted = ("then_branch", "else_branch") if filters else ("else_branch", "then_branch")
    body, dropped = branch.attributes[wanted].as_graph(), branch.attributes[unwanted].as_graph()
    result, nodes = body.outputs[0], list(body)
    for value in list(body.initializers.values()):
        del body.initializers[str(value.name)]
        model.graph.register_initializer(value)
    for graph in (body, dropped):
        graph.outputs.clear()
    body.remove(nodes)
    dropped.remove(list(dropped), safe=True)  # they would go on reading values of the outer graph
    for node in nodes:
        node.name = f"kept.{node.name}"  # the branch had names of its own
    model.graph.insert_before(branch, nodes)
    branch.outputs[0].replace_all_uses_with(result)
    model.graph.remove(branch, safe=True)
    RemoveUnusedNodesPass()(model)
    if not filters:
        for value in [value for value in model.graph.inputs if value.name in LIMITS]:
            assert not value.uses()
            model.graph.inputs.remove(value)


def write_model(model: ir.Model, folder: Path, name: str) -> tuple[Path, ...]:
    """Write `name`-HASH.onnx into `folder`; weights that were lowered go to weights/`name`-HASH.weights below it.

    Returns the new files, the graph first. Weights that lie in the bundle already are named where they are. The hashes
    are those of the files: no file that a bundle lists becomes another.
    """
    weights = place_weights({name: model}, folder, lambda partial: settle(partial, name, ".weights"))
    graph = write_hashed(folder, name, ".onnx", content_of(model))
    return (graph,) if weights is None else (graph, weights)


def content_of(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def place_weights(models: Mapping[str, ir.Model], folder: Path, named: Callable[[Path], Path]) -> Path | None:
    """Write the lowered weights of graphs that share them, by name, into weights/ below `folder`; None without any.

    So are those that stay as they are and lie beside another folder's graphs, such as a bias of the logits. One tensor
    at a time is in memory. `named` gives the written file its name, which is returned.
    """
    lazy: dict[str, ir.TensorProtocol] = {}
    for model in models.values():
        for value in model.graph.initializers.values():
            if value.const_value is not None and to_write(value.const_value, folder):
                lazy.setdefault(str(value.name), value.const_value)
    if not lazy:
        return None
    with new_file(folder / "weights") as partial:
        written = f"weights/{partial.name}"
        stored = convert_tensors_to_external(
            list(lazy.values()), folder, written, alignment=ALIGNMENT, align_threshold=OUTSIDE
        )
        path = named(partial)
    location = path.relative_to(folder).as_posix()
    places = {
        name: ir.ExternalTensor(
            location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name, base_dir=folder
        )
        for name, tensor in zip(lazy, stored, strict=True)
    }
    for model in models.values():
        for value in model.graph.initializers.values():
            if value.const_value is not None and to_write(value.const_value, folder):
                value.const_value = places[str(value.name)]
    return path


def to_write(tensor: ir.TensorProtocol, folder: Path) -> bool:
    """Whether the graphs of `folder` lack these values: they are made when they are read, or lie in another folder."""
    if isinstance(tensor, ir.ExternalTensor):
        return Path(tensor.base_dir).resolve() != folder.resolve()
    return isinstance(tensor, ir.LazyTensor)
