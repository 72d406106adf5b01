"""The torch module of T5's encoder, against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import DIMENSIONS, random_t5

from arforge.export.rows import rows_of
from arforge.export.text_encoders import t5
from arforge.export.text_encoders.t5_config import T5Config

PROJECTIONS = ["gated-gelu", "gated-gelu_new", "gated-silu", "gated-relu", "relu", "gelu", "gelu_new", "silu"]


def module(model: Any, config: T5Config) -> t5.T5Encoder:
    """The own module with the weights of transformers'."""
    state = model.state_dict()
    own = t5.T5Encoder(config).eval()
    values = {name: t5.parameter(config, lambda stored: rows_of(state[stored]), name) for name in own.state_dict()}
    own.load_state_dict({name: rows_of(value).tensor() for name, value in values.items()})
    return own


def config_of(model: Any) -> T5Config:
    return T5Config(**{name: getattr(model.config, name) for name in T5Config.__dataclass_fields__})


@pytest.mark.parametrize("projection", PROJECTIONS)
@torch.no_grad()
def test_features_are_those_of_transformers(projection: str) -> None:
    model = random_t5(feed_forward_proj=projection)
    own = module(model, config_of(model))
    ids = torch.randint(0, DIMENSIONS["vocab_size"], (3, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 17:], mask[2, 1:] = 0, 0
    found = own(ids, mask)
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    alone = own(ids[1:2, :17], mask[1:2, :17])
    torch.testing.assert_close(alone[0], found[1, :17], rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_a_prompt_that_is_all_padding_gives_numbers() -> None:
    model = random_t5()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert torch.isfinite(module(model, config_of(model))(ids, torch.zeros_like(ids))).all()


@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (8, 20), (16, 64), (4, 2), (64, 4096)])
def test_buckets_of_distances_are_those_of_transformers(count: int, farthest: int) -> None:
    sizes = {"relative_attention_num_buckets": count, "relative_attention_max_distance": farthest}
    model = random_t5(num_layers=1, **sizes)
    distance = torch.arange(-2 * farthest, 2 * farthest + 1)
    attention = model.encoder.block[0].layer[0].SelfAttention
    expected = attention._relative_position_bucket(distance, True, count, farthest)
    found = t5.buckets(config_of(model))
    assert found.shape == (2 * farthest + 1,)
    torch.testing.assert_close(found[distance.clamp(-farthest, farthest) + farthest], expected)


def test_the_checkpoint_has_the_tensors_of_transformers() -> None:
    for projection in PROJECTIONS:
        model = random_t5(feed_forward_proj=projection, d_kv=5)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        shapes.pop("encoder.embed_tokens.weight", None)  # the table of words again
        assert t5.checkpoint_shapes(config_of(model)) == shapes
        assert all(any(part in name for name in shapes) for part in t5.SIGN)


def test_the_encoders_tensors_are_found_among_others() -> None:
    own = ["encoder.final_layer_norm.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"]
    others = ["decoder.final_layer_norm.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    same = {name: name for name in own}
    for table in (["shared.weight"], ["shared.weight", "encoder.embed_tokens.weight"]):
        found = t5.encoder_tensors(dict.fromkeys([*table, *own, *others]))
        assert found == {**same, "shared.weight": "shared.weight"}
    found = t5.encoder_tensors(dict.fromkeys(["encoder.embed_tokens.weight", *own, *others]))
    assert found == {**same, "shared.weight": "encoder.embed_tokens.weight"}
    assert t5.encoder_tensors(dict.fromkeys(own)) == same


def test_the_facts_of_flan_t5_xl() -> None:
    config = T5Config(32128, 2048, 64, 5120, 24, 32, feed_forward_proj="gated-gelu")
    shapes = t5.checkpoint_shapes(config)
    assert len(shapes) == 3 + 24 * 9
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_223_527_424
    assert shapes[t5.BUCKETS] == (32, 32)


def test_the_module_is_of_no_checkpoint_in_other_words(t5_folder: Path) -> None:
    config = T5Config.read(t5_folder / "config.json")
    names = set(t5.T5Encoder(config).state_dict())
    assert names - set(t5.checkpoint_shapes(config)) == {t5.DISTANCES}
