from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "PIL", "fastjsonschema", "safetensors",
    "tokenizers", "ftfy", "bs4",
)  # fmt: skip
IMPORT = """
import json, sys
import numpy
before = set(sys.modules)
import {modules}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
TEXT = ("captions", "encoder", "features_file", "prompts_file", "tokenizer")
MOST = 125  # modules beside numpy's, nearly all of them Python's own


def loaded(modules: str) -> list[str]:
    """What an import of these modules loads beside numpy."""
    code = IMPORT.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    packages = {name.partition(".")[0] for name in found}
    assert "arforge" in packages
    assert not set(HEAVY) & packages
    assert packages - set(sys.stdlib_module_names) == {"arforge", "numpy"}
    return found


def test_importing_the_runner_loads_nothing_heavy_and_little_else() -> None:
    found = loaded("arforge.runner")
    assert len(found) <= MOST, found


def test_importing_what_reads_prompts_loads_nothing_heavy() -> None:
    loaded(", ".join(f"arforge.runner.text.{name}" for name in TEXT))
