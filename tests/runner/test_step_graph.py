"""The contract of graphs: what it says of every kind, and that the exported graphs keep it, in its order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from arforge.runner import BundleError, open_bundle
from arforge.runner.bundle import FeaturesCondition, IdsCondition, ModelFacts
from arforge.runner.step_graph import (
    Contract,
    Tensor,
    bound_caches,
    cache_names,
    contract,
    difference,
    guided_rows,
    lowered_step,
    update_name,
)

FEATURES = FeaturesCondition(slots=20, width=48, captions="clean")
IDS = IdsCondition(
    slots=20,
    vocabulary=100,
    prefix=(1,),
    before="",
    after="",
    stripped=False,
    suffix=(2,),
    start=1,
    padding=None,
    reserved=(),
    negative=(),
    unconditional="image",
)
ONNX_TYPES = {"FLOAT": "float32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


@pytest.fixture
def model(bundle: Path) -> ModelFacts:
    return open_bundle(bundle).model


def names(tensors: tuple[Tensor, ...]) -> list[str]:
    return [tensor.name for tensor in tensors if "_cache_" not in tensor.name]


def stored(path: Path) -> Contract:
    """What a graph file says, by the onnx package."""
    graph = onnx.load(path, load_external_data=False).graph
    parts = []
    for part in (graph.input, graph.output):
        tensors = []
        for value in part:
            kind = value.type.tensor_type
            dims = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
            tensors.append(Tensor(value.name, ONNX_TYPES[onnx.TensorProto.DataType.Name(kind.elem_type)], dims))
        parts.append(tuple(tensors))
    return Contract(parts[0], parts[1])


@pytest.mark.parametrize("graph", ["step", "step-logits", "decoder", "encoder"])
@pytest.mark.parametrize("name", ["bundle", "arpg_bundle"])
def test_exported_graphs_have_the_contracts_tensors_in_its_order(
    name: str, graph: str, request: pytest.FixtureRequest
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    assert stored(opened.graph(graph, "fp32")) == contract(opened.model, graph)


def test_a_step_samples_with_settings_an_image_and_guidance_a_target(model: ModelFacts) -> None:
    step = contract(model, "step")
    assert [step[name].shape for name in ("guidance", "uniforms")] == 2 * [("images", "width")]
    assert {step[name].shape for name in ("temperature", "top_k", "top_p")} == {("images",)}
    assert [step["mask"].shape, step["write_index"].shape] == [("rows", 1, "width", "slots"), ("rows",)]
    queried = contract(replace(model, queries=True), "step")
    assert queried["guidance"].shape == ("images", "queries")
    assert queried["query_positions"] == Tensor("query_positions", "int64", ("rows", "queries"))


def test_logits_and_noise_are_a_number_a_token(model: ModelFacts) -> None:
    assert contract(model, "step-logits")["logits"] == Tensor("logits", "float32", ("images", "width", 32))
    noisy = contract(model, "step-noise")
    assert noisy["noise"] == Tensor("noise", "float32", ("images", "width", 32))
    assert "uniforms" not in names(noisy.inputs)


@pytest.mark.parametrize("condition", [FEATURES, IDS])
def test_steps_of_prompts_read_rows_of_them(model: ModelFacts, condition: FeaturesCondition | IdsCondition) -> None:
    prompted = replace(model, condition=condition)
    rows = Tensor("condition", "float32", ("rows", "condition", 64))
    assert contract(prompted, "step")["condition"] == rows
    lowered = lowered_step(prompted, "float16", filters=False)  # rows have prompts of unequal lengths
    assert lowered["mask"].shape == ("rows", 1, "width", "slots")


def test_prompts_become_rows_of_a_condition(model: ModelFacts) -> None:
    from_features = contract(replace(model, condition=FEATURES), "condition")
    assert from_features.inputs == (Tensor("features", "float32", ("prompts", "length", 48)),)
    rows = Tensor("condition", "float32", ("prompts", "length", 64))
    assert from_features.outputs == (rows, Tensor("unconditional", "float32", ("length", 64)))
    assert contract(replace(model, condition=FEATURES), "text").outputs == from_features.inputs
    from_ids = contract(replace(model, condition=IDS), "condition")
    assert from_ids.inputs == (Tensor("ids", "int64", ("prompts", "length")),)
    assert from_ids.outputs == (rows,)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("condition", "a model of classes has no graph 'condition'"),
        ("text", "a model whose condition is class has no graph 'text'"),
        ("stop", "unknown graph 'stop': use step, step-logits, step-noise, condition, text, decoder, encoder"),
    ],
)
def test_graphs_that_there_are_not_are_refused(model: ModelFacts, graph: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        contract(model, graph)


@pytest.mark.parametrize("filters", [False, True])
def test_tensorrts_step_has_one_mask_and_limits_with_filters_alone(model: ModelFacts, filters: bool) -> None:
    plain, lowered = contract(model, "step", "float16"), lowered_step(model, "float16", filters)
    assert lowered["mask"].shape == (1, 1, "width", "slots")
    assert ({"top_k", "top_p"} <= set(names(lowered.inputs))) == filters
    left_out = {"mask"} if filters else {"mask", "top_k", "top_p"}
    assert [tensor for tensor in lowered.inputs if tensor.name != "mask"] == [
        tensor for tensor in plain.inputs if tensor.name not in left_out
    ]
    assert lowered.outputs == plain.outputs
    assert lowered["new_key_cache_0"] == Tensor("new_key_cache_0", "float16", ("rows", 4, "slots", 16))


def test_shapes_become_sizes(model: ModelFacts) -> None:
    assert contract(model, "step")["mask"].sizes({"rows": 4, "width": 3, "slots": 20}) == (4, 1, 3, 20)
    with pytest.raises(KeyError, match="slots"):
        contract(model, "step")["mask"].sizes({"rows": 4, "width": 3})
    assert [guided_rows(3, guided) for guided in (False, True)] == [3, 6]


def test_caches_are_bound_under_both_names(model: ModelFacts) -> None:
    kinds = ["key_cache_0", "value_cache_0", "key_cache_1", "value_cache_1"]
    assert cache_names(2) == kinds
    assert bound_caches({"key_cache_0": 7}) == {"key_cache_0": 7, "new_key_cache_0": 7}
    assert set(bound_caches(dict.fromkeys(kinds))) == {
        tensor.name for part in vars(contract(model, "step")).values() for tensor in part if "_cache_" in tensor.name
    }


def test_engines_that_only_read_caches_give_the_steps_own_rows(model: ModelFacts) -> None:
    plain = lowered_step(model, "float16", filters=True)
    reading = lowered_step(model, "float16", filters=True, read_only=True)
    assert reading.inputs == plain.inputs
    assert [update_name(name) for name in cache_names(1)] == ["key_update_0", "value_update_0"]
    own = [tensor for tensor in plain.outputs if "cache" not in tensor.name]
    rows = ("rows", model.kv_heads, "width", model.head_size)
    updates = [Tensor(update_name(name), "float16", rows) for name in cache_names(model.caches)]
    assert reading.outputs == (*own, *updates)


def test_what_differs_is_said_by_name_type_and_shape() -> None:
    one, other = Tensor("a", "int64", ("rows", 1)), Tensor("b", "bool", ())
    assert difference([one, other], [other, one]) is None
    assert difference([one], []) == "a is missing, expected int64 [rows, 1]"
    assert difference([], [other]) == "b is bool [], expected none"
    wider = replace(one, shape=("rows", 2))
    assert difference([one], [wider]) == "a is int64 [rows, 2], expected int64 [rows, 1]"
