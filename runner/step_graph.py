"""The contract of every graph of a bundle: names, types and shapes of its inputs and outputs, as data.

A shape gives as a number what the model fixes, and as a word what a call decides: `images`; `rows`, as many or twice
that (`guided_rows`); `width`, the tokens of a row in a step; `queries`, the cells that it asks for, of models that have
them; `slots` of the caches. Exporters, engines, verifiers and both runners read this table, none has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from arforge.runner.bundle import ClassCondition, FeaturesCondition, IdsCondition, ModelFacts
from arforge.runner.errors import BundleError

Dimension = str | int
Item = TypeVar("Item")

CACHE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "float32", "int4": "float32"}
"""The type of keys and values in a bundle's graphs of each precision."""

STEPS = ("step", "step-logits", "step-noise")
LIMITS = ("top_k", "top_p")  # inputs of the filters, which a graph may leave out
ROW_HEADS, ROW_VALUES = "row_heads", "row_values"  # rows * kv_heads, and that many times head_size


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # as numpy spells it, and "bfloat16"
    shape: tuple[Dimension, ...]

    def sizes(self, dimensions: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with `dimensions` in place of words. Raises KeyError if one is missing."""
        return tuple(size if isinstance(size, int) else dimensions[size] for size in self.shape)


@dataclass(frozen=True)
class Contract:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __getitem__(self, name: str) -> Tensor:
        return next(tensor for tensor in (*self.inputs, *self.outputs) if tensor.name == name)


def guided_rows(images: int, guided: bool) -> int:
    """Rows of a step: with guidance, the conditional ones, then as many unconditional."""
    return 2 * images if guided else images


def cache_names(caches: int) -> list[str]:
    """The inputs that are caches. Each is updated in place: its memory is that of the output `written_name`."""
    return [f"{kind}_cache_{index}" for index in range(caches) for kind in ("key", "value")]


def written_name(cache: str) -> str:
    """The output that a cache leaves as; ONNX names a value once."""
    return f"new_{cache}"


def update_name(cache: str) -> str:
    """The output that holds a step's own keys or values, of an engine that only reads its caches."""
    return cache.replace("_cache_", "_update_")


def view_name(cache: str) -> str:
    """The input that attention reads a cache by, where it is read in another shape than it is updated in."""
    return f"view_{cache}"


def bound_caches(caches: Mapping[str, Item], *, views: bool = False) -> dict[str, Item]:
    """What stands for each cache, under both names; with `views`, under all three."""
    names = (written_name, view_name) if views else (written_name,)
    return {**caches, **{named(name): item for name, item in caches.items() for named in names}}


def contract(model: ModelFacts, graph: str, cache_type: str = "float32") -> Contract:
    """The inputs and outputs of a graph kind. Raises BundleError for a kind that the format, or the model, lacks.

    `cache_type`: of keys and values, that of the graph's precision in `CACHE_TYPES`.
    """
    if graph in STEPS:
        return step(model, graph, cache_type)
    if graph in IMAGE_GRAPHS:
        return IMAGE_GRAPHS[graph]
    if graph in PROMPT_GRAPHS:
        return PROMPT_GRAPHS[graph](model)
    known = ", ".join([*STEPS, *PROMPT_GRAPHS, *IMAGE_GRAPHS])
    raise BundleError(f"unknown graph {graph!r}: use {known}")


def step(model: ModelFacts, graph: str, cache_type: str) -> Contract:
    """One decoding step: the decoder over its caches, and the sampler. Ids from `model.ids` on are condition rows."""
    outputs = "queries" if model.queries else "width"
    inputs = [
        Tensor("tokens", "int64", ("rows", "width")),
        Tensor("positions", "int64", ("rows", "width")),
        Tensor("write_index", "int64", ("rows",)),
        Tensor("mask", "bool", ("rows", 1, "width", "slots")),
    ]
    if model.queries:
        inputs.append(Tensor("query_positions", "int64", ("rows", outputs)))
    if conditioned(model):
        inputs.append(Tensor("condition", "float32", ("rows", "condition", model.dim)))
    if graph == "step-noise":
        inputs.append(Tensor("noise", "float32", ("images", outputs, model.vocabulary)))
    else:
        inputs.append(Tensor("uniforms", "float32", ("images", outputs)))
    inputs += [
        Tensor("guidance", "float32", ("images", outputs)),
        Tensor("temperature", "float32", ("images",)),
        Tensor("top_k", "int64", ("images",)),
        Tensor("top_p", "float32", ("images",)),
    ]
    given = [Tensor("next_tokens", "int64", ("images", outputs))]
    if graph == "step-logits":
        given.append(Tensor("logits", "float32", ("images", outputs, model.vocabulary)))
    return Contract((*inputs, *caches(model, cache_type)), (*given, *written(model, cache_type)))


def lowered_step(
    model: ModelFacts,
    cache_type: str,
    filters: bool,
    graph: str = "step",
    *,
    own_mask: bool = False,
    views: bool = False,
    read_only: bool = False,
) -> Contract:
    """The step `graph` as TensorRT is given it: limits only where there are `filters`, and one mask for all rows.

    Where a model takes prompts, which are of unequal lengths, each row keeps a mask of its own. `own_mask`: the graph
    makes it, for each row. `views`: caches lie with slots first, and attention reads them by inputs of their own.
    `read_only`: caches are inputs alone, and the step's own keys and values outputs.
    """
    plain = step(model, graph, cache_type)
    if views:
        plain = with_views(model, plain)
    if read_only:
        own = tuple(tensor for tensor in plain.outputs if "cache" not in tensor.name)
        plain = Contract(plain.inputs, (*own, *updates(model, cache_type)))
    left_out = (*(() if filters else LIMITS), *(("mask",) if own_mask else ()))
    kept = [tensor for tensor in plain.inputs if tensor.name not in left_out]
    if conditioned(model) or own_mask:
        return Contract(tuple(kept), plain.outputs)
    return Contract(
        tuple(replace(tensor, shape=(1, *tensor.shape[1:])) if tensor.name == "mask" else tensor for tensor in kept),
        plain.outputs,
    )


def with_views(model: ModelFacts, plain: Contract) -> Contract:
    """The same step with caches in the order slots, rows, heads, head size, each with a view of three dimensions."""
    names = cache_names(model.caches)
    both = {*names, *map(written_name, names)}

    def turned(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=(1, 1, "slots", ROW_VALUES)) if tensor.name in both else tensor

    views = (replace(plain[name], name=view_name(name), shape=("slots", ROW_HEADS, model.head_size)) for name in names)
    return Contract((*map(turned, plain.inputs), *views), tuple(map(turned, plain.outputs)))


def row_sizes(model: ModelFacts, images: int) -> dict[str, int]:
    """What follows from the number of images of a guided step: rows, and what comes in as many or multiples of them."""
    rows = guided_rows(images, guided=True)
    heads = rows * model.kv_heads
    return {"rows": rows, ROW_HEADS: heads, ROW_VALUES: heads * model.head_size}


def again_name(cache: str, hand: int) -> str:
    """The outputs, in a folded graph, of a cache that several layers read: one where it is written, one a layer.

    That of the last layer is called as any cache's.
    """
    return f"{written_name(cache)}_again_{hand}"


def read_again(model: ModelFacts) -> dict[str, tuple[str, ...]]:
    """The further outputs by cache, of caches that several layers read: later layers all read the last one."""
    more = model.layers - model.caches
    names = [f"{kind}_cache_{model.caches - 1}" for kind in ("key", "value")]
    return {name: tuple(again_name(name, hand) for hand in range(1 + more)) for name in names if more}


def folded(plain: Contract, types: Mapping[str, str], again: Mapping[str, Iterable[str]]) -> Contract:
    """A step whose rows stand as heads of one row in the caches, which have these types, int8 or float32.

    `again`: the names under which the step gives some of them too.
    """

    def tensor(one: Tensor, cache: str) -> Tensor:
        if cache not in types:
            return one
        return replace(one, dtype=types[cache], shape=(1, "heads", *one.shape[2:]))

    inputs = tuple(tensor(one, one.name) for one in plain.inputs)
    outputs = [tensor(one, one.name.removeprefix(written_name(""))) for one in plain.outputs]
    held = {one.name: one for one in outputs}
    more = [replace(held[written_name(cache)], name=name) for cache, names in again.items() for name in names]
    return Contract(inputs, (*outputs, *more))


def typed(plain: Contract, types: Mapping[str, str]) -> Contract:
    """A step whose caches have these types."""

    def tensor(one: Tensor) -> Tensor:
        cache = one.name.removeprefix(written_name(""))
        return replace(one, dtype=types[cache]) if cache in types else one

    return Contract(*(tuple(tensor(one) for one in part) for part in (plain.inputs, plain.outputs)))


def caches(model: ModelFacts, cache_type: str) -> tuple[Tensor, ...]:
    shape = ("rows", model.kv_heads, "slots", model.head_size)
    return tuple(Tensor(name, cache_type, shape) for name in cache_names(model.caches))


def written(model: ModelFacts, cache_type: str) -> tuple[Tensor, ...]:
    return tuple(replace(cache, name=written_name(cache.name)) for cache in caches(model, cache_type))


def updates(model: ModelFacts, cache_type: str) -> tuple[Tensor, ...]:
    shape = ("rows", model.kv_heads, "width", model.head_size)
    return tuple(Tensor(update_name(name), cache_type, shape) for name in cache_names(model.caches))


def conditioned(model: ModelFacts) -> bool:
    """Whether a step reads rows of a prompt. Classes are tokens, of which the step has its own table."""
    return not isinstance(model.condition, ClassCondition)


def condition(model: ModelFacts) -> Contract:
    """From a prompt, features or ids, to the rows that a step reads; run once a request.

    Of features it also gives the rows that stand for no prompt of that length. Raises BundleError for a model of
    classes.
    """
    rows = Tensor("condition", "float32", ("prompts", "length", model.dim))
    if isinstance(model.condition, FeaturesCondition):
        none = Tensor("unconditional", "float32", ("length", model.dim))
        return Contract((features(model.condition),), (rows, none))
    if isinstance(model.condition, IdsCondition):
        return Contract((Tensor("ids", "int64", ("prompts", "length")),), (rows,))
    raise BundleError("a model of classes has no graph 'condition'")


def text(model: ModelFacts) -> Contract:
    """The text encoder: from ids to the features of a prompt. Raises BundleError for a model that takes no features."""
    if not isinstance(model.condition, FeaturesCondition):
        raise BundleError(f"a model whose condition is {model.condition.kind} has no graph 'text'")
    ids, mask = (Tensor(name, "int64", ("prompts", "length")) for name in ("ids", "mask"))
    return Contract((ids, mask), (features(model.condition),))


def features(condition: FeaturesCondition) -> Tensor:
    return Tensor("features", "float32", ("prompts", "length", condition.width))


PROMPT_GRAPHS: dict[str, Callable[[ModelFacts], Contract]] = {"condition": condition, "text": text}
TOKENS = Tensor("tokens", "int64", ("images", "rows", "columns"))
PIXELS = Tensor("images", "uint8", ("images", "height", "width", 3))
IMAGE_GRAPHS = {"decoder": Contract((TOKENS,), (PIXELS,)), "encoder": Contract((PIXELS,), (TOKENS,))}


def difference(wanted: Iterable[Tensor], found: Iterable[Tensor]) -> str | None:
    """The first tensor, by name, that is not as it should be, in words; None where all are."""
    there, expected = ({tensor.name: tensor for tensor in part} for part in (found, wanted))
    for name in sorted(there.keys() | expected.keys()):
        if there.get(name) != expected.get(name):
            return (
                f"{name} is {described(there.get(name), 'missing')}, expected {described(expected.get(name), 'none')}"
            )
    return None


def described(tensor: Tensor | None, missing: str) -> str:
    return missing if tensor is None else f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
