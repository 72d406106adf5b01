"""llama.cpp on random weights of a bundle's dimensions, in Q8_0 or Q4_0: the rows of guided images as sequences.

What it leaves out is in its favour: guidance and sampling, norms of heads, Janus's first layer of the head; its head
gives image tokens alone, in 4 bits where the others have them. Keys and values are its default, float16.
"""

from __future__ import annotations

import ctypes
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from peers import SPARE, Drawn, Setting, steps_of

from arforge.runner.bundle import Bundle, open_bundle

PROMPT = 64  # tokens a row of the steps that fill the cache


class LlamaCpp:
    def __init__(self, setting: Setting, kind: str) -> None:
        """`kind`: "Q8_0" or "Q4_0"."""
        import llama_cpp as library

        self.library = library
        self.rows = setting.rows
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"
        bundle = self.bundle = open_bundle(setting.bundles[0])
        model = bundle.model
        path = setting.work / f"{setting.bundles[0].stem}-{kind.lower()}.gguf"
        if not path.exists():
            write_random_gguf(path, bundle, kind)
        library.llama_backend_init()
        silence = library.llama_log_callback(lambda level, text, data: None)
        library.llama_log_set(silence, ctypes.c_void_p(0))
        self.keep = silence
        loaded = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        settings = library.llama_context_default_params()
        settings.n_ctx = self.rows * (1 + model.cells + SPARE)
        settings.n_seq_max = self.rows
        settings.n_batch = settings.n_ubatch = self.rows * PROMPT
        settings.n_threads = settings.n_threads_batch = setting.threads
        self.context = library.llama_init_from_model(loaded, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.batch = library.llama_batch_init(self.rows * PROMPT, 0, self.rows)
        self.filled = 0

    def step(self, slot: int, width: int) -> None:
        if self.filled != slot:
            self.fill(slot)
        self.decode(slot, width, wanted=True)
        self.filled = slot + width

    def image(self, schedule: str, prompt: int, first: int) -> Drawn:
        """The prompt and all steps; nothing is sampled or painted, whatever the seed."""
        start = time.perf_counter()
        self.fill(0)
        self.filled = 0
        steps = steps_of(self.bundle, schedule)
        for slot, width in steps:
            self.step(prompt + slot, width)
        return Drawn(time.perf_counter() - start, 0.0, len(steps))

    def fill(self, slot: int) -> None:
        """Leave `slot` tokens in both sequences."""
        memory = self.library.llama_get_memory(self.context)
        for row in range(self.rows):
            self.library.llama_memory_seq_rm(memory, row, slot, -1)
        for first in range(min(self.filled, slot), slot, PROMPT):
            self.decode(first, min(PROMPT, slot - first), wanted=False)

    def decode(self, slot: int, width: int, wanted: bool) -> None:
        """Every token's logits are asked for where `wanted`, as an image generator samples all of a step."""
        batch = self.batch
        batch.n_tokens = self.rows * width
        for index in range(batch.n_tokens):
            row, place = divmod(index, width)
            batch.token[index] = 7
            batch.pos[index] = slot + place
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = wanted
        if self.library.llama_decode(self.context, batch):
            raise SystemExit(f"llama.cpp failed to decode {width} tokens at {slot}")
        self.library.llama_synchronize(self.context)


def write_random_gguf(path: Path, bundle: Bundle, name: str) -> None:
    """A Llama of the bundle's dimensions: as many bytes to read a step as the image generator has in that kind."""
    import gguf

    from arforge.export.verify import configuration

    _, dims = configuration(bundle)
    vocabulary, kind = bundle.model.vocabulary, gguf.GGMLQuantizationType[name]
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(dims.dim)
    writer.add_block_count(dims.n_layer)
    writer.add_feed_forward_length(dims.hidden)
    writer.add_head_count(dims.n_head)
    writer.add_head_count_kv(dims.kv_heads)
    writer.add_rope_dimension_count(dims.head_size)
    writer.add_layer_norm_rms_eps(dims.norm_eps)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{name}"])
    random = np.random.default_rng(0)

    def matrix(name: str, outputs: int, inputs: int) -> None:
        weight = random.standard_normal((outputs, inputs), dtype=np.float32) / inputs**0.5
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(dims.dim, np.float32))

    kv = dims.kv_heads * dims.head_size
    matrix("token_embd", vocabulary, dims.dim)
    for layer in range(dims.n_layer):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        for part, outputs in (("attn_q", dims.dim), ("attn_k", kv), ("attn_v", kv), ("attn_output", dims.dim)):
            matrix(f"{block}.{part}", outputs, dims.dim)
        norm(f"{block}.ffn_norm")
        for part in ("ffn_gate", "ffn_up"):
            matrix(f"{block}.{part}", dims.hidden, dims.dim)
        matrix(f"{block}.ffn_down", dims.dim, dims.hidden)
    norm("output_norm")
    matrix("output", vocabulary, dims.dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
