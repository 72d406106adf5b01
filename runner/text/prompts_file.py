"""Prompts in a text file, one a line."""

from __future__ import annotations

import codecs
from pathlib import Path

from arforge.runner.errors import RequestError
from arforge.runner.json_file import read_small
from arforge.runner.text.prompt import check_prompt

MAX_BYTES = 1 << 26


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 file, one a line, as they stand there.

    Lines end in a line feed, with or without a carriage return before; a mark of byte order at the start is left out,
    and so are blank lines at the end. Raises RequestError, which names the line, for one that is not UTF-8, for a
    blank one before a prompt, since images are counted by lines, and for a prompt that `check_prompt` refuses.
    """
    lines = read_small(path, MAX_BYTES, RequestError).removeprefix(codecs.BOM_UTF8).split(b"\n")
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise RequestError(
                f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8: save the file as UTF-8"
            ) from None
    while prompts and not prompts[-1].strip():
        prompts.pop()
    if not prompts:
        raise RequestError(f"{path} holds no prompts: write one a line")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise RequestError(f"{path}, line {number} is blank: leave it out, so that images are counted as lines are")
        try:
            check_prompt(prompt)
        except RequestError as error:
            raise RequestError(f"{path}, line {number}: {error}") from None
    return prompts
