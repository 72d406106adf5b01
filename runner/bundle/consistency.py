"""What a manifest's parts must have in common, beyond what its schema says of each."""

from __future__ import annotations

from collections.abc import Iterator

from arforge.runner.bundle.facts import ClassCondition, IdsCondition, ImageTokenizerFacts, ModelFacts


def problems(model: ModelFacts, tokenizer: ImageTokenizerFacts | None) -> Iterator[str]:
    """What contradicts itself, in words."""
    if model.caches > model.layers:
        yield f"{model.caches} caches for {model.layers} layers"
    before = 0 if isinstance(model.condition, ClassCondition) else model.condition.slots - 1
    places = 1 + model.last_position + (before if model.positions == "sequence" else 0)
    if model.position_rows < places:
        yield f"{model.position_rows} positions for {places} places"
    yield from of_condition(model)
    taken = max(model.vocabulary - 1, class_ids(model))
    if len(set(model.specials)) != len(model.specials) or min(model.specials, default=taken + 1) <= taken:
        yield "special tokens overlap image tokens, the classes, or each other"
    if model.row_end is not None and model.row_end >= len(model.specials):
        yield f"row_end {model.row_end} of {len(model.specials)} special tokens"
    if tokenizer is not None:
        yield from of_images(model, tokenizer)


def class_ids(model: ModelFacts) -> int:
    """The largest id of a class; -1 where there are none."""
    return model.condition.null_class if isinstance(model.condition, ClassCondition) else -1


def of_condition(model: ModelFacts) -> Iterator[str]:
    condition = model.condition
    if isinstance(condition, ClassCondition):
        last = condition.first_class + condition.classes - 1
        if not model.vocabulary <= condition.first_class <= last < condition.null_class:
            yield "class ids overlap image tokens or the null class"
        if model.labels is not None and len(model.labels) != condition.classes:
            yield f"{len(model.labels)} labels for {condition.classes} classes"
        return
    if model.labels is not None:
        yield "labels, and no classes"
    if isinstance(condition, IdsCondition):
        yield from of_template(condition)


def of_template(condition: IdsCondition) -> Iterator[str]:
    ids = [*condition.prefix, *condition.suffix, *condition.negative]
    largest = max([*ids, 0 if condition.padding is None else condition.padding])
    if largest >= condition.vocabulary:
        yield f"prompts have the id {largest} of a vocabulary of {condition.vocabulary}"
    if not 1 <= condition.start <= len(condition.suffix):
        yield f"an image begins with {condition.start} of the {len(condition.suffix)} ids behind a prompt"
    template = len(condition.prefix) + len(condition.suffix)
    if max(template, len(condition.negative)) > condition.slots:
        yield f"prompts of {condition.slots} ids have no room for their own template, or for the negative one"
    if condition.unconditional == "padded" and condition.padding is None:
        yield "unconditional prompts are padded, and there is no padding"


def of_images(model: ModelFacts, tokenizer: ImageTokenizerFacts) -> Iterator[str]:
    if tokenizer.codebook_size != model.vocabulary:
        yield f"image tokenizer has {tokenizer.codebook_size} codes, the model {model.vocabulary} tokens"
    expected = (model.grid[0] * tokenizer.downsampling, model.grid[1] * tokenizer.downsampling)
    if tokenizer.image_size != expected:
        yield f"image size {tokenizer.image_size}, the grid makes {expected}"
