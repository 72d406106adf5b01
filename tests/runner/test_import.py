from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "PIL", "fastjsonschema", "safetensors")
IMPORT = """
import json, sys
import numpy
before = set(sys.modules)
import arforge.runner
print(json.dumps(sorted(set(sys.modules) - before)))
"""
MOST = 110  # modules beside numpy's, nearly all of them Python's own


def test_importing_the_runner_loads_nothing_heavy_and_little_else() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    packages = {name.partition(".")[0] for name in loaded}
    assert "arforge" in packages
    assert not set(HEAVY) & packages
    assert packages - set(sys.stdlib_module_names) == {"arforge", "numpy"}
    assert len(loaded) <= MOST, loaded
