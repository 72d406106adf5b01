"""The tokenizer of a text encoder's folder, as the `tokenizer.json` that a bundle holds."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from arforge.export.file_kind import text_kind, text_of
from arforge.runner.errors import CheckpointError
from arforge.runner.json_file import read_small
from arforge.runner.text.tokenizer import MAX_BYTES, TextTokenizer, guarded

TOKENIZER = "tokenizer.json"
SENTENCES = "spiece.model"
TEXTS = ("a picture", "  Two  cats,\ta dog; 3 kites!", "naïve café – “fish & chips”", "ﬁ ½ 中文 😀", "x")
"""What a converted tokenizer is tried with."""


def read_word_tokenizer(folder: Path, end: int, vocabulary: int) -> tuple[bytes, list[str]]:
    """The content of a `tokenizer.json` that ends prompts with the id `end`, and notes on how it came about.

    Without one in the folder, `spiece.model` is converted, which needs transformers and sentencepiece. Raises
    CheckpointError if there is neither, or one that cannot be read, or adds other ids to a prompt, or has ids from
    `vocabulary` on; ArforgeError if tokenizers is missing.
    """
    path, notes = folder / TOKENIZER, []
    if path.is_file():
        data, name = read_small(path, MAX_BYTES, CheckpointError), str(path)
        refuse_text(data, path)
    elif (folder / SENTENCES).is_file():
        data, name = converted(folder / SENTENCES), f"{folder / SENTENCES}, converted,"
        notes.append(f"{SENTENCES}: converted, since there is no {TOKENIZER}")
    else:
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}, nor a {SENTENCES}: put the text encoder's tokenizer beside its weights"
        )
    opened = TextTokenizer(data, name, CheckpointError)
    tokenizer = opened.tokenizer
    with guarded(CheckpointError, f"{name} fails", "download it again"):
        if tokenizer.post_processor is None:
            add_end(opened, end, name)
            data = tokenizer.to_str().encode()
            notes.append(
                f"{TOKENIZER}: ends prompts with {tokenizer.id_to_token(end)} (id {end}) now, which it did not"
            )
        plain, whole = (tokenizer.encode(TEXTS[0], add_special_tokens=added).ids for added in (False, True))
        largest = max(tokenizer.get_vocab().values())
    if whole != [*plain, end]:
        raise CheckpointError(
            f"{name} makes {whole} of {TEXTS[0]!r}, expected {[*plain, end]}, which ends in the id {end}: use the "
            "tokenizer that the text encoder was trained with"
        )
    if largest >= vocabulary:
        raise CheckpointError(
            f"{name} has ids up to {largest}, the text encoder a table of {vocabulary}: use the tokenizer that it was "
            "trained with"
        )
    return data, notes


def refuse_text(data: bytes, path: Path) -> None:
    """Raise CheckpointError for what a download left in place of the file."""
    text = text_of(data[:1024])
    if text is not None and text.strip() and not text.lstrip().startswith("{"):
        raise CheckpointError(f"{path} is {text_kind(text)}")


def add_end(opened: TextTokenizer, end: int, name: str) -> None:
    """Make the tokenizer end prompts with that id. Raises CheckpointError if it has no such token."""
    from tokenizers.processors import TemplateProcessing

    token = opened.tokenizer.id_to_token(end)
    if token is None:
        raise CheckpointError(f"{name} has no token {end}, which ends a prompt: use the text encoder's own tokenizer")
    opened.tokenizer.post_processor = TemplateProcessing(single=f"$A {token}", special_tokens=[(token, end)])


def converted(path: Path) -> bytes:
    """The `tokenizer.json` of a SentencePiece model. Raises CheckpointError if it, or a package, is not usable."""
    refuse_text(read_small(path, MAX_BYTES, CheckpointError), path)
    try:
        processor, transformers = import_module("sentencepiece"), import_module("transformers")
    except ImportError as error:
        raise CheckpointError(
            f"{path.parent} has {path.name} and no {TOKENIZER}: download {TOKENIZER} too, or install what converts it: "
            "pip install transformers sentencepiece protobuf"
        ) from error
    try:
        sentences = processor.SentencePieceProcessor(model_file=str(path))
        with TemporaryDirectory() as alone:  # whatever else the folder says of tokenizers
            shutil.copy(path, Path(alone) / SENTENCES)
            found = transformers.T5TokenizerFast.from_pretrained(alone, extra_ids=0, local_files_only=True)
        tokenizer = found.backend_tokenizer
    except Exception as error:  # of any kind, by the libraries' versions
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot convert {path} ({reason}): download {TOKENIZER} too") from error
    for text in TEXTS:
        if tokenizer.encode(text, add_special_tokens=False).ids != sentences.encode(text):
            raise CheckpointError(f"{path}, converted, reads {text!r} in other ids: download {TOKENIZER} too")
    return str(tokenizer.to_str()).encode()
