"""Cleaning of captions, against what the routine that models were trained with gives."""

from __future__ import annotations

import sys

import pytest

from arforge.runner.errors import ArforgeError, RequestError
from arforge.runner.text.captions import clean
from arforge.runner.text.prompt import MAX_CHARACTERS

# Each output was taken from the routine that LlamaGen's authors ship, on ftfy 6.3.1 and beautifulsoup4 4.15.0.
EXPECTED = [
    ("A Photo of a Cat", "a photo of a cat"),
    ("  two\tdogs\n\nrun ", "two dogs run"),
    ("a <person> and a <b>bold</b> man<br/>here", "a person and a bold manhere"),
    ("caf%C3%A9+au+lait 2+2", "café au lait 2 2"),
    ("see https://example.com/a-b/c?x=1 now", "see ?x=1 now"),
    ("http://example.com/a?b=1", "?b=1"),
    ("www.example.org and shop.co.uk/x_y!", "and uk x_y!"),
    ("mail me@site.com or @bob_1, @été", "mail me or"),
    ("東京 tower ㈱ カタカナ ㇰ 한국", "tower カタカナ 한국"),
    ("a — b – c ‐ d", "a - b - c - d"),
    ("well-known-red-cat-toy_x", "well known red cat toy x"),
    ("a-b-c-d", "a-b-c-d"),
    ("“curly” ‘single’ `tick` «g» ¨x´", 'curly" \'single\' "tick" "g" "x'),
    ("fish &amp; chips &quot;x&quot; &lt;tag&gt;", 'fish chips "x"'),
    ("&amp;lt;b&amp;gt;bold", "lt;b gt;bold"),
    ("host 192.168.0.1 up", "host up"),
    ("duration 12:30 ", "duration 12:30"),
    ("a clock at 5:45 ", "a clock at 5:45"),
    ("line\\nbreak", "line break"),
    ("no #12 #1234 #12345 tag", "no 1234 tag"),
    ("id 123456 12345", "id 12345"),
    ("photo of image.png and IMG_1.JPG.", "photo of and ."),
    ('\'\'twice\'\' """thrice"""', 'twice" "thrice'),
    ("wait... what.. . ok . then", "wait what ok then"),
    ("(a) [b] {c} | d \\ e / f * g", "a b c d e f g"),
    ("#tag ® © ™ • ½ ¿que? ¡hola! § º · ~", "tag que? hola!"),
    ("jc6640 ab12345 6640vc231 jc6640vc a1b2c3", ""),
    ("worldwide free shipping on shoes, free download now", "on shoes, now"),
    ("download free here, click for more, click on it", "here,"),
    ("png images of a jpeg, an mp4image", "of a , an"),
    ("see page 12 of the book", "see of the book"),
    ("1024x768 10.5×3 10х20 3x", "3x"),
    ("title : words :x", "title: words :x"),
    ("a,b.c/d 1,5 3.5", "a, b. c d 1,5 3.5"),
    ("'quoted'", "quoted"),
    ('"quoted"', "quoted"),
    ("'_,-:start", ",-:start"),
    ("end'_,-:+", "end'_,"),
    (".hidden", ""),
    ("- dash first -", "dash first"),
    ("ÃƒÂ© â€œmojibakeâ€\x9d naÃ¯ve", 'ãƒâ "mojibake" naã¯ve'),
    ("ﬁne ½ full－width ＡＢＣ", "fine full-width abc"),
    ("İstanbul STRASSE ß", "i̇stanbul strasse ß"),
    ("\u200bzero\xa0width\u2028sep", "\u200bzero width sep"),
    ("<script>x()</script>y<!-- note -->z", "yz"),
    ("5 < 6 > 4", "5 < 6 > 4"),
    ("a &copy; b &#65;&#x42;", "a b ab"),
    ("</s> <pad> <extra_id_0> x", "x"),
    ("😀 cat 👩\u200d🚀", "😀 cat 👩\u200d🚀"),
    ("Привет, мир", "привет, мир"),
    ("100% wool", "100% wool"),
    ("%", "%"),
    ("+", ""),
    ("...", ""),
    ("!!!", "!!!"),
    ("@bob", ""),
    ("", ""),
    ("it's the dog's", "it's the dog's"),
    ("x\x00y", "xy"),
    ("free shipping shipping download", ""),
    ("a 'b' \"c\"", "a 'b' \"c\""),
]


@pytest.mark.parametrize(("caption", "expected"), EXPECTED)
def test_captions_are_cleaned_as_in_training(caption: str, expected: str) -> None:
    assert clean(caption) == expected


@pytest.mark.parametrize("markup", ["<![foo", "<!", "a <![if x]> b", "<?php", "<![CDATA[x", "<" * 5000, "<a>" * 3000])
def test_broken_markup_is_cleaned_or_refused(markup: str) -> None:
    try:
        assert isinstance(clean(markup), str)
    except RequestError as error:
        assert "looks like broken markup: leave out < and >" in str(error)


@pytest.mark.parametrize("part", ["a.", "1", "a1", "<a ", "é", ". ", "\"'", "a-", "free "])
def test_the_longest_prompts_are_cleaned(part: str) -> None:
    assert len(clean(part * (MAX_CHARACTERS // len(part)))) <= 2 * MAX_CHARACTERS


@pytest.mark.parametrize("package", ["bs4", "ftfy"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = "beautifulsoup4" if package == "bs4" else package
    with pytest.raises(ArforgeError, match=rf"^cleaning captions needs {name}: pip install 'arforge\[text\]'$"):
        clean("a cat")
