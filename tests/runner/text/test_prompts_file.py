from __future__ import annotations

from pathlib import Path

import pytest

from arforge.runner import RequestError
from arforge.runner.text.prompts_file import read_prompts


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"a cat\ntwo dogs\n", ["a cat", "two dogs"]),
        (b"a cat\r\ntwo dogs", ["a cat", "two dogs"]),
        (b"\xef\xbb\xbfa cat\n", ["a cat"]),
        ("猫\n  naïve café \n".encode(), ["猫", "  naïve café "]),
        (b"a cat\n\n \r\n\n", ["a cat"]),
        ("a\x0bb\x0cc\u2028d\u0085e\rf\n".encode(), ["a\x0bb\x0cc\u2028d\u0085e\rf"]),  # no ends of lines
    ],
)
def test_a_line_is_a_prompt(tmp_path: Path, content: bytes, prompts: list[str]) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    assert read_prompts(tmp_path / "p.txt") == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.txt holds no prompts: write one a line"),
        (b"\n \n", "p.txt holds no prompts: write one a line"),
        (b"a cat\n\nb\n", "p.txt, line 2 is blank: leave it out, so that images are counted as lines are"),
        (b"a cat\nna\xefve\n", "p.txt, line 2: byte 0xef is not UTF-8: save the file as UTF-8"),
        ("a cat\n".encode("utf-16"), "p.txt, line 1: byte 0xff is not UTF-8: save the file as UTF-8"),
        (b"a\n" + b"x" * 20_000, r"p.txt, line 2: the prompt 'x{40}\.\.\.' has 20000 characters"),
    ],
)
def test_what_is_no_file_of_prompts_is_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_prompts(tmp_path / "p.txt")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read .*gone.txt: No such file or directory"):
        read_prompts(tmp_path / "gone.txt")
    with pytest.raises(RequestError, match="cannot read .*: Is a directory"):
        read_prompts(tmp_path)
