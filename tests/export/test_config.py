from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arforge.export.config import check_config, read_config, variant_config, variant_of
from arforge.export.families.llamagen import FAMILY, VARIANTS, LlamaGenConfig
from arforge.runner.errors import CheckpointError

FIELDS = {"dim": 64, "n_layer": 2, "n_head": 4, "vocab_size": 32, "num_classes": 10, "grid": [4, 6]}
OPTIONAL = {"n_kv_head": 2, "norm_eps": 1e-6, "rope_base": 500, "multiple_of": 32, "ffn_dim_multiplier": 1.3}


def read(tmp_path: Path, **changes: Any) -> LlamaGenConfig:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**FIELDS, **changes}))
    return read_config(path, FAMILY)


def test_required_fields_alone_get_the_published_defaults(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config == LlamaGenConfig(64, 2, 4, (4, 6), vocab_size=32, num_classes=10)
    assert (config.norm_eps, config.rope_base, config.multiple_of, config.kv_heads) == (1e-5, 10000.0, 256, 4)


def test_every_optional_field_is_taken(tmp_path: Path) -> None:
    config = read(tmp_path, **OPTIONAL)
    for name, value in OPTIONAL.items():
        assert getattr(config, name) == value
    assert read(tmp_path, n_kv_head=None, ffn_dim_multiplier=None) == read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be a positive whole number, not 0"),
        ({"dim": "64"}, "dim must be a positive whole number, not '64'"),
        ({"dim": 64.0}, "dim must be a positive whole number, not 64.0"),
        ({"dim": 2**30}, "dim must be a positive whole number, not 1073741824"),
        ({"n_layer": -1}, "n_layer must be a positive whole number, not -1"),
        ({"n_head": True}, "n_head must be a positive whole number, not True"),
        ({"vocab_size": [1]}, r"vocab_size must be a positive whole number, not \[1\]"),
        ({"num_classes": 0}, "num_classes must be a positive whole number, not 0"),
        ({"n_kv_head": 0}, "n_kv_head must be a positive whole number, not 0"),
        ({"multiple_of": 1.5}, "multiple_of must be a positive whole number, not 1.5"),
        ({"norm_eps": 0}, "norm_eps must be a positive number, not 0"),
        ({"norm_eps": "1e-5"}, "norm_eps must be a positive number, not '1e-5'"),
        ({"rope_base": -1.0}, "rope_base must be a positive number, not -1.0"),
        ({"rope_base": float("inf")}, "rope_base must be a positive number, not inf"),
        ({"ffn_dim_multiplier": float("nan")}, "ffn_dim_multiplier must be a positive number, not nan"),
        ({"ffn_dim_multiplier": False}, "ffn_dim_multiplier must be a positive number, not False"),
        ({"n_head": 5}, "n_head 5 does not divide dim 64"),
        ({"n_kv_head": 3}, "n_kv_head 3 does not divide n_head 4"),
        ({"n_head": 32}, r"head size 2 \(dim / n_head\) must be a multiple of 4"),
        ({"dim": 24}, "head size 6 .* multiple of 4"),
        ({"grid": [4]}, r"grid must be \[rows, columns\], not \[4\]"),
        ({"grid": 16}, r"grid must be \[rows, columns\], not 16"),
        ({"grid": [4, 0]}, r"grid must be \[rows, columns\], not \[4, 0\]"),
        ({"grid": [4, 2.0]}, r"grid must be \[rows, columns\]"),
        ({"grid": [4, 1025]}, r"grid \(4, 1025\) is larger than 1024 a side"),
        ({"gird": [4, 4]}, "has unknown gird; known: dim, "),
        ({"dim": None}, "dim must be a positive whole number|lacks dim"),
        ({"grid": None}, r"grid must be \[rows, columns\]|lacks grid"),
        ({"norm_eps": None, "n_head": 5}, "n_head 5 does not divide"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in FIELDS.items() if key != name}))
    with pytest.raises(CheckpointError, match=f"config.json lacks {name}; known: dim, "):
        read_config(path, FAMILY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot read the configuration"),
        (b"dim: 64", "cannot read the configuration"),
        (b"\xff", "cannot read the configuration"),
        (b"[" * 100000, "cannot read the configuration"),
        (b"[1]", "must hold a JSON object with dim, n_layer"),
        (b"null", "must hold a JSON object"),
    ],
    ids=["empty", "YAML", "not UTF-8", "deep", "list", "null"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_config(path, FAMILY)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the configuration .*nothing.json"):
        read_config(tmp_path / "nothing.json", FAMILY)


@pytest.mark.parametrize("side", [16, 24, 32])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_recognised_by_its_dimensions(name: str, side: int) -> None:
    config = variant_config(FAMILY, name, (side, side))
    assert config.grid == (side, side)
    assert variant_of(FAMILY, config) == name
    assert variant_of(FAMILY, replace(config, norm_eps=1e-6)) is None


def test_check_config_gives_back_what_is_sound() -> None:
    config = LlamaGenConfig(64, 2, 4, (4, 4))
    assert check_config(config, "here") is config
    with pytest.raises(CheckpointError, match="^here: n_layer must be"):
        check_config(replace(config, n_layer=0), "here")
