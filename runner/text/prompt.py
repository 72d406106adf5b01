"""What a prompt may be, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from arforge.runner.errors import RequestError

MAX_CHARACTERS = 10_000  # many times what models have room for; some rules of cleaning take their square in time
SHOWN = 40  # characters that a message repeats


def check_prompt(text: object) -> str:
    """The prompt itself. Raises RequestError unless it is text that UTF-8 can write, not empty and not endless."""
    if not isinstance(text, str):
        raise RequestError(f"a prompt must be text, not {type(text).__name__}")
    if not text.strip():
        raise RequestError("the prompt is empty: say what to paint")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the prompt {shown(text)} has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt {shown(text)} holds half a character (U+{ord(text[error.start]):04X}) at {error.start}: "
            "give it as valid Unicode"
        ) from None
    return text


def check_prompts(prompts: Sequence[object]) -> list[str]:
    """Each prompt as `check_prompt` has it. Raises RequestError for one text in place of a list, too."""
    if isinstance(prompts, str):
        raise RequestError("prompts must be a list of texts, not one text: put it into a list")
    return [check_prompt(text) for text in prompts]


def shown(text: str) -> str:
    """The beginning of a prompt, quoted, for a message; in ASCII where it has signs that cannot be shown."""
    start = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return repr(start) if start.isprintable() else ascii(start)
