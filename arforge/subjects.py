"""The options that say what to draw, classes or prompts, which several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arforge.options import PATH, Classes

if TYPE_CHECKING:
    from arforge.runner.bundle import ModelFacts
    from arforge.runner.request import Subjects

OPTIONS = (
    click.option("--class", "classes", type=Classes(), multiple=True, help="Classes: 3 or 1,5 or 0-9, or a name."),
    click.option("--prompt", "prompts", metavar="TEXT", multiple=True, help="What to draw, in words; repeatable."),
    click.option("--prompts", "prompts_file", type=PATH, help="A file of prompts, one a line, UTF-8."),
    click.option("--features", type=PATH, help="Features of prompts as .npy: [prompts, slots, width]."),
    click.option(
        "--features-mask",
        type=PATH,
        help="Which of their slots hold features, as .npy: [prompts, slots], ones before zeros.  [default: all]",
    ),
    click.option("--prompt-ids", type=PATH, help="Ids of prompts' tokens as .npy: int64 or int32 [prompts, slots]."),
    click.option(
        "--prompt-ids-mask",
        type=PATH,
        help="Which of their slots hold ids, as .npy: [prompts, slots], ones before zeros.  [default: all]",
    ),
    click.option(
        "--captions",
        type=click.Choice(["clean", "raw"]),
        help="Clean prompts as the authors do, or take them as they are.  [default: the bundle's]",
    ),
    click.option("--truncate", is_flag=True, help="Cut off prompts that are too long."),
)


@dataclass(frozen=True)
class Asked:
    """These options as given."""

    classes: tuple[tuple[int | str, ...], ...]
    prompts: tuple[str, ...]
    prompts_file: Path | None
    features: Path | None
    features_mask: Path | None
    prompt_ids: Path | None
    prompt_ids_mask: Path | None
    captions: str | None
    truncate: bool

    def subjects(self, model: ModelFacts) -> Subjects | None:
        """What to draw; None where nothing was said.

        Raises RequestError for files that do not fit, UsageError for options that do not go together.
        """
        from arforge.runner.bundle import FeaturesCondition
        from arforge.runner.errors import RequestError
        from arforge.runner.request import Subjects
        from arforge.runner.text.features_file import read_features, read_ids
        from arforge.runner.text.prompts_file import read_prompts

        words = bool(self.prompts) or self.prompts_file is not None
        given = {
            "--class": bool(self.classes),
            "--prompt": words,
            "--features": self.features is not None,
            "--prompt-ids": self.prompt_ids is not None,
        }
        named = [name for name, there in given.items() if there]
        if len(named) > 1:
            raise click.UsageError(f"say what to draw by one of {' and '.join(named)}")
        if self.features_mask is not None and self.features is None:
            raise click.UsageError("--features-mask goes with --features")
        if self.prompt_ids_mask is not None and self.prompt_ids is None:
            raise click.UsageError("--prompt-ids-mask goes with --prompt-ids")
        if not words and (self.truncate or self.captions):
            raise click.UsageError("--captions and --truncate go with --prompt or --prompts")
        if self.classes:
            return Subjects("classes", tuple(label for group in self.classes for label in group))
        if words:
            lines = [] if self.prompts_file is None else read_prompts(self.prompts_file)
            return Subjects("prompts", (*self.prompts, *lines), {"captions": self.captions, "truncate": self.truncate})
        if self.features is None and self.prompt_ids is None:
            return None
        by = "features" if self.prompt_ids is None else "ids"
        if not isinstance(model.condition, FeaturesCondition):
            raise RequestError(f"this {model.family} model takes classes, not {by}")
        if self.features is None:
            assert self.prompt_ids is not None
            return Subjects(by, tuple(read_ids(self.prompt_ids, self.prompt_ids_mask, model.condition.slots)))
        size = model.condition.slots, model.condition.width
        return Subjects(by, tuple(read_features(self.features, self.features_mask, *size)))


def asked_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as one argument, `asked`."""

    @functools.wraps(command)
    def with_asked(*args: Any, **options: Any) -> Any:
        asked = Asked(**{field.name: options.pop(field.name) for field in fields(Asked)})
        return command(*args, asked=asked, **options)

    for option in reversed(OPTIONS):
        with_asked = option(with_asked)
    return with_asked


def how_to_ask(model: ModelFacts) -> str:
    """The options by which one asks a model, for messages."""
    return "--class" if model.condition.kind == "class" else "--prompt TEXT"
