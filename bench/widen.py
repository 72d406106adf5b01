"""A trained LlamaGen at a published size: a small checkpoint, widened so that it computes the same function.

python bench/widen.py fashion-L.bundle [--variant L] [--sampler noise] [--precision int8 --precision int4]

Random weights take as long as any, but how many drafts of `jacobi:L` hold is a trained model's to say. The wide model
has the published layout, shapes and number of products, and every weight is read: kernels for dense weights skip no
zeros. What it draws is the small model's pictures, without their pixels. How it stays the same:

- New channels hold zeros, but for the last, and what is written to the others is scaled up, so that norms divide by
  the same. Norms' weights are scaled down.
- Heads have one size in both, so rotary frequencies are the same. New heads and new units of the feed-forward layers
  repeat the small ones and are multiplied by zeros, so that they work with numbers as the others do; new layers too.
- The last channel is the same small constant for every token, subtracted from the epsilon of norms. New tokens of the
  vocabulary have a large negative weight there and cannot be drawn, for a guidance up to 3.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from arforge.export.checkpoint import Checkpoint, open_checkpoint
from arforge.export.config import read_config, variant_config
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import CLASS_EMBEDDING, EMBEDDING, FAMILY, LlamaGenConfig, checkpoint_shapes

FASHION = Path(__file__).parents[1] / "examples" / "fashion" / "checkpoints" / "llamagen"
LAST = 4.0  # the last channel before the last norm divides it by what is usual (3.6): about 1, as other channels are
UNREACHABLE = -400.0


def widened_config(small: LlamaGenConfig, variant: str) -> LlamaGenConfig:
    """Of the published size, with the small model's grid and classes. Raises SystemExit where it does not fit in."""
    wide = variant_config(FAMILY, variant, small.grid, num_classes=small.num_classes, rope_base=small.rope_base)
    fits = wide.dim > small.dim and all(
        getattr(wide, name) >= getattr(small, name) for name in ("n_layer", "n_head", "hidden", "vocab_size")
    )
    own_keys = small.kv_heads == small.n_head
    if wide.head_size != small.head_size or not fits or not own_keys:
        what = f"it has heads of {wide.head_size}, width {wide.dim}"
        raise SystemExit(f"LlamaGen-{variant} cannot hold this model: {what}")
    return replace(wide, norm_eps=small.norm_eps - constant(small, wide) ** 2 / wide.dim)


def constant(small: LlamaGenConfig, wide: LlamaGenConfig) -> float:
    """Of the last channel: a power of two whose mean square is at most half the epsilon of norms."""
    return float(2.0 ** math.floor(math.log2(math.sqrt(wide.dim * small.norm_eps / 2))))


def widen(checkpoint: Checkpoint, small: LlamaGenConfig, wide: LlamaGenConfig) -> dict[str, Tensor]:
    """The wide checkpoint's tensors, in the small one's type."""
    tensors = {}
    for name, shape in checkpoint_shapes(wide).items():
        source, added = source_of(name, small.n_layer)
        tensors[name] = widened(name, checkpoint.tensor(source), shape, added, small, wide)
    return tensors


def source_of(name: str, layers: int) -> tuple[str, bool]:
    """Which tensor of the small checkpoint it is made from, and whether it is of an added layer."""
    if not name.startswith("layers."):
        return name, False
    _, layer, rest = name.split(".", 2)
    return f"layers.{int(layer) % layers}.{rest}", int(layer) >= layers


def widened(
    name: str, tensor: Tensor, shape: tuple[int, ...], added: bool, small: LlamaGenConfig, wide: LlamaGenConfig
) -> Tensor:
    louder = math.sqrt(wide.dim / small.dim)
    if "norm" in name:
        weight = padded(tensor / louder, shape)
        if name == "norm.weight":
            weight[-1] = LAST / constant(small, wide)
        return weight
    if name in {EMBEDDING, CLASS_EMBEDDING}:
        table = padded(louder * tensor, shape)
        table[:, -1] = constant(small, wide)
        return table
    if name == "output.weight":
        head = padded(tensor, shape)
        head[small.vocab_size :, -1] = UNREACHABLE
        return head
    if name.endswith(("wo.weight", "w2.weight")):  # what layers write
        return tensor.new_zeros(shape) if added else padded(louder * tensor, shape)
    parts = 3 if name.endswith("wqkv.weight") else 1
    outputs = shape[0] // parts
    return torch.cat([padded(repeated(part, outputs), (outputs, shape[1])) for part in tensor.chunk(parts)])


def padded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def repeated(rows: Tensor, count: int) -> Tensor:
    return rows[torch.arange(count) % len(rows)]


def write_widened(small_checkpoint: Path, small_config: Path, variant: str, folder: Path) -> tuple[Path, Path]:
    """Write checkpoint and configuration into the folder; returns both."""
    small = read_config(small_config, FAMILY)
    wide = widened_config(small, variant)
    checkpoint, config = folder / "llamagen.safetensors", folder / "llamagen.json"
    save_file(widen(open_checkpoint(small_checkpoint), small, wide), checkpoint)
    config.write_text(json.dumps({name: value for name, value in asdict(wide).items() if value is not None}))
    return checkpoint, config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=FASHION.with_suffix(".safetensors"))
    parser.add_argument("--config", type=Path, default=FASHION.with_suffix(".json"))
    parser.add_argument("--variant", choices=FAMILY.variants, default="L")
    parser.add_argument("--sampler", choices=("uniform", "noise"), default="uniform")
    parser.add_argument("--precision", choices=("fp32", "int8", "int4"), action="append", help="default: int8, int4")
    arguments = parser.parse_args()
    from arforge.engines.onnxruntime import build

    with TemporaryDirectory(dir=arguments.bundle.resolve().parent) as work:
        checkpoint, config = write_widened(arguments.checkpoint, arguments.config, arguments.variant, Path(work))
        wide = read_config(config, FAMILY)
        sampler = replace(FAMILY.sampler(wide), kind=arguments.sampler)
        export_bundle(ExportJob(FAMILY, wide, checkpoint, None, arguments.bundle, sampler=sampler, overwrite=True))
    for precision in arguments.precision or ["int8", "int4"]:
        build(arguments.bundle, precision, quantization="blocks" if precision == "int8" else None)


if __name__ == "__main__":
    main()
