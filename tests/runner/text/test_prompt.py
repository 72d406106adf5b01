from __future__ import annotations

import pytest

from arforge.runner import RequestError
from arforge.runner.text.prompt import MAX_CHARACTERS, check_prompt, shown


@pytest.mark.parametrize("text", ["a cat", " a\tcat\n", "猫", "x" * MAX_CHARACTERS, "\0", "😀"])
def test_text_is_a_prompt_as_it_stands(text: str) -> None:
    assert check_prompt(text) is text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "a prompt must be text, not int"),
        (None, "a prompt must be text, not NoneType"),
        (b"a cat", "a prompt must be text, not bytes"),
        ("", "the prompt is empty: say what to paint"),
        (" \t\n\u3000", "the prompt is empty: say what to paint"),
        ("x" * (MAX_CHARACTERS + 1), r"the prompt 'x{40}\.\.\.' has 10001 characters, at most 10000 are read"),
        ("cat \ud83d", r"the prompt 'cat \\ud83d' holds half a character \(U\+D83D\) at 4: give it as valid Unicode"),
    ],
)
def test_what_is_no_prompt_is_refused(text: object, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}$"):
        check_prompt(text)


def test_messages_show_a_prompts_beginning() -> None:
    assert shown("a cat") == "'a cat'"
    assert shown("é" * 41) == repr("é" * 40 + "...")
    assert shown("a\u202eb\x1b[2J") == r"'a\u202eb\x1b[2J'"
