"""A bundle's weights in each precision that they may be stored in: the same numbers for torch, graph and checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from tiny import ARPG_CONFIG, CONFIG, EMU3_CONFIG, JANUS_CONFIG, PAR_CONFIG, TEXT_CONFIG, random_weights
from torch import Tensor

from arforge.engines.graph_data import check_graphs
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families import arpg, emu3, janus, llamagen, llamagen_t2i, par
from arforge.export.storage import storage_of
from arforge.export.verify import check_weights, compare_condition, compare_logits, load_module
from arforge.runner import open_bundle
from arforge.runner.bundle import Bundle, Precision
from arforge.runner.errors import CheckpointError, VerificationError

FAMILIES = {
    "llamagen": (llamagen.FAMILY, CONFIG),
    "arpg": (arpg.FAMILY, ARPG_CONFIG),
    "par": (par.FAMILY, PAR_CONFIG),  # of a width that no block divides
    "llamagen-t2i": (llamagen_t2i.FAMILY, TEXT_CONFIG),
    "emu3": (emu3.FAMILY, EMU3_CONFIG),
    "janus": (janus.FAMILY, JANUS_CONFIG),
}


def exported(
    folder: Path,
    name: str,
    precision: Precision | None,
    weights: dict[str, Tensor] | None = None,
    block: int | None = None,
) -> Bundle:
    family, config = FAMILIES[name]
    save_file(weights or random_weights(config, 3, family), folder / "x.safetensors")
    job = ExportJob(
        family, config, folder / "x.safetensors", None, folder / "x.bundle", ["ntp"] if name == "llamagen" else []
    )
    export_bundle(ExportJob(**{**vars(job), "precision": precision, "block": block}))
    return open_bundle(folder / "x.bundle")


def types(bundle: Bundle, graph: str = "step") -> dict[str, str]:
    """Of what the graph's products and tables read."""
    model = onnx.load(bundle.graph(graph, "fp32"), load_external_data=False)
    kinds = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    return {name: kind for name, kind in kinds.items() if name.endswith("weight")}


CASES = [*(("llamagen", precision) for precision in ("bf16", "fp16", "int8")), *((name, "int4") for name in FAMILIES)]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_graph_module_and_checkpoint_agree(tmp_path: Path, name: str, precision: Precision) -> None:
    bundle = exported(tmp_path, name, precision)
    assert (bundle.model.source_precision, bundle.model.stored_precision) == ("fp32", precision)
    assert check_weights(bundle, tmp_path / "x.safetensors") > 9
    assert compare_logits(bundle, bundle.default_schedule, 6).same_tokens == 1.0
    if bundle.model.condition.kind != "class":
        assert compare_condition(bundle) == pytest.approx(0, abs=1e-5)
        assert set(types(bundle, "condition").values()) == {"FLOAT16" if precision == "fp16" else "BFLOAT16"}
    check_graphs(bundle, [path for path in bundle.files if path.endswith(".onnx")])
    changed = random_weights(FAMILIES[name][1], 3, FAMILIES[name][0])
    first = next(key for key in changed if key.endswith(("w1.weight", "to_q.weight", "mlp.gate_proj.weight")))
    changed[first][0, 0] += 1
    save_file(changed, tmp_path / "other.safetensors")
    own = first.replace("mlp.gate_proj", "feed_forward.w1")
    with pytest.raises(VerificationError, match=f"weight {own} of .* differs from"):
        check_weights(bundle, tmp_path / "other.safetensors")


def test_products_are_in_blocks_the_last_in_eight_bits_and_tables_in_sixteen(tmp_path: Path) -> None:
    found = types(exported(tmp_path, "llamagen", "int4"))
    kinds = {name: kind for name, kind in found.items() if "norm" not in name}
    assert kinds.pop("tok_embeddings.weight") == "BFLOAT16"
    assert kinds.pop("output.weight") == "UINT8"
    assert set(kinds.values()) == {"UINT4"}
    assert {kind for name, kind in found.items() if "norm" in name} == {"FLOAT"}


def test_products_that_no_block_divides_are_in_sixteen_bits(tmp_path: Path) -> None:
    found = types(exported(tmp_path, "par", "int4"))
    assert Counter(kind for name, kind in found.items() if "norm" not in name) == {"BFLOAT16": 5, "UINT4": 2}


@pytest.mark.parametrize(
    ("precision", "block", "expected"), [("int8", None, {32, 64}), ("int4", None, {32, 64}), ("int4", 16, {16})]
)
def test_blocks_are_as_large_as_asked_where_they_fit(
    tmp_path: Path, precision: Precision, block: int | None, expected: set[int]
) -> None:
    bundle = exported(tmp_path, "llamagen", precision, block=block)
    graph = onnx.load(bundle.graph("step", "fp32"), load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    sizes = {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "block_size"}
    assert sizes == expected
    bytes_of_int4 = bundle.files[bundle.stored_graph("step", "fp32").weights].bytes
    assert bytes_of_int4 < 4 * bundle.model.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_the_types_of_the_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(CONFIG, 3).items()}
    weights["output.weight"] = weights["output.weight"].to(torch.float32)
    bundle = exported(tmp_path, "llamagen", None, weights)
    kinds = {torch.float32: "FLOAT", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}
    found = types(bundle)
    assert found["layers.0.attention.wqkv.weight"] == found["tok_embeddings.weight"] == kinds[dtype]
    assert found["output.weight"] == "FLOAT"
    assert bundle.model.stored_precision == bundle.model.source_precision
    module = load_module(bundle).state_dict()
    assert all(torch.equal(module[name], tensor.float()) for name, tensor in weights.items() if "mbedding" not in name)


def test_values_that_a_precision_does_not_hold_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    weights = random_weights(CONFIG, 3)
    weights["layers.1.feed_forward.w2.weight"][3, 3] = 70000.0
    message = "tensor layers.1.feed_forward.w2.weight reaches beyond 65504, the largest of fp16: use --precision bf16"
    with pytest.raises(CheckpointError, match=message):
        exported(tmp_path, "llamagen", "fp16", weights)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert exported(tmp_path, "llamagen", "bf16", weights).model.stored_precision == "bf16"


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, precision: Precision) -> None:
    weights = random_weights(CONFIG, 3)
    weights["output.weight"][5, 0] = torch.nan
    with pytest.raises(CheckpointError, match="tensor output.weight holds non-finite values"):
        exported(tmp_path, "llamagen", precision, weights)


@pytest.mark.parametrize(
    ("precision", "block", "message"),
    [
        ("int2", None, "weights are not stored in 'int2': use fp32, bf16, fp16, int8, int4"),
        ("bf16", 32, "blocks of 32 go with int8 and int4"),
        ("int4", 48, "blocks of 48 go with int8 and int4, and are of 256, 128, 64, 32, 16 inputs"),
        (None, 32, "blocks of 32 go with int8 and int4"),
    ],
)
def test_what_cannot_be_stored_is_refused(precision: str | None, block: int | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        storage_of(precision, "fp32", block)


def test_two_exports_are_the_same_to_the_byte(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        exported(folder, "llamagen", "int4")
        manifest = json.loads((folder / "x.bundle" / "manifest.json").read_text())
        found.append(manifest["files"])
    assert found[0] == found[1]
