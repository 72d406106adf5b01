"""The manifest's schema, as `open_bundle` applies it, against the reference implementation of Draft 7."""

from __future__ import annotations

import copy
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from arforge.runner import open_bundle
from arforge.runner.errors import ManifestError

SCHEMA = json.loads(resources.files("arforge.runner.bundle").joinpath("manifest.schema.json").read_text())
DELETE = "<deleted>"
CHANGES: list[tuple[str, Any]] = [
    ("provenance", DELETE),
    ("model", DELETE),
    ("more", 1),
    ("version", 0),
    ("version", "1"),
    ("version", True),
    ("model", None),
    ("model/grid", [8]),
    ("model/grid", [8, 0]),
    ("model/grid", [8, 8, 8]),
    ("model/layers", "2"),
    ("model/layers", True),
    ("model/layers", 2.5),
    ("model/layers", 2**31),
    ("model/family", ""),
    ("model/family", "x" * 201),
    ("model/variant", 3),
    ("model/surprise", 1),
    ("model/config", []),
    ("model/order", "spiral"),
    ("model/condition", {}),
    ("model/condition/kind", "mood"),
    ("model/condition/slots", 3),
    ("model/condition/null_class", DELETE),
    ("model/condition", {"kind": "features", "slots": 120}),
    ("model/condition", {"kind": "features", "slots": 120, "width": 0}),
    ("model/condition", {"kind": "ids", "slots": 120, "vocabulary": 9}),
    ("model/specials", 3),
    ("model/specials", [-1]),
    ("model/row_end", -1),
    ("model/labels", []),
    ("model/labels", [""]),
    ("model/source_precision", "int8"),
    ("model/stored_precision", "int2"),
    ("model/positions", 65),
    ("image_tokenizer", {}),
    ("image_tokenizer", False),
    ("image_tokenizer/kind", "words"),
    ("image_tokenizer/image_size", 16),
    ("text_tokenizer", ""),
    ("sampler/kind", "dice"),
    ("graphs", []),
    ("graphs/0/name", "steps"),
    ("graphs/0/precision", "fp8"),
    ("graphs/0/path", ""),
    ("graphs/0/path", "x" * 401),
    ("graphs/0/weights", DELETE),
    ("graphs/0/more", 1),
    ("files", {}),
    ("files/graphs\\fp32\\step.onnx/bytes", -1),
    ("files/graphs\\fp32\\step.onnx/bytes", "3"),
    ("files/graphs\\fp32\\step.onnx/sha256", "0" * 63),
    ("files/graphs\\fp32\\step.onnx/sha256", "G" * 64),
    ("schedules", None),
    ("schedules/0/widths", []),
    ("schedules/0/widths", [0]),
    ("schedules/0/steps", 0),
    ("sampler/guidance", 0.5),
    ("sampler/guidance", 1001),
    ("sampler/temperature", -1),
    ("sampler/top_k", -1),
    ("sampler/top_k", 1.5),
    ("sampler/top_p", 0),
    ("sampler/top_p", 1.5),
    ("sampler/top_p", "1"),
    ("engines/0/target", "openvino"),
    ("engines/0/device", ""),
    ("provenance", []),
]


def changed(manifest: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(manifest)
    *parents, last = (part.replace("\\", "/") for part in place.split("/"))
    node: Any = result
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value == DELETE:
        del node[last]
    else:
        node[last] = value
    return result


def test_the_schema_is_a_valid_draft_7_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"


def test_both_bundles_follow_the_schema(bundle: Path, grouped_bundle: Path) -> None:
    for root in (bundle, grouped_bundle):
        assert not list(Draft7Validator(SCHEMA).iter_errors(json.loads((root / "manifest.json").read_text())))


@pytest.mark.parametrize(("place", "value"), CHANGES, ids=lambda value: str(value)[:30])
def test_what_breaks_the_schema_is_refused_by_both(bundle_copy: Path, place: str, value: Any) -> None:
    manifest = changed(json.loads((bundle_copy / "manifest.json").read_text()), place, value)
    assert list(Draft7Validator(SCHEMA).iter_errors(manifest))
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="does not follow the format"):
        open_bundle(bundle_copy)


def test_counts_written_as_fractions_open_as_whole_numbers_or_not_at_all(bundle_copy: Path) -> None:
    """Draft 7 calls 2.0 an integer; a runner must not meet it as a float."""
    manifest = changed(json.loads((bundle_copy / "manifest.json").read_text()), "model/layers", 2.0)
    assert not list(Draft7Validator(SCHEMA).iter_errors(manifest))
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    try:
        layers = open_bundle(bundle_copy).model.layers
    except ManifestError as error:
        assert "layers" in str(error)
    else:
        assert type(layers) is int
