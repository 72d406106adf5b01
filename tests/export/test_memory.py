"""An export's memory is bounded, whatever the size of a tensor: measured on sparse files of a true width."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = """
import re, sys
from pathlib import Path
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY, LlamaGenConfig

def peak():
    # of this program alone: ru_maxrss begins with what its parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

found = {}
config = LlamaGenConfig(
    dim=4096, n_layer=1, n_head=32, n_kv_head=8, grid=(8, 8), vocab_size=8192, num_classes=40000,
    multiple_of=256, ffn_dim_multiplier=1.3125,
)
job = ExportJob(FAMILY, config, Path(sys.argv[1]), None, Path(sys.argv[2]), ["ntp"], precision=sys.argv[3])
export_bundle(job, lambda line: found.setdefault("traced", peak()) if "weights" in line else None)
print(found["traced"], peak())
"""
LARGEST = 655  # MB of the table of classes in float32, by far the largest tensor
SHAPES = {
    "tok_embeddings.weight": (8192, 4096),
    "cls_embedding.embedding_table.weight": (40001, 4096),
    "layers.0.attention.wqkv.weight": (6144, 4096),
    "layers.0.attention.wo.weight": (4096, 4096),
    "layers.0.feed_forward.w1.weight": (14336, 4096),
    "layers.0.feed_forward.w3.weight": (14336, 4096),
    "layers.0.feed_forward.w2.weight": (4096, 14336),
    "layers.0.attention_norm.weight": (4096,),
    "layers.0.ffn_norm.weight": (4096,),
    "norm.weight": (4096,),
    "output.weight": (8192, 4096),
}


def sparse(path: Path) -> None:
    """A safetensors file of zeros that take no space."""
    header, end = {}, 0
    for name, shape in SHAPES.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_no_tensor_is_in_memory_whole(tmp_path: Path, precision: str) -> None:
    sparse(tmp_path / "x.safetensors")
    command = [sys.executable, "-c", EXPORT, str(tmp_path / "x.safetensors"), str(tmp_path / "x.bundle"), precision]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    traced, peak = map(int, child.stdout.split())
    assert peak - traced < LARGEST / 2
    assert peak < 2048
