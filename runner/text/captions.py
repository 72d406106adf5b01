"""Cleans captions as they were cleaned when text-to-image models learned them (the routine of DeepFloyd's IF).

A model that was trained on cleaned captions knows no others, so the rules stand here to the letter, with what looks
like a slip in them, and in their order: each reads what those before it left. The versions of ftfy and beautifulsoup4
decide single characters of odd captions.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable
from urllib.parse import unquote_plus

from arforge.runner.errors import RequestError
from arforge.runner.optional import needed

Rule = tuple[re.Pattern[str], str]
"""A pattern, and what stands in its place."""

PASSES = 2  # of the routine, as in training
FORMATS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
HOST = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
DASHES = "\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32"
SMALL_DASHES = "\ufe58\ufe63\uff0d"
QUOTES = str.maketrans(dict.fromkeys("`´«»“”¨", '"') | dict.fromkeys("‘’", "'"))
JOINTS = str.maketrans("-_", "  ")
MOST_JOINTS = 3  # in a caption whose dashes and underlines stay


def rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


IN_MARKUP = rules(
    ("<person>", "person"),
    *((rf"\b(?:{scheme}:(?:/{{1,3}}|[a-z0-9%])|{HOST})", "") for scheme in ("https?", "www")),
)
SIGNS = rules(
    (r"@\w+", ""),  # names of users
    ("[\u31c0-\u9fff]", ""),  # Chinese characters, their strokes, enclosed and squared ones
    (f"[-{DASHES}{SMALL_DASHES}]+", "-"),
)
NUMBERS_AND_FILES = rules(
    ("&quot;?|&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a line break, spelled out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FORMATS})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
WORDS = rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # numbers of articles
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FORMATS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second sign is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS = rules(  # of a caption that may still have a space there, which keeps what is behind it
    ("^[\"'](.+)[\"']$", r"\1"),
    ("^['_,:;-]", ""),
    ("['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


def clean(text: str) -> str:
    """The caption as a model's training has seen it; it may be empty.

    Raises RequestError for markup that no parser reads, and ArforgeError if a package of `arforge[text]` is missing.
    """
    for _ in range(PASSES):
        text = once(text)
    return text


def once(text: str) -> str:
    text = apply(IN_MARKUP, unquote_plus(text).strip().lower())
    text = apply(SIGNS, text_of_markup(text)).translate(QUOTES)
    text = apply(NUMBERS_AND_FILES, text)
    if text.count("-") + text.count("_") > MOST_JOINTS:
        text = text.translate(JOINTS)
    return apply(ENDS, apply(WORDS, mended(text))).strip()


def apply(these: Iterable[Rule], text: str) -> str:
    for pattern, replacement in these:
        text = pattern.sub(replacement, text)
    return text


def text_of_markup(text: str) -> str:
    """What a page with this source would say."""
    with needed("cleaning captions", "text"):
        from bs4 import BeautifulSoup
    try:
        # as a file: a string that looks like a file's name would be warned of
        return BeautifulSoup(io.StringIO(text), features="html.parser").text
    except Exception as error:  # versions of the parsers differ in what they raise for broken markup
        raise RequestError(
            "the prompt cannot be cleaned, since it looks like broken markup: leave out < and >, or the cleaning"
        ) from error


def mended(text: str) -> str:
    """Without traces of wrong decodings and of entities, those of entities too."""
    with needed("cleaning captions", "text"):
        import ftfy
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()
