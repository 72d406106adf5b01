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

MAX_IDS = 1 << 20  # of a file; the model has its own limit

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
    click.option(
        "--prompt-ids",
        type=PATH,
        multiple=True,
        help="Ids of prompts' tokens as .npy: int64 or int32 [prompts, slots], or [tokens] of one; repeatable.",
    ),
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
    click.option("--negative", metavar="TEXT", help="What not to draw, of models that read ids of prompts."),
    click.option("--negative-ids", type=PATH, help="The same as ids of tokens, .npy: int64 or int32 [tokens]."),
    click.option(
        "--unconditional",
        type=click.Choice(["padded", "image", "negative"]),
        help="What guidance leads away from, of models that read ids: the prompt padded, none, or a negative one.  "
        "[default: the bundle's]",
    ),
    click.option(
        "--prefill",
        type=click.Choice(["causal", "bidirectional"]),
        help="Whether the tokens of a prompt see those behind them, of models that read ids.  [default: causal]",
    ),
)


@dataclass(frozen=True)
class Asked:
    """These options as given; by default none is."""

    classes: tuple[tuple[int | str, ...], ...] = ()
    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    features: Path | None = None
    features_mask: Path | None = None
    prompt_ids: tuple[Path, ...] = ()
    prompt_ids_mask: Path | None = None
    captions: str | None = None
    truncate: bool = False
    negative: str | None = None
    negative_ids: Path | None = None
    unconditional: str | None = None
    prefill: str | None = None

    def subjects(self, model: ModelFacts) -> Subjects | None:
        """What to draw; None where nothing was said.

        Raises RequestError for files that do not fit, UsageError for options that do not go together.
        """
        from arforge.runner.bundle import ClassCondition, FeaturesCondition
        from arforge.runner.errors import RequestError
        from arforge.runner.request import Subjects
        from arforge.runner.text.features_file import read_features, read_ids
        from arforge.runner.text.prompts_file import read_prompts

        words = bool(self.prompts) or self.prompts_file is not None
        given = {
            "--class": bool(self.classes),
            "--prompt": words,
            "--features": self.features is not None,
            "--prompt-ids": bool(self.prompt_ids),
        }
        named = [name for name, there in given.items() if there]
        if len(named) > 1:
            raise click.UsageError(f"say what to draw by one of {' and '.join(named)}")
        if self.features_mask is not None and self.features is None:
            raise click.UsageError("--features-mask goes with --features")
        if self.prompt_ids_mask is not None and len(self.prompt_ids) != 1:
            raise click.UsageError("--prompt-ids-mask goes with --prompt-ids, one of them")
        if not words and (self.truncate or self.captions):
            raise click.UsageError("--captions and --truncate go with --prompt or --prompts")
        of_ids = self._of_ids()
        if self.classes:
            return Subjects("classes", tuple(label for group in self.classes for label in group), of_ids)
        if words:
            lines = [] if self.prompts_file is None else read_prompts(self.prompts_file)
            settings = {"captions": self.captions, "truncate": self.truncate, **of_ids}
            return Subjects("prompts", (*self.prompts, *lines), settings)
        by = "features" if self.features is not None else "ids"
        if self.features is None and not self.prompt_ids:
            if of_ids:
                raise click.UsageError(f"{', '.join(of_ids).replace('_', '-')}: say what to draw with --prompt, too")
            return None
        condition = model.condition
        if isinstance(condition, ClassCondition):
            raise RequestError(f"this {model.family} model takes classes, not {by}")
        if self.features is None:
            ids = [one for path in self.prompt_ids for one in read_ids(path, self.prompt_ids_mask, condition.slots)]
            return Subjects(by, tuple(ids), of_ids)
        if not isinstance(condition, FeaturesCondition):
            raise RequestError(f"this {model.family} model takes prompts, in words or ids, not features")
        size = condition.slots, condition.width
        return Subjects(by, tuple(read_features(self.features, self.features_mask, *size)), of_ids)

    def _of_ids(self) -> dict[str, Any]:
        """The settings that go with models which read ids of prompts, those that are given."""
        from arforge.runner.text.features_file import read_ids

        given: dict[str, Any] = {
            "negative": self.negative,
            "unconditional": self.unconditional,
            "prefill": self.prefill,
        }
        if self.negative_ids is not None:
            given["negative_ids"] = read_ids(self.negative_ids, None, MAX_IDS)
        return {name: value for name, value in given.items() if value is not None}


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
