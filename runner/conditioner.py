"""From what a request asks for, classes, texts, features or ids, to the conditions of its images."""

from __future__ import annotations

from arforge.runner.bundle import Bundle, ClassCondition, FeaturesCondition, IdsCondition
from arforge.runner.conditions import ConditionGraph, Conditions, Features, class_conditions
from arforge.runner.errors import RequestError
from arforge.runner.request import OF_IDS, Request, asked_of, check_classes, truth
from arforge.runner.text.encoder import TextEncoder
from arforge.runner.text.features_file import check_features
from arforge.runner.text.id_prompts import IdTemplate


class Conditioner:
    """A bundle's tokenizer, text encoder and condition graph, opened when they are first used."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle = bundle
        self._graph, self._encoder = ConditionGraph(bundle, threads), TextEncoder(bundle, threads)
        self._template = IdTemplate(bundle)

    def conditions(self, request: Request, *, guided: bool = True) -> Conditions:
        """One for each image of the request. Raises RequestError if it asks for what the model does not take.

        `guided`: whether unconditional rows will run; else what those would see may be missing.
        """
        model = self._bundle.model
        by, asked = asked_of(request)
        if isinstance(model.condition, IdsCondition):
            if by not in ("prompts", "ids"):
                raise RequestError(f"this {model.family} model takes prompts, in words or ids, not {by}")
            if request.captions is not None:
                raise RequestError(f"this {model.family} model reads prompts as they are: leave captions out")
            return self._graph.of_ids(self._template.prompts(request, by, asked, guided))
        for name in OF_IDS:
            if getattr(request, name) is not None:
                raise RequestError(f"this {model.family} model knows no {name.replace('_', ' ')}: leave it out")
        if not isinstance(model.condition, ClassCondition):
            return self._graph.of_features(self.features(request))
        if by != "classes":
            raise RequestError(f"this {model.family} model takes classes, not {by}")
        return class_conditions(model, check_classes(asked, model))

    def features(self, request: Request) -> list[Features]:
        """Those of a request's prompts, of a model that takes them. Raises RequestError as `conditions` does."""
        model = self._bundle.model
        by, asked = asked_of(request)
        assert isinstance(model.condition, FeaturesCondition)
        if by == "classes":
            raise RequestError(f"this {model.family} model takes prompts, not classes: say in words what to draw")
        if by == "prompts":
            captions = model.condition.captions if request.captions is None else request.captions
            if captions not in ("clean", "raw"):
                raise RequestError(f"captions {captions!r} are unknown: use 'clean' or 'raw'")
            cut = truth("truncate", request.truncate)
            asked = self._encoder.features(asked, cleaning=captions == "clean", truncate=cut)
        elif by == "ids":
            asked = self._encoder.features_of_ids(asked)
        return check_features(asked, model.condition.slots, model.condition.width)

    def close(self) -> None:
        self._graph.close()
        self._encoder.close()
        self._template.close()
