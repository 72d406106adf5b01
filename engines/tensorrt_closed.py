"""The closed form of an engine whose attention reads views, beside the plain lowering of the same step.

In ONNX Runtime the view of a cache is the cache after its update. This shows that the graph says the right thing, and
not that TensorRT keeps to the order, which the list of layers tells, nor that the device does, which only a run tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arforge.engines.lowered_session import session_of
from arforge.engines.profiles import Profile
from arforge.engines.tensorrt_graph import lower_for_tensorrt, write_model
from arforge.engines.tensorrt_view import close_views
from arforge.runner.backends.tensorrt_engine import batches_of
from arforge.runner.backends.tensorrt_identity import lowered_of
from arforge.runner.bundle import Bundle, ModelFacts
from arforge.runner.errors import VerificationError
from arforge.runner.step_graph import Tensor, cache_names, row_sizes, written_name

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = {"fp16": 3e-2, "int8": 2e-1, "int4": 3e-2}
"""Of keys and values, relative to the largest, for the precisions that ONNX Runtime's CPU provider runs."""
COMPARED_STEPS = 8  # at least, and every shape once
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ClosedAgreement:
    steps: int
    largest_error: float  # of new keys and values, relative to the largest of their cache
    same_tokens: float  # share of the most likely ones


class Side:
    """A lowered graph with caches of its own, zero at first."""

    def __init__(self, session: InferenceSession, shape: tuple[int, ...], names: Sequence[str], *, views: bool) -> None:
        """`shape`: of a cache, (rows, kv_heads, slots, head_size)."""
        self._session, self._shape, self._views = session, shape, views
        stored = (1, 1, shape[2], -1) if views else shape
        self._caches = {name: np.zeros(shape, np.float16).reshape(stored) for name in names}

    def run(self, inputs: Arrays) -> NDArray[np.int64]:
        """The tokens of one step, which fills the caches."""
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(None, inputs | self._caches), strict=True))
        self._caches = {name: found[written_name(name)] for name in self._caches}
        tokens: NDArray[np.int64] = found["next_tokens"]
        return tokens

    def cache(self, name: str) -> NDArray[np.float32]:
        """One of them, (rows, kv_heads, slots, head_size)."""
        held = self._caches[name].astype(np.float32)
        rows, heads, slots, size = self._shape
        return held.reshape(slots, rows, heads, size).transpose(1, 2, 0, 3) if self._views else held


def compare_closed(bundle: Bundle, identity: Mapping[str, Any]) -> ClosedAgreement:
    """Steps of the engine's shapes in turn, on random tokens, each over the caches that those before it filled.

    Raises VerificationError if keys or values differ by more than the precision explains.
    """
    model, batches, slots = bundle.model, batches_of(identity), int(identity["slots"])
    sizes, names = row_sizes(model, batches[0]), cache_names(model.caches)
    given = [tensor for tensor in lowered_of(bundle, identity).inputs if "cache" not in tensor.name]
    profiles = [Profile(**one) for one in identity["profiles"] if one["images"] == batches[0]]
    closed, plain = sides(bundle, identity, (sizes["rows"], model.kv_heads, slots, model.head_size))
    random = np.random.default_rng(0)
    place, same, cells, largest = 0, 0, 0, 0.0
    steps = max(COMPARED_STEPS, len(profiles))
    for profile in islice(cycle(profiles), steps):
        place = place if place + profile.width <= slots else 0
        shapes = {**asdict(profile), **sizes, "slots": slots}
        inputs = {tensor.name: draw(tensor, tensor.sizes(shapes), model, place, random) for tensor in given}
        tokens, wanted_tokens = closed.run(inputs), plain.run(inputs)
        new = slice(place, place + profile.width)
        for name in names:
            wanted = plain.cache(name)
            error = np.abs(closed.cache(name) - wanted)[:, :, new].max() / (np.abs(wanted).max() or 1)
            largest = float(np.maximum(largest, error))  # NaN where there is one
        same, cells = same + int((tokens == wanted_tokens).sum()), cells + tokens.size
        place = new.stop
    allowed = TOLERANCE[identity["precision"]]
    if not largest <= allowed:
        raise VerificationError(
            f"{identity['lowered']}: with what views stand for in their place it writes keys or values with an error "
            f"of {largest:.1e} of the largest, allowed is {allowed:.0e}: rebuild with --attention auto"
        )
    return ClosedAgreement(steps, largest, same / cells)


def sides(bundle: Bundle, identity: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Side, Side]:
    """The engine's graph in its closed form, and the step lowered plainly. `shape`: of a cache."""
    names, batches = cache_names(bundle.model.caches), batches_of(identity)
    path = bundle.path(identity["lowered"])
    closed = ir.load(path)
    close_views(closed, bundle.model.caches)
    one = batches[0] if len(batches) == 1 else None
    lowered = lower_for_tensorrt(bundle, identity["precision"], shape[2], one, identity["filters"], "decomposed")
    with TemporaryDirectory() as folder:
        plain = write_model(lowered.model, Path(folder), "plain")[0]
        return (
            Side(session_of(closed, path.parent), shape, names, views=True),
            Side(session_of(ir.load(plain), plain.parent), shape, names, views=False),
        )


def draw(
    tensor: Tensor, shape: tuple[int, ...], model: ModelFacts, place: int, random: np.random.Generator
) -> NDArray[Any]:
    """An input of a greedy step whose tokens go into slots from `place` on; where rows have masks, these differ."""
    if tensor.name == "mask":
        rows, _, width, slots = shape
        own = place + np.arange(width)[:, None]
        seen = np.arange(slots) <= own
        hidden = np.arange(slots) < np.minimum(np.arange(rows)[:, None], place)  # what a shorter prompt leaves empty
        return (seen & ~hidden[:, None])[:, None]
    if tensor.name == "write_index":
        return np.full(shape, place)
    if tensor.name in ("positions", "query_positions"):
        return np.broadcast_to((place + np.arange(shape[1])) % model.position_rows, shape).copy()
    if tensor.name == "tokens":
        return random.integers(0, model.vocabulary, shape)
    fixed = {"guidance": 2, "temperature": 0, "top_k": 0, "top_p": 1}
    if tensor.name in fixed:
        return np.full(shape, fixed[tensor.name], tensor.dtype)
    return random.random(shape, np.float32)
