"""Attention that reads its caches by views: real TensorRT-RTX engines, what is looked for in them, the closed form."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from lowered_steps import BUNDLES, SLOTS, run, step_inputs

from arforge.engines import tensorrt_closed
from arforge.engines.lowered_session import session_of
from arforge.engines.profiles import plan_profiles
from arforge.engines.tensorrt import BuildJob, build
from arforge.engines.tensorrt_cache_layers import Reader, check_views, copied, copied_bytes, readers
from arforge.engines.tensorrt_closed import compare_closed
from arforge.engines.tensorrt_graph import fix_dimensions, lower_for_tensorrt, settle_filters
from arforge.engines.tensorrt_layers import Layer, Tensor, attention_kernels, check_layers, expected, load_layers
from arforge.engines.tensorrt_verify import casts_to_float, expected_casts
from arforge.engines.tensorrt_view import attend_through_views, close_views, cut_views, profiles_for_views
from arforge.engines.trtexec import dry_run
from arforge.engines.verify import verify_bundle
from arforge.options import copied_caches
from arforge.runner import EngineError, open_bundle
from arforge.runner.backends.tensorrt_identity import build_command
from arforge.runner.bundle import Bundle
from arforge.runner.errors import VerificationError
from arforge.runner.step_graph import cache_names

RTX = "tensorrt-rtx"
Layers = list[Layer]


@pytest.fixture
def opened(rtx_view_bundle: Path) -> Bundle:
    return open_bundle(rtx_view_bundle)


def looked_into(opened: Bundle, precision: str) -> tuple[Layers, list[Reader]]:
    identity = opened.engine(RTX, precision)
    model = ir.load(opened.path(identity["lowered"]))
    return load_layers(opened.path(identity["layers"]).read_bytes()), readers(model, opened.model.caches)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_no_kernel_copies_a_cache_at_any_width(opened: Bundle, precision: str) -> None:
    identity = opened.engine(RTX, precision)
    assert identity["attention"] == {"lowering": "view", "reason": "as asked"}
    assert identity["cache_order"] == "slots rows heads size"
    assert identity["copied_cache_bytes"] == [0, 0]
    layers, wanted = looked_into(opened, precision)
    assert [reader.caches for reader in wanted] == [
        (f"key_cache_{index}", f"value_cache_{index}") for index in range(opened.model.layers)
    ]
    assert check_views(layers, wanted, 2) == []
    for profile in (0, 1):
        mine = [layer for layer in layers if layer.profile == profile]
        assert len(attention_kernels(mine)) == opened.model.layers
        assert {layer.stream for layer in mine} == {0}


def test_integer_products_are_those_of_an_engine_without_views(opened: Bundle) -> None:
    identity = opened.engine(RTX, "int8")
    wanted = expected(ir.load(opened.path(identity["lowered"])), opened.model.caches)
    assert len(wanted.quantized) == 5 * opened.model.layers + 1
    assert check_layers(looked_into(opened, "int8")[0], wanted, 2) == []


def test_layers_that_share_a_cache_are_one_kernel_each(arpg_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(arpg_bundle, tmp_path / "arpg.bundle"))
    identity = build(BuildJob(path, RTX, "fp16", schedules=["arpg:3"], images=[1, 2], attention="view")).identity
    assert set(identity["copied_cache_bytes"]) == {0}
    layers, wanted = looked_into(open_bundle(path), "fp16")
    assert [reader.caches[0] for reader in wanted] == [f"key_cache_{index}" for index in (0, 1, 2, 2)]
    assert check_views(layers, wanted, len(identity["profiles"])) == []


def moved(layers: Layers, which: Layer, place: int) -> Layers:
    """With a layer elsewhere in the list."""
    rest = [layer for layer in layers if layer is not which]
    return [*rest[:place], which, *rest[place:]]


def changed(layers: Layers, which: Layer, **fields: Any) -> Layers:
    return [replace(layer, **fields) if layer is which else layer for layer in layers]


def without(tensors: tuple[Tensor, ...], name: str) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor.name != name)


def spoilt(layers: Layers, kernel: Layer) -> dict[str, tuple[Layers, str]]:
    """What an engine must not be, the last attention of whose second profile is `kernel`, and what is said of it."""
    other = next(layer for layer in layers if layer.profile == 1 and layer.kind == "gemm")
    view = next(tensor for tensor in kernel.inputs if tensor.name == "view_key_cache_2")
    blind = [replace(layer, inputs=without(layer.inputs, "new_value_cache_2")) for layer in layers]
    return {
        "earlier": (moved(layers, kernel, 0), "reads view_key_cache_2 before new_key_cache_2 is written"),
        "another stream": (changed(layers, kernel, stream=1), "on another stream than writes new_key_cache_2"),
        "another reader": (changed(layers, other, inputs=(view,)), "no attention kernel, reads view_key_cache_2"),
        "several kernels": (changed(layers, kernel, name="softmax"), "is not one kernel"),
        "no wait": (blind, "does not wait for new_value_cache_2"),
        "no view": (
            changed(layers, kernel, inputs=without(kernel.inputs, "view_value_cache_2")),
            "does not read view_value_cache_2",
        ),
    }


@pytest.mark.parametrize(
    "what", ["earlier", "another stream", "another reader", "several kernels", "no wait", "no view"]
)
def test_each_problem_is_found(opened: Bundle, what: str) -> None:
    layers, wanted = looked_into(opened, "fp16")
    kernel = [layer for layer in attention_kernels(layers) if layer.profile == 1][-1]
    spoilt_layers, said = spoilt(layers, kernel)[what]
    problems = check_views(spoilt_layers, wanted, 2)
    assert any(said in problem for problem in problems), problems


def test_an_engine_whose_layers_are_not_listed_is_refused(opened: Bundle) -> None:
    _, wanted = looked_into(opened, "fp16")
    assert "lists no layers" in check_views([], wanted, 2)[0]
    assert check_views([], [], 2) == []  # without views nothing rests on it


def test_a_build_that_keeps_no_order_leaves_the_bundle_as_it_was(
    grouped_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(grouped_bundle, tmp_path / "copy.bundle"))
    before = {file for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr("arforge.engines.tensorrt.check_views", lambda *_: ["profile 0: reads before"])
    with pytest.raises(EngineError, match="built another engine than was asked: profile 0: reads before"):
        build(BuildJob(path, RTX, "fp16", ["8.6"], ["ntp"], [1], attention="view"))
    assert {file for file in path.rglob("*") if file.is_file()} == before


def layer(name: str, inputs: list[Tensor], outputs: list[Tensor], kind: str = "kgen") -> Layer:
    return Layer(name, kind, 0, tuple(inputs), (), tuple(outputs), ())


def test_copies_are_counted_by_what_is_written() -> None:
    cache, other = Tensor("new_key_cache_0", (2, 4, 8, 16), "Half"), Tensor("x", (2, 64), "Half")
    turned, wide = Tensor("turned", (8, 16, 8), "Half"), Tensor("wide", (8, 8, 16), "Float")
    scores = Tensor("scores", (8, 16, 8), "Half")  # of width 16: as many numbers as a cache
    layers = [
        layer("update", [other, cache], [cache]),
        layer("turn", [cache], [turned]),
        layer("widen", [turned], [wide]),  # a copy of a copy
        layer("multiply", [cache, other], [scores]),
        layer("product", [turned], [scores], "gemm"),
        layer("_gemm_mha_v2", [turned], [scores]),
        layer("slice", [cache], [Tensor("part", (1,), "Half")]),
    ]
    assert copied(layers, ["key_cache_0"]) == 1024 * (2 + 4)
    assert copied_bytes(layers, ["key_cache_0"], 2) == [6144, 0]
    assert copied(layers[:1], ["key_cache_0"]) == 0
    fused = layer("update and turn", [other, cache], [cache, turned])
    assert copied([fused], ["key_cache_0"]) == 2048


def test_what_is_copied_is_said_in_words() -> None:
    profiles = [{"width": 1}, {"width": 2}, {"width": 4}]
    assert copied_caches({"profiles": profiles, "copied_cache_bytes": [0, 0, 0]}) == "copied caches: 0 B a step"
    wide = copied_caches({"profiles": profiles, "copied_cache_bytes": [0, 2048, 2048]})
    assert wide == "copied caches: 0 B a step at width 1, 2.0 KiB a step above"
    mixed = copied_caches({"profiles": profiles, "copied_cache_bytes": [1024, 2048, 3072]})
    assert mixed == "copied caches: 1.0 KiB a step at width 1, 2.0 KiB to 3.0 KiB a step above"
    assert copied_caches({"profiles": profiles, "copied_cache_bytes": None}) == "copied caches: not known"
    assert copied_caches({"profiles": profiles}) == "copied caches: not known"  # built before they were counted


def closed_form(bundle: Bundle, images: int | None) -> ir.Model:
    """The float32 step by views, which no engine is built of, cut and closed again."""
    model, own = ir.load(bundle.graph("step", "fp32")), bundle.model.family == "llamagen-t2i"
    fix_dimensions(model, bundle.model.caches, SLOTS, images, one_mask=not own)
    settle_filters(model, filters=False)
    attend_through_views(model, bundle.model.caches)
    cut_views(model, bundle.model.caches)
    close_views(model, bundle.model.caches)
    return model


@pytest.mark.parametrize("images", [1, None])
@pytest.mark.parametrize("name", BUNDLES)
def test_the_closed_form_gives_what_the_bundles_graph_does(
    name: str, images: int | None, request: pytest.FixtureRequest
) -> None:
    bundle = open_bundle(request.getfixturevalue(name))
    given = step_inputs(bundle, filters=False)
    wanted = run(bundle.graph("step", "fp32"), given)
    model = closed_form(bundle, images)
    session = session_of(model, bundle.graph("step", "fp32").parent)
    turned = {
        name: array.transpose(2, 0, 1, 3).reshape(1, 1, SLOTS, -1) for name, array in given.items() if "cache" in name
    }
    given |= turned | ({} if "condition" in given else {"mask": given["mask"][:1]})
    found = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    assert found[0].tolist() == wanted[0].tolist()
    for one, other in zip(found[1:], wanted[1:], strict=True):
        rows, heads, _, size = other.shape
        np.testing.assert_allclose(one.reshape(SLOTS, rows, heads, size).transpose(1, 2, 0, 3), other, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_verification_runs_the_closed_form(opened: Bundle, precision: str) -> None:
    lines: list[str] = []
    verify_bundle(opened.root, lines.append, target=RTX)
    mine = [line for line in lines if line.startswith(f"engine {RTX} {precision}")]
    assert any("6 caches updated in place, attention view (as asked), 4 casts to float32" in line for line in mine)
    assert len([line for line in mine if "copied caches: 0 bytes" in line]) == 2
    (line,) = [line for line in mine if ": views: " in line]
    assert "8 steps: keys and values within " in line
    assert "100.0 % of tokens the same" in line


def test_views_of_other_caches_are_found(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def crossed(model: ir.Model, caches: int) -> None:
        names = cache_names(caches)
        inputs = {value.name: value for value in model.graph.inputs}
        for one, other in zip(names[::2], names[1::2], strict=True):  # values for keys
            first, second = (inputs[f"view_{name}"] for name in (one, other))
            first.name, second.name = second.name, first.name
        close_views(model, caches)

    monkeypatch.setattr(tensorrt_closed, "close_views", crossed)
    with pytest.raises(VerificationError, match=r"writes keys or values with an error of .* rebuild with --attention"):
        compare_closed(opened, opened.engine(RTX, "fp16"))


def test_the_command_asks_for_views_again(opened: Bundle) -> None:
    assert "--attention view" in build_command(opened.root, opened.engine(RTX, "fp16"))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"precision": "fp32"}, "cannot read views of the caches: in float32 .* Use --attention auto"),
        (
            {"schedules": ["ntp", "jacobi:4"], "images": [1, 2]},
            "in ntp,jacobi=4 images are at places of their own, .*--images 1",
        ),
    ],
)
def test_what_views_do_not_do(grouped_bundle: Path, tmp_path: Path, wishes: dict[str, Any], message: str) -> None:
    path = Path(shutil.copytree(grouped_bundle, tmp_path / "copy.bundle"))
    with pytest.raises(EngineError, match=message):
        build(BuildJob(**{"bundle": path, "target": RTX, "precision": "fp16", "attention": "view", **wishes}))
    assert not list(path.glob("engines/tensorrt*/*"))


def test_engines_that_nobody_looks_into_have_none(grouped_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"looked into while they are built, .* build it without --dry-run"):
        dry_run(BuildJob(grouped_bundle, RTX, "fp16", attention="view"))


def test_other_libraries_give_no_list_to_look_at(grouped_bundle: Path) -> None:
    bundle = open_bundle(grouped_bundle)
    profiles = plan_profiles(bundle, ["ntp"], [1], [])
    with pytest.raises(EngineError, match=r"rests on the list of layers that tensorrt-rtx gives, tensorrt gives none"):
        profiles_for_views("tensorrt", profiles, [bundle.schedule("ntp")])


@pytest.mark.parametrize("attention", ["decomposed", "view"])
@pytest.mark.parametrize("filters", [False, True])
def test_a_softmax_of_the_sampler_is_not_taken_for_attentions(opened: Bundle, attention: str, filters: bool) -> None:
    model = lower_for_tensorrt(opened, "fp16", SLOTS, 1, filters, attention).model
    assert sum(node.op_type == "Softmax" for node in model.graph) == opened.model.layers + (2 if filters else 1)
    assert casts_to_float(model) == expected_casts({"types": "half"}, model) == 1 + opened.model.layers
