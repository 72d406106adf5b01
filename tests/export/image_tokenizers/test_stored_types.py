"""Tokenizers of 16 bits: stored as they are, and run as if they had been widened before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_images
import torch
from numpy.typing import NDArray
from tiny_images import CODES, Weights, emu3_names, llamagen, weights_of, within
from torch import Tensor

from arforge.export.exporter import export_image_tokenizer
from arforge.export.image_tokenizers.opening import OpenedImageTokenizer, open_image_tokenizer
from arforge.export.stored_values import stored_values
from arforge.export.wide_weights import widen

CELLS = 5000  # of an image whose attention is split
TYPES = {torch.bfloat16: ir.DataType.BFLOAT16, torch.float16: ir.DataType.FLOAT16, torch.float32: ir.DataType.FLOAT}
LAYOUTS: dict[str, Callable[[], Weights]] = {
    "llamagen": lambda: llamagen(weights_of(tiny_images.janus())),
    "janus": lambda: within("gen_vision_model.", llamagen(weights_of(tiny_images.janus()))),
    "chameleon": tiny_images.chameleon,
    "emu3": lambda: emu3_names(weights_of(tiny_images.emu3())),
    "emu3 of transformers": lambda: within("vqmodel.", weights_of(tiny_images.emu3())),
}
CASES = [*((name, torch.bfloat16, 1) for name in LAYOUTS), ("emu3", torch.float16, 1),
         ("chameleon", torch.float16, 3), ("emu3", torch.bfloat16, 3)]  # fmt: skip


def exported(folder: Path, weights: Weights) -> tuple[OpenedImageTokenizer, Path]:
    folder.mkdir()
    torch.save(weights, folder / "x.ckpt")
    found = open_image_tokenizer(folder / "x.ckpt", CODES)
    export_image_tokenizer(found, folder, CELLS)
    return found, folder / "graphs/fp32"


def floats(weights: Weights, dtype: torch.dtype) -> Weights:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def session_of(graph: Path) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """A session, and the operators that the library runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(graph.with_suffix(".optimized"))
    session = onnxruntime.InferenceSession(graph, options)
    optimized = onnx.load(graph.with_suffix(".optimized"), load_external_data=False)
    return session, Counter(node.op_type for node in optimized.graph.node)


def bits(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("layout", "dtype", "bands"), CASES)
def test_it_is_stored_as_the_checkpoint_has_it_and_runs_as_if_widened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, dtype: torch.dtype, bands: int
) -> None:
    # The decoders' largest activations are 5 MB at that size.
    monkeypatch.setattr("arforge.export.image_tokenizers.bands.BAND", 5_120_000 // bands)
    weights = floats(LAYOUTS[layout](), dtype)
    opened, graphs = exported(tmp_path / "stored", weights)
    _, wide = exported(tmp_path / "wide", floats(weights, torch.float32))
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (2, 6, 10, 3), dtype=np.uint8)
    feeds: dict[str, dict[str, NDArray[np.generic]]] = {
        "decoder": {"tokens": random.integers(0, CODES, (2, 4, 6))},
        "encoder": {"images": pixels},
    }
    for name, given in feeds.items():
        model = ir.load(graphs / f"{name}.onnx")
        stored = {name: value for name, value in model.graph.initializers.items() if name in opened.shapes}
        assert len(stored) > 40
        for own, value in stored.items():
            assert value.const_value is not None
            assert value.dtype == TYPES[dtype], own
            assert value.const_value.tobytes() == bits(opened.parameter(own)), own
        (found, operators), (expected, plain) = (session_of(folder / f"{name}.onnx") for folder in (graphs, wide))
        assert operators == plain  # casts are done when the session begins, and nothing else is lost
        one, other = (session.run(None, given)[0] for session in (found, expected))
        np.testing.assert_array_equal(one, other)
        assert len(np.unique(one)) > (100 if name == "decoder" else 3)
        assert widen(model) == len(stored)
        assert all(node.op_type != "Cast" or node.inputs[0] not in stored.values() for node in model.graph)


def test_each_tensor_keeps_its_own_type(tmp_path: Path) -> None:
    weights = floats(LAYOUTS["chameleon"](), torch.bfloat16)
    weights |= {name: tensor.float() for name, tensor in weights.items() if "norm" in name}
    opened, graphs = exported(tmp_path / "mixed", weights)
    for name in ("decoder", "encoder"):
        for own, value in ir.load(graphs / f"{name}.onnx").graph.initializers.items():
            if own in opened.shapes:
                assert value.dtype == (ir.DataType.FLOAT if "norm" in own else ir.DataType.BFLOAT16)
                assert value.const_value is not None
                values = torch.from_numpy(stored_values(value.const_value).astype(np.float32))
                assert torch.equal(values, opened.parameter(own).float())
