"""Prompts on the command line: texts through a text encoder of the bundle, features and ids from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny_text import SLOTS, WIDTH

from arforge.cli import main
from arforge.runner import Runner

PROMPTS = ["a cat on the mat", "Two CATS, a dog; and a mat!", "the dog"]


def arforge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tokens_of(*arguments: object, into: Path) -> np.ndarray:
    result = arforge("run", *arguments, "--tokens", into, "--quiet")
    assert result.exit_code == 0, result.output
    tokens: np.ndarray = np.load(into)
    return tokens


def test_prompts_as_options_as_a_file_as_features_and_as_ids_are_the_same(words_bundle: Path, tmp_path: Path) -> None:
    listed = tokens_of(words_bundle, *(w for text in PROMPTS for w in ("--prompt", text)), into=tmp_path / "a.npy")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", "utf-8")
    read = tokens_of(words_bundle, "--prompts", tmp_path / "prompts.txt", into=tmp_path / "b.npy")
    np.testing.assert_array_equal(read, listed)
    with Runner.open(words_bundle, threads=1) as runner:
        given = runner.generate(prompts=PROMPTS)
        features = runner._conditioner._encoder.features(PROMPTS, cleaning=True)
        raw = runner.generate(prompts=PROMPTS, captions="raw")
        ids = runner._conditioner._encoder.ids(PROMPTS, cleaning=True)
        np.testing.assert_array_equal(runner.generate(ids=ids).tokens, listed)
    np.testing.assert_array_equal(given.tokens, listed)
    assert (raw.tokens[1] != given.tokens[1]).any()  # capitals
    padded, mask = np.zeros((3, SLOTS, WIDTH), np.float32), np.zeros((3, SLOTS))
    for row, one in enumerate(features):
        padded[row, : len(one)], mask[row, : len(one)] = one, 1
        padded[row, len(one) :] = 7  # encoders leave something there
    np.save(tmp_path / "f.npy", padded)
    np.save(tmp_path / "m.npy", mask)
    arguments = ("--features", tmp_path / "f.npy", "--features-mask", tmp_path / "m.npy")
    np.testing.assert_array_equal(tokens_of(words_bundle, *arguments, into=tmp_path / "c.npy"), listed)
    padded_ids = np.full((3, SLOTS), -100, np.int32)
    for row, one in enumerate(ids):
        padded_ids[row, : len(one)] = one
    np.save(tmp_path / "i.npy", padded_ids)
    arguments = ("--prompt-ids", tmp_path / "i.npy", "--prompt-ids-mask", tmp_path / "m.npy")
    np.testing.assert_array_equal(tokens_of(words_bundle, *arguments, into=tmp_path / "d.npy"), listed)


def test_samples_go_round_the_prompts(words_bundle: Path, tmp_path: Path) -> None:
    words = ("--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--seed", 3)
    found = tokens_of(words_bundle, *words, "--samples", 3, into=tmp_path / "a.npy")
    alone = tokens_of(words_bundle, "--prompt", PROMPTS[0], "--seed", 5, into=tmp_path / "b.npy")
    np.testing.assert_array_equal(found[2], alone[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to draw: say what with --prompt TEXT"),
        (("--class", 1), "this llamagen-t2i model takes prompts, not classes"),
        (("--prompt", "a cat", "--class", 1), "say what to draw by one of --class and --prompt"),
        (("--prompt", ""), "empty"),
        (("--prompt", "a cat " * 40), "--truncate"),
        (("--prompts", "missing.txt"), "missing.txt"),
        (("--prompts", "latin.txt"), "UTF-8"),
        (("--features", "wide.npy"), "33"),
        (("--features", "right.npy", "--features-mask", "holes.npy"), "row 0 has ones behind zeros"),
        (("--features-mask", "holes.npy"), "--features-mask goes with --features"),
        (("--prompt-ids", "ids.npy"), "ids.npy: prompt 0 holds -1: ids are 0 or more"),
        (
            ("--prompt-ids", "right.npy"),
            "right.npy holds float32 [1, 4, 32]: expected int64 or int32 [prompts, length]",
        ),
        (("--prompt-ids", "ids.npy", "--prompt-ids-mask", "holes.npy"), "row 0 has ones behind zeros"),
        (("--prompt-ids", "ids.npy", "--prompt", "a"), "say what to draw by one of --prompt and --prompt-ids"),
        (("--prompt-ids-mask", "holes.npy"), "--prompt-ids-mask goes with --prompt-ids"),
        (("--captions", "raw"), "--captions and --truncate go with --prompt or --prompts"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    words_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("a café\n".encode("latin-1"))
    np.save("wide.npy", np.zeros((1, 4, WIDTH + 1), np.float32))
    np.save("right.npy", np.zeros((1, 4, WIDTH), np.float32))
    np.save("ids.npy", np.array([[5, 9, 1, -1]]))
    np.save("holes.npy", np.array([[1, 0, 1, 0]]))
    result = arforge("run", words_bundle, *arguments, "--tokens", "t.npy")
    assert result.exit_code in (1, 2), result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not Path("t.npy").exists()


def test_prompts_that_are_too_long_may_be_cut(words_bundle: Path, tmp_path: Path) -> None:
    assert tokens_of(words_bundle, "--prompt", "a cat " * 40, "--truncate", into=tmp_path / "a.npy").shape == (1, 64)


def test_prompts_and_models_of_classes_do_not_go_together(bundle: Path, text_bundle: Path, tmp_path: Path) -> None:
    result = arforge("run", bundle, "--prompt", "a cat", "--tokens", tmp_path / "t.npy")
    assert (result.exit_code, "takes classes, not prompts" in result.stderr) == (1, True)
    result = arforge("run", text_bundle, "--prompt", "a cat", "--tokens", tmp_path / "t.npy")
    assert result.exit_code == 1
    assert "has no text encoder: export it with --text-encoder FOLDER, or give features" in result.stderr
    np.save(tmp_path / "i.npy", np.array([[5, 1]]))
    for root, message in ((bundle, "takes classes, not ids"), (text_bundle, "has no text encoder: export it with")):
        result = arforge("run", root, "--prompt-ids", tmp_path / "i.npy", "--tokens", tmp_path / "t.npy")
        assert (result.exit_code, message in result.stderr) == (1, True)


def test_the_profile_says_what_prompts_take(words_bundle: Path, tmp_path: Path) -> None:
    words = ("--prompt", PROMPTS[0], "--repeats", 1, "--json", tmp_path / "p.json")
    result = arforge("profile", words_bundle, *words)
    assert result.exit_code == 0, result.output
    assert "ms to the first token (ntp)" in result.output
    with Runner.open(words_bundle, threads=1) as runner:
        (ids,) = runner._conditioner._encoder.ids([PROMPTS[0]], cleaning=True)
    tokens = len(ids)
    for row in json.loads((tmp_path / "p.json").read_text())["schedules"]:
        assert 0 < row["ms_to_filled_caches"] < row["ms_to_first_token"]
        assert row["prompt_slots"] == tokens - 1  # the last is the condition token
