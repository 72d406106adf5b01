from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from arforge.export.verify import check_provenance, check_weights, compare_condition, compare_logits, load_module
from arforge.runner import open_bundle
from arforge.runner.bundle import sha256_of
from arforge.runner.errors import VerificationError


@pytest.mark.parametrize("schedule", ["ntp", "zipar:3"])
def test_a_whole_bundle_agrees_with_its_module(grouped_bundle: Path, schedule: str) -> None:
    agreement = compare_logits(open_bundle(grouped_bundle), schedule, max_steps=15)
    assert agreement.steps == 15
    assert agreement.largest_error < 1e-4
    assert agreement.same_tokens == 1


def test_weights_are_compared_with_the_checkpoint(
    bundle: Path, checkpoint: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    opened = open_bundle(bundle)
    assert check_weights(opened, checkpoint) == len(weights) - 1  # the two embedding tables are stored as one
    changed = {**weights, "norm.weight": weights["norm.weight"] + 1e-3}
    torch.save(changed, tmp_path / "other.pt")
    with pytest.raises(VerificationError, match=r"weight norm.weight of .* differs from .*other.pt: export it again"):
        check_weights(opened, tmp_path / "other.pt")
    torch.save({"model": changed, "ema": weights}, tmp_path / "both.pt")
    with pytest.raises(VerificationError, match="differs"):
        check_weights(opened, tmp_path / "both.pt")
    averaged = replace(opened, provenance={"checkpoint": {"weights": "ema"}})
    assert check_weights(averaged, tmp_path / "both.pt") == len(weights) - 1


def test_rows_of_prompts_are_compared_too(text_bundle: Path, text_weights: dict[str, Tensor], tmp_path: Path) -> None:
    opened = open_bundle(text_bundle)
    error = compare_condition(opened)
    assert error is not None
    assert error < 1e-5
    torch.save({"model": text_weights}, tmp_path / "same.pt")
    assert check_weights(opened, tmp_path / "same.pt") == len(text_weights)
    for name in ("cls_embedding.cap_proj.fc2.weight", "cls_embedding.uncond_embedding"):
        torch.save({"model": {**text_weights, name: text_weights[name] + 1e-3}}, tmp_path / "other.pt")
        with pytest.raises(VerificationError, match=rf"weight {name} of .* differs from .*other.pt: export it again"):
            check_weights(opened, tmp_path / "other.pt")


def test_a_model_of_classes_has_no_rows_to_compare(bundle: Path) -> None:
    assert compare_condition(open_bundle(bundle)) is None


@pytest.mark.parametrize("change", ["another table", "another activation", "NaN"])
def test_a_condition_graph_that_computes_something_else_is_found(
    text_bundle: Path, tmp_path: Path, change: str
) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "copy.bundle"))
    opened = open_bundle(root)
    path = opened.graph("condition", "fp32")
    model = onnx.load(path, load_external_data=False)
    kinds = {"another activation": "Gelu", "another table": "Gather", "NaN": "MatMul"}
    node = next(node for node in model.graph.node if node.op_type == kinds[change])
    if change == "another activation":
        node.op_type = "Identity"
        del node.attribute[:]
    else:
        operation = "Neg" if change == "another table" else "Log"  # of what is below zero
        model.graph.node.insert(
            list(model.graph.node).index(node) + 1, onnx.helper.make_node(operation, ["before"], [node.output[0]])
        )
        node.output[0] = "before"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=r"the graph 'condition' gives rows that differ .*: export the bundle"):
        compare_condition(opened)


@pytest.mark.parametrize("change", [{"slots": 2**30}, {"slots": 119}, {"width": 47}])
def test_a_manifest_that_lies_about_its_prompts_is_found(text_bundle: Path, change: dict[str, int]) -> None:
    opened = open_bundle(text_bundle)
    model = replace(opened.model, condition=replace(opened.model.condition, **change))
    with pytest.raises(VerificationError, match=r"the manifest says Features.*, its model has Features.*: export"):
        compare_condition(replace(opened, model=model))


def test_a_graph_that_computes_something_else_is_found(bundle_copy: Path) -> None:
    """The epsilon of every norm in the graph is changed; structure and weights are whole."""
    opened = open_bundle(bundle_copy)
    path = opened.graph("step-logits", "fp32")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = 0.5
    path.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=r"schedule ntp: the graph's logits differ.*export the bundle again"):
        compare_logits(opened, "ntp", max_steps=5)


def test_provenance_tells_the_very_file_from_one_with_the_same_weights(
    bundle: Path, checkpoint: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    opened = open_bundle(bundle)
    digest = sha256_of(checkpoint)
    assert check_provenance(opened, checkpoint) == f"the bundle was made from this file, sha256 {digest}"
    torch.save(weights, tmp_path / "again.pt")
    assert check_provenance(opened, tmp_path / "again.pt") == (
        f"the bundle was made from another file with the same weights, sha256 {digest}"
    )
    silent = replace(opened, provenance={"checkpoint": "tiny.pt"})
    with pytest.raises(VerificationError, match="does not say which checkpoint it was made from"):
        check_provenance(silent, checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "unheard-of"}, "is none that arforge knows"),
        ({"config": {}}, "is none that arforge knows"),
        ({"config": {"surprise": 1}}, "is none that arforge knows"),
        ({"config": {"dim": 2**40}}, "is none that arforge knows|are not those of the manifest's model"),
        ({"config": {"n_layer": 3}}, "are not those of the manifest's model"),
    ],
)
def test_a_manifest_that_lies_about_its_model_is_found(bundle: Path, change: dict[str, Any], message: str) -> None:
    opened = open_bundle(bundle)
    if change.get("config"):
        change = {"config": {**opened.model.config, **change["config"]}}
    with pytest.raises(VerificationError, match=message):
        load_module(replace(opened, model=replace(opened.model, **change)))
