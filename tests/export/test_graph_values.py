"""The exported graphs give what the torch modules give, on whole schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import oracle
import pytest
import torch

from arforge.export.verify import load_module
from arforge.runner import Bundle, compile_schedule, open_bundle
from arforge.runner.schedules.visibility import masks

SCHEDULES = ["ntp", "zipar:3", "zipar:2,first-row=windowed,seed=nearest,holes=masked"]


def session_of(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # without bound memory TensorScatter copies, and says so
    return onnxruntime.InferenceSession(bundle.graph(name, "fp32"), options, providers=["CPUExecutionProvider"])


class GraphSteps:
    """The step graph by plain `run` calls, caches passed from call to call as arrays."""

    def __init__(self, bundle: Bundle, rows: int, slots: int) -> None:
        self.session = session_of(bundle, "step-logits")
        shape = (rows, bundle.model.kv_heads, slots, bundle.model.head_size)
        kinds = [f"{kind}_cache_{layer}" for layer in range(bundle.model.layers) for kind in ("key", "value")]
        self.caches = {name: np.zeros(shape, dtype=np.float32) for name in kinds}

    def __call__(self, inputs: dict[str, np.ndarray], images: int, guidance: float, **scalars: Any) -> Any:
        width = inputs["tokens"].shape[1]
        settings = {"temperature": 0.0, "top_p": 1.0, **scalars}
        feeds: dict[str, np.ndarray] = {
            "uniforms": np.full((images, width), 0.5, dtype=np.float32),
            "guidance": np.full((images, width), guidance, dtype=np.float32),
            "top_k": np.zeros(images, dtype=np.int64),
            **{name: np.full(images, value, dtype=np.float32) for name, value in settings.items()},
        }
        names = [value.name for value in self.session.get_outputs()]
        results = dict(zip(names, self.session.run(None, {**inputs, **feeds, **self.caches}), strict=True))
        self.caches = {name: results[f"new_{name}"] for name in self.caches}
        return results["next_tokens"], results["logits"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("root", ["bundle", "grouped_bundle"])
@torch.no_grad()
def test_step_graph_and_torch_module_agree_on_a_whole_schedule(
    request: pytest.FixtureRequest, root: str, schedule: str
) -> None:
    bundle = open_bundle(request.getfixturevalue(root))
    model, plan = bundle.model, compile_schedule(schedule, bundle.model.grid)
    classes, rows, guidance = [1, 6], 4, 2.0
    module, graph = load_module(bundle), GraphSteps(bundle, rows, plan.slots)
    caches = module.empty_caches(rows, plan.slots)
    known = np.zeros((rows, plan.cells + 1), dtype=np.int64)  # the last column is the class
    condition = model.class_condition
    known[:, -1] = [*(condition.first_class + label for label in classes), condition.null_class, condition.null_class]
    for step, write_index, mask in zip(plan.steps, plan.write_indices, masks(plan, plan.slots), strict=True):
        columns = [-1 if read.source == 1 else read.value for read in step.inputs]
        inputs = {
            "tokens": known[:, columns],
            "positions": np.tile([read.position for read in step.inputs], (rows, 1)).astype(np.int64),
            "mask": np.tile(mask, (rows, 1, 1, 1)),
            "write_index": np.full(rows, write_index, dtype=np.int64),
        }
        drawn, found = graph(inputs, len(classes), guidance)
        logits, caches = module(*(torch.from_numpy(array) for array in inputs.values()), caches)
        expected = (logits[2:] + (logits[:2] - logits[2:]) * guidance).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(drawn, expected.argmax(-1))
        for row, cell in step.targets:
            known[:, cell] = np.tile(drawn[:, row], 2)


def first_step(bundle: Bundle, rows: int) -> dict[str, np.ndarray]:
    condition = bundle.model.class_condition
    tokens = np.full((rows, 1), condition.null_class, dtype=np.int64)
    tokens[: rows // 2, 0] = condition.first_class + np.arange(rows // 2) % condition.classes
    return {
        "tokens": tokens,
        "positions": np.zeros((rows, 1), dtype=np.int64),
        "mask": np.ones((rows, 1, 1, 1), dtype=bool),
        "write_index": np.zeros(rows, dtype=np.int64),
    }


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 6, 29, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_the_sampler_in_the_graph_draws_from_the_published_distribution(
    bundle: Path, temperature: float, top_k: int, top_p: float
) -> None:
    opened, images = open_bundle(bundle), 200
    numbers = np.random.default_rng(top_k).random((images, 1), dtype=np.float32)
    sampling = {"temperature": temperature, "top_p": top_p}
    graph = GraphSteps(opened, 2 * images, slots=1)
    feeds = {**first_step(opened, 2 * images), "uniforms": numbers, "top_k": np.full(images, top_k, dtype=np.int64)}
    scalars = {name: np.full(images, value, dtype=np.float32) for name, value in sampling.items()}
    scalars["guidance"] = np.full((images, 1), 1.5, dtype=np.float32)
    drawn, logits, *_ = graph.session.run(None, {**feeds, **scalars, **graph.caches})
    shares = oracle.probabilities(logits, top_k=top_k, **sampling)
    np.testing.assert_array_equal(drawn, oracle.draw(shares, numbers))
    assert len(np.unique(drawn)) > (1 if top_k != 1 else 0)


def test_without_unconditional_rows_the_graph_gives_the_conditional_logits(bundle: Path) -> None:
    opened = open_bundle(bundle)
    inputs = {name: array[:3] for name, array in first_step(opened, 6).items()}
    _, alone = GraphSteps(opened, 3, slots=1)(inputs, images=3, guidance=5.0)
    _, guided = GraphSteps(opened, 6, slots=1)(first_step(opened, 6), images=3, guidance=1.0)
    np.testing.assert_allclose(alone, guided, atol=1e-5)


def test_the_graph_takes_any_rows_width_and_slots(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for rows, width, slots in ((1, 1, 1), (2, 5, 9), (7, 3, 3), (1, 60, 70)):
        inputs = {
            "tokens": np.arange(rows * width).reshape(rows, width) % 32,
            "positions": np.tile(1 + np.arange(width) % 64, (rows, 1)),
            "mask": np.tile(np.tri(width, slots, dtype=bool), (rows, 1, 1, 1)),
            "write_index": np.zeros(rows, dtype=np.int64),
        }
        drawn, logits = GraphSteps(opened, rows, slots)(inputs, images=rows, guidance=1.0)
        assert drawn.shape == (rows, width)
        assert logits.shape == (rows, width, 32)
        assert np.isfinite(logits).all()
