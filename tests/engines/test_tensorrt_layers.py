"""The builder's listing of layers is read, and each thing that may be wrong with it is found."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from arforge.engines.tensorrt_layers import (
    Expected,
    Layer,
    Tensor,
    attention_kernels,
    check_layers,
    dump_layers,
    load_layers,
    parse_layers,
)
from arforge.runner import EngineError

# In the form in which TensorRT-RTX 1.7.1 lists them: a product, a cache update and an attention of two profiles.
TENSOR = "{{ Name: {}, Dimensions: [{}], Strides: [1], StrideOrder: [0], Datatype: {}, Format: (Linear) Row major }}"
ENTRY = (
    "Name: {}, LayerType: {}, Inputs: [ {}], Constants: [{}], Outputs: [ {}], TacticName: a_tactic, StreamId: 0, "
    "Metadata: [ONNX Layer: {}]"
)


def listing(profile: int, mark: str) -> list[str]:
    cache = TENSOR.format(f"new_key_cache_0{mark}", "2,4,8,16", "Half")
    wide = TENSOR.format(f"x{mark}", "2,64", "Half")
    return [
        ENTRY.format(f"node_q{mark}_myl{profile}_0", "gemm", wide, "", wide, "node_q]\x1f[ONNX Layer: node_k"),
        ENTRY.format(f"__myl_Scat_myl{profile}_1", "kgen", f"{wide}, {cache}", "", cache, "node_write"),
        ENTRY.format(f"_gemv_mha_v1_myl{profile}_2", "kgen", cache, "", wide, "node_attention"),
    ]


TEXT = "\n".join(["Layers:", *listing(1, ""), *listing(4, " [profile 1]"), "", "I/O Tensors:", " Name: x, IOMode: In"])
LAYERS = parse_layers(TEXT)
WANTED = Expected(("key_cache_0",), ("node_attention",), (), (), ("node_q",))


def changed(index: int, **fields: object) -> list[Layer]:
    return [replace(layer, **fields) if place == index else layer for place, layer in enumerate(LAYERS)]  # type: ignore[arg-type]


def test_listings_are_read() -> None:
    assert [(layer.kind, layer.profile) for layer in LAYERS] == [
        (k, p) for p in (0, 1) for k in ("gemm", "kgen", "kgen")
    ]
    assert LAYERS[0].origin == LAYERS[3].origin == ("node_q", "node_k")
    assert LAYERS[4].outputs == (Tensor("new_key_cache_0", (2, 4, 8, 16), "Half"),)
    assert [layer.name for layer in attention_kernels(LAYERS)] == ["_gemv_mha_v1_myl1_2", "_gemv_mha_v1_myl4_2"]
    assert parse_layers("another form\nof listing") == []


def test_they_survive_being_stored() -> None:
    assert load_layers(dump_layers(LAYERS)) == LAYERS
    for content in (b"", b"{", b'[{"name": "x"}]', b'[{"name": 1, "extra": 2}]', b"[1]"):
        with pytest.raises(EngineError, match="cannot be read .*rebuild the engine"):
            load_layers(content)


def test_a_good_engine_has_no_problems() -> None:
    assert check_layers(LAYERS, WANTED, 2) == []


CACHE = LAYERS[1].outputs[0]
FLOAT = (Tensor("x", (2, 64), "Float"),)
INT8 = (Tensor("x", (2, 64), "Int8"),)


@pytest.mark.parametrize(
    ("layers", "wanted", "problem"),
    [
        (
            changed(1, inputs=(replace(CACHE, name="key_cache_0"), CACHE)),
            WANTED,
            "__myl_Scat_myl1_1 copies key_cache_0",
        ),
        (changed(1, inputs=FLOAT), WANTED, "overwrites key_cache_0"),
        (changed(4, outputs=FLOAT), WANTED, "profile 1: nothing writes key_cache_0"),
        (changed(2, name="__myl_Softmax_myl0_2"), WANTED, "profile 0: attention node_attention is not one kernel"),
        (changed(3, inputs=FLOAT), WANTED, r"profile 1: product .* reads float32 x"),
        (LAYERS, replace(WANTED, quantized=("node_q",), low=()), "profile 0: product node_q does not run on int8"),
        (LAYERS[:3], WANTED, "profile 1: no layers listed"),
        ([], WANTED, "profile 0: no layers listed"),
    ],
)
def test_each_problem_is_found(layers: list[Layer], wanted: Expected, problem: str) -> None:
    found = check_layers(layers, wanted, 2)
    assert any(re.search(problem, line) for line in found), found


def test_int8_products_need_int8_on_both_sides() -> None:
    wanted = replace(WANTED, quantized=("node_q", "node_k"), low=())
    both = [replace(one, inputs=INT8, constants=INT8) if one.kind == "gemm" else one for one in LAYERS]
    assert check_layers(both, wanted, 2) == []
    one_side = [replace(one, constants=()) for one in both]
    assert len(check_layers(one_side, wanted, 2)) == 4
