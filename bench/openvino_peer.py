"""OpenVINO on random weights of a bundle's dimensions, in int8 or int4, as `optimum-intel` exports a Llama.

All rows are a batch, two of a guided image; keys and values are in 8 bits, its default. What it leaves out is in its
favour: guidance and sampling, and norms of heads. `optimum-intel` takes other versions of transformers than the tests
do: have an environment apart, with `pip install -e ".[bench]" "optimum-intel[openvino]>=2.2"`, for all peers.
"""

from __future__ import annotations

import shutil
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peers import Drawn, Setting, steps_of

from arforge.runner.bundle import Bundle, open_bundle

PROMPT = 64  # tokens a row of the steps that fill the cache
KINDS: dict[str, dict[str, Any]] = {"int8": {"bits": 8}, "int4": {"bits": 4, "sym": True, "group_size": 128}}


class OpenVino:
    def __init__(self, setting: Setting, kind: str) -> None:
        """`kind`: "int8" or "int4"."""
        import openvino

        self.version = f"openvino {openvino.__version__.partition('-')[0]}"
        self.rows, self.filled = setting.rows, 0
        self.bundle = open_bundle(setting.bundles[0])
        folder = setting.work / f"{setting.bundles[0].stem}-openvino-{kind}"
        if not folder.exists():
            export_random(folder, self.bundle, KINDS[kind])
        settings = {"INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", settings)
        self.version += f", optimum-intel {version('optimum-intel')}, keys and values {kept_in(compiled)}"
        self.request = compiled.create_infer_request()

    def step(self, slot: int, width: int) -> None:
        if self.filled != slot:
            self.fill(slot)
        self.decode(slot, width)
        self.filled = slot + width

    def image(self, schedule: str, prompt: int, first: int) -> Drawn:
        """The prompt and all steps; nothing is sampled or painted, whatever the seed."""
        start = time.perf_counter()
        self.fill(prompt)
        self.filled = prompt
        steps = steps_of(self.bundle, schedule)
        for slot, width in steps:
            self.step(prompt + slot, width)
        return Drawn(time.perf_counter() - start, 0.0, len(steps))

    def fill(self, slot: int) -> None:
        """Leave `slot` tokens in both rows."""
        self.request.reset_state()
        for first in range(0, slot, PROMPT):
            self.decode(first, min(PROMPT, slot - first))

    def decode(self, slot: int, width: int) -> None:
        self.request.infer(
            {
                "input_ids": np.full((self.rows, width), 7, np.int64),
                "attention_mask": np.ones((self.rows, slot + width), np.int64),
                "position_ids": np.tile(np.arange(slot, slot + width), (self.rows, 1)),
                "beam_idx": np.arange(self.rows, dtype=np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )


def kept_in(compiled: Any) -> str:
    """The type that it says its caches have."""
    return str(compiled.get_property("KV_CACHE_PRECISION")).rpartition("'")[0].rpartition("'")[2]


def export_random(folder: Path, bundle: Bundle, compression: dict[str, Any]) -> None:
    """A Llama of the bundle's dimensions; in int4, embedding and head keep 8 bits."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    from arforge.export.verify import configuration

    _, dims = configuration(bundle)
    config = LlamaConfig(
        vocab_size=bundle.model.vocabulary,
        hidden_size=dims.dim,
        intermediate_size=dims.hidden,
        num_hidden_layers=dims.n_layer,
        num_attention_heads=dims.n_head,
        num_key_value_heads=dims.kv_heads,
        rms_norm_eps=dims.norm_eps,
        max_position_embeddings=4096,
    )
    with TemporaryDirectory(dir=folder.parent) as work:
        LlamaForCausalLM(config).save_pretrained(work)
        wanted = OVWeightQuantizationConfig(**compression)
        model = OVModelForCausalLM.from_pretrained(work, export=True, compile=False, quantization_config=wanted)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        partial.rename(folder)
