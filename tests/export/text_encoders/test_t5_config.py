from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_text import change_config

from arforge.export.text_encoders.t5_config import T5Config
from arforge.runner.errors import CheckpointError

PATH = "config.json"


def test_fields_are_read_and_others_left(folder: Path) -> None:
    config = T5Config.read(folder / PATH)
    assert (config.d_model, config.d_kv, config.d_ff, config.num_layers, config.num_heads) == (32, 8, 48, 2, 6)
    assert (config.vocab_size, config.eos_token_id, config.layer_norm_epsilon) == (224, 1, 1e-6)
    assert (config.gated, config.activation) == (True, "gelu_new")


def test_fields_that_old_files_lack_have_t5s_values(folder: Path) -> None:
    lacking = ("relative_attention_max_distance", "feed_forward_proj", "eos_token_id", "layer_norm_epsilon")
    change_config(folder, **dict.fromkeys(lacking))
    config = T5Config.read(folder / PATH)
    assert (config.relative_attention_max_distance, config.eos_token_id) == (128, 1)
    assert (config.gated, config.activation) == (False, "relu")


@pytest.mark.parametrize(
    ("projection", "gated", "activation"),
    [
        ("gated-gelu", True, "gelu_new"),  # the hub's word for the one by tanh
        ("gated-gelu_new", True, "gelu_new"),
        ("gelu", False, "gelu"),
        ("gated-silu", True, "silu"),
        ("gated-swish", True, "silu"),
        ("swish", False, "silu"),
        ("relu", False, "relu"),
    ],
)
def test_activations_have_several_names(folder: Path, projection: str, gated: bool, activation: str) -> None:
    change_config(folder, feed_forward_proj=projection)
    config = T5Config.read(folder / PATH)
    assert (config.gated, config.activation) == (gated, activation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": None, "d_ff": None}, "config.json lacks d_model, d_ff: download it again"),
        ({"d_model": 0}, "config.json: d_model must be a whole number from 1 to 16777216, not 0"),
        ({"num_heads": "6"}, "num_heads must be a whole number from 1 to 16777216, not '6'"),
        ({"num_layers": 5000}, "num_layers must be a whole number from 1 to 1024, not 5000"),
        ({"num_layers": True}, "num_layers must be a whole number from 1 to 1024, not True"),
        ({"d_kv": 8.0}, "d_kv must be a whole number from 1 to 16777216, not 8.0"),
        ({"eos_token_id": [1]}, r"eos_token_id must be a whole number from 1 to 16777216, not \[1\]"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a small positive number, not 0"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon must be a small positive number, not 'x'"),
        (
            {"feed_forward_proj": "gated-mish"},
            "feed_forward_proj 'gated-mish' is none of relu, gelu, gelu_new, silu",
        ),
        ({"feed_forward_proj": 3}, "feed_forward_proj 3 is none of relu"),
        ({"relative_attention_num_buckets": 30}, "30 buckets for distances up to 128: expected a multiple of 4"),
        (
            {"relative_attention_max_distance": 8},
            "32 buckets for distances up to 8: expected a multiple of 4",
        ),
        ({"model_type": "umt5"}, "config.json is of the model type 'umt5', expected t5 or mt5: name the"),
        ({"model_type": None}, "config.json is of the model type None, expected t5 or mt5"),
    ],
)
def test_fields_that_make_no_encoder_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        T5Config.read(folder / PATH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.json is not valid JSON"),
        ("{", "config.json is not valid JSON"),
        ("[3]", "config.json is a JSON file, not a checkpoint"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "config.json is a Git LFS pointer"),
        ("<!DOCTYPE html><html><title>404</title>", r"config.json is a web page \('404'\)"),
        ('{"model_type": "t5", "model_type": "t5"}', "'model_type' is given twice"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / PATH).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        T5Config.read(tmp_path / PATH)
