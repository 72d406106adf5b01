"""Fills the caches of a generation's rows with what stands before the images.

The cache of a row holds zero slots, the prompt's slots, then the schedule's. Of a prompt all but the last row go into
slots here, right-aligned; the last one is the condition token that the schedule feeds. Each distinct prompt passes the
step graph once, in a row of its own, and is copied to the rows that have it, so a picture does not depend on the
others of its batch. The head and the sampler run too and are dropped: they cost 3 % of these passes, while a graph
without them would be a second copy of the weights.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import ModelFacts
from arforge.runner.conditions import Prompt
from arforge.runner.errors import EngineError, NumericsError
from arforge.runner.numerics import NO_TOKEN, advice, spoilt_cache
from arforge.runner.plan import Plan, Prefixes, fitting_width
from arforge.runner.step_graph import cache_names

CHUNK = 128  # tokens of a prompt that pass at once, where the engine takes any number that has rotary rows
KEPT = 8  # prompts whose caches stay for later requests

Caches = list[NDArray[Any]]
"""Keys and values of one prompt, one array a cache: (kv_heads, length - 1, head_size)."""


class Prefill:
    """Readies an engine for generations; one an engine."""

    def __init__(self, engine: Engine, model: ModelFacts) -> None:
        self._engine, self._model = engine, model
        self._names = cache_names(model.caches)
        self._held: OrderedDict[tuple[Prompt, bool], Caches] = OrderedDict()  # with whether it has low caches
        self.seconds = 0.0  # that filling caches with prompts took, wall clock

    def start(self, plan: Plan, images: int, prompts: Sequence[Prompt], first_image: int = 0) -> Prefixes:
        """Prepare the engine for `plan`, a prompt a row; returns what prompts change in its steps.

        Raises NumericsError if a prompt makes non-finite logits, which names its image, counted from `first_image`; the
        caches are cleared before. Raises EngineError for a prompt that the engine cannot take at once.
        """
        schedule, slots = plan.schedule, plan.prompt_slots
        start, lockstep = time.perf_counter(), plan.lockstep_width
        low = self._engine.has_low_caches(lockstep)
        distinct = [(prompt, low) for prompt in dict.fromkeys(prompts) if prompt.before]
        for prompt, _ in distinct:
            if (prompt, low) not in self._held:
                row = prompts.index(prompt)
                whose = "the prompt" if row < images else "what stands for no prompt"
                name = f"{whose} of image {first_image + row % images}"
                self._held[prompt, low] = self._pass(prompt, name, lockstep)
            self._held.move_to_end((prompt, low))
        self._engine.prepare(images, len(prompts), plan.slots, schedule.zero_slots + slots, lockstep=lockstep)
        settings = self._engine.settings
        if settings.condition is None:
            return Prefixes()
        seen = np.zeros((len(prompts), slots), np.bool_)
        for row, prompt in enumerate(prompts):
            assert prompt.rows is not None
            settings.condition[row] = prompt.rows[-1]
            if prompt.before:
                seen[row, slots - prompt.before :] = True
                first = schedule.zero_slots + slots - prompt.before
                for name, values in zip(self._names, self._held[prompt, low], strict=True):
                    self._engine.write_cache(name, row, first, values)
        self._forget(distinct)
        self.seconds += time.perf_counter() - start
        places = None
        if self._model.positions == "sequence":
            places = np.array([[prompt.before] for prompt in prompts], np.int64)
        return Prefixes(seen if slots else None, places)

    def release(self) -> None:
        """Drop the caches of prompts that the next request is not likely to have."""
        self._forget(())

    def clear(self) -> None:
        self._held.clear()

    def _forget(self, present: Sequence[tuple[Prompt, bool]]) -> None:
        """Drop the caches of prompts that are neither in this batch nor likely to come again."""
        others = [held for held in self._held if held not in present]
        kept = [held for held in others if held[0].keep][-KEPT:]
        for held in others:
            if held not in kept:
                del self._held[held]

    def _pass(self, prompt: Prompt, name: str, lockstep: int) -> Caches:
        """The caches of one prompt, which goes through the step graph in chunks. `name`: for messages.

        `lockstep`: the widest of the steps that it is for, as `Engine.prepare` takes it.
        """
        engine, count = self._engine, prompt.before
        assert prompt.rows is not None
        chunks = self._chunks(prompt, name)
        slots = sum(chunks[-1])
        engine.prepare(1, 1, slots, zero_slots=slots, condition=count, lockstep=lockstep)
        settings = engine.settings
        assert settings.condition is not None
        settings.temperature[:], settings.top_k[:], settings.top_p[:] = 1, 0, 1  # without filters
        settings.condition[0] = prompt.rows[:-1]
        for first, width in chunks:
            buffers = engine.buffers(width)
            place = np.minimum(np.arange(first, first + width), count - 1)  # padding repeats the last
            buffers.tokens[:] = prompt.token + place
            buffers.positions[:] = place if self._model.positions == "sequence" else 0
            buffers.write_index[:] = first
            sees = np.where(place < prompt.together, prompt.together - 1, place)
            buffers.mask[:] = np.arange(slots) <= sees[:, None]
            buffers.guidance[:] = 1
            engine.run(width)
            if (buffers.next_tokens == NO_TOKEN).any():
                spoilt = spoilt_cache(engine, self._model, first + width)
                engine.prepare(1, 1, slots, zero_slots=slots, condition=count, lockstep=lockstep)
                raise NumericsError(
                    f"{name}: the logits are non-finite in its first {min(first + width, count)} tokens of {count + 1}"
                    f"{spoilt}; check its features, {advice(engine)}"
                )
        return [engine.cache(name)[0, :, :count].copy() for name in self._names]

    def _chunks(self, prompt: Prompt, name: str) -> list[tuple[int, int]]:
        """The first row of each chunk of a prompt, and the width that the engine runs it with."""
        known = self._engine.prefill_widths
        if known is None:
            chunk = max(min(CHUNK, self._model.position_rows), prompt.together)
        elif prompt.together > (chunk := max(known)):
            raise EngineError(
                f"{name} has {prompt.together} tokens that see each other, the engine takes {chunk} at once: build it "
                f"again with --prefill-width {prompt.together}, or ask for a causal prefill"
            )
        firsts = range(0, prompt.before, chunk)
        return [(first, fitting_width(min(chunk, prompt.before - first), known)) for first in firsts]
