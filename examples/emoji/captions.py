"""Captions of the emoji: what each can be called, put into sentences; some wordings are kept from training.

A wording is a phrase ("red heart") in a template ("a picture of {}"). Half of the held-out ones have a template that
training never sees, half are combinations of a phrase and a template that training sees apart.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data import Emoji
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# {} is the phrase, {a} the phrase with its article, {kind} the emoji's group.
TEMPLATES = (
    *("{}", "{}", "{}", "{a}", "{a}", "the {}", "{} emoji", "emoji of {a}", "emoji: {}", "an emoji of {a}"),
    *("a picture of {a}", "picture of {}", "an image of {a}", "image of {}", "a drawing of {a}", "drawing of {}"),
    *("an icon of {a}", "{} icon", "icon: {}", "a symbol for {}", "draw {a}", "show me {a}", "please draw {a}"),
    *("i want {a}", "give me {a}", "make {a}", "{}, {kind}", "{kind}: {}", "{} ({kind})", "a small picture of {a}"),
    *("a {} on white", "{} on a white background", "this is {a}", "here is {a}", "one {}", "a nice {}", "{} picture"),
)
UNSEEN_TEMPLATES = (
    *("a small drawing of {a}", "please show me {a}", "can you draw {a}", "{} drawing", "a picture: {}"),
    *("make me an emoji of {a}", "a nice picture of {a}", "i want a picture of {a}", "an icon for {}", "{}, please"),
)
HELD_OUT = 1000
TOKENS = 2000  # vocabulary of the text tokenizer
LONGEST = 24  # tokens of a caption
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Wording:
    text: str
    emoji: int


def split(emoji: Sequence[Emoji], seed: int = 0, held_out: int = HELD_OUT) -> tuple[list[Wording], list[Wording]]:
    """All training wordings, and `held_out` others, fewer of few emoji: no text is in both."""
    draw = random.Random(seed)
    called = phrases(emoji)
    seen = sorted({(fill(t, p, emoji[i]), i) for i, ps in enumerate(called) for p in ps for t in TEMPLATES})
    texts = {text for text, _ in seen}
    unseen = sorted({(fill(t, p, emoji[i]), i) for i, ps in enumerate(called) for p in ps for t in UNSEEN_TEMPLATES})
    unseen = [pair for pair in unseen if pair[0] not in texts]
    bare = {phrase for ps in called for phrase in ps}
    combined = [pair for pair in seen if pair[0] not in bare]
    kept = draw.sample(combined, min(held_out // 2, len(combined) // 4))
    kept_texts = {text for text, _ in kept}
    train = [Wording(*pair) for pair in seen if pair[0] not in kept_texts]
    test = [Wording(*pair) for pair in kept + draw.sample(unseen, min(held_out - held_out // 2, len(unseen)))]
    return train, test


def phrases(emoji: Sequence[Emoji]) -> list[list[str]]:
    """What each emoji is called, in lower case. A phrase that two emoji share is the one's whose name it is."""
    names = [clean(one.name) for one in emoji]
    owners = dict(zip(reversed(names), reversed(range(len(names))), strict=True))
    every = [[name, *others(one, name)] for one, name in zip(emoji, names, strict=True)]
    count = Counter(phrase for ps in every for phrase in set(ps))
    return [
        sorted({p for p in ps if owners.get(p, i if count[p] == 1 else -1) == i} or {names[i]})
        for i, ps in enumerate(every)
    ]


def others(one: Emoji, name: str) -> Iterable[str]:
    """Short names, and other word orders of the name."""
    for short in one.short_names:
        words = clean(short.replace("_", " ").replace("-", " "))
        if len(words) > 2 and not re.search(r"\d", words) and not words.startswith("flag "):
            yield words
    if one.group == "country-flag":
        country = name.removesuffix(" flag")
        yield from (f"flag of {country}", f"{country}'s flag", f"national flag of {country}")
    for joint in (" with ", " of ", " on ", " in "):
        if name.count(joint) == 1:
            head, tail = name.split(joint)
            yield f"{tail} {head}"
            if joint == " with ":
                yield f"{head} and {tail}"
                yield f"{head} that has {tail}"
    match = re.fullmatch(r"(man|woman|person) (.+ing .+|.+ing)", name)
    if match:
        yield from (f"{match[1]} who is {match[2]}", f"{match[2]} {match[1]}")
    parts = name.split()
    if len(parts) == 2:
        yield f"{parts[1]}, {parts[0]}"
    if name.startswith("clock face "):
        yield from (f"clock at {name.removeprefix('clock face ')}", f"{name.removeprefix('clock face ')} on a clock")


def clean(text: str) -> str:
    """Lower case, without the words that only Unicode uses."""
    text = text.lower().replace(": ", " with ").replace("’", "'")
    text = re.sub(r"[^a-z0-9+'&#*!?. ()à-ÿ-]", " ", text)
    if len(text.split()) > 2:
        text = re.sub(r"\b(sign|symbol)$", "", text)
    return " ".join(text.split())


def fill(template: str, phrase: str, one: Emoji) -> str:
    kind = one.group.replace("-", " ")
    plain = phrase.endswith("s") or phrase.startswith(("the ", "a ", "an "))
    article = phrase if plain else f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"
    return template.replace("{a}", article).replace("{kind}", kind).replace("{}", phrase)


def train_tokenizer(texts: Iterable[str], size: int = TOKENS) -> Tokenizer:
    """A unigram tokenizer as T5's: ids 0, 1, 2 are padding, end, unknown; the end is added. Lower-cases."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [PAD, END, UNKNOWN]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token=UNKNOWN, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], longest: int = LONGEST) -> list[list[int]]:
    """The ids of each text, the end last; longer ones are cut."""
    return [
        ids if len(ids := encoding.ids) <= longest else [*ids[: longest - 1], 1]
        for encoding in tokenizer.encode_batch(list(texts))
    ]
