from __future__ import annotations

import json
import statistics
import subprocess
import sys

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "PIL", "fastjsonschema", "safetensors")
IMPORT = """
import json, sys, time
start = time.perf_counter()
import arforge.runner
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def import_runner() -> dict[str, object]:
    """Import arforge.runner in a fresh interpreter; its time and all modules loaded then."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_importing_the_runner_is_quick_and_loads_nothing_heavy() -> None:
    runs = [import_runner() for _ in range(5)]
    assert not set(HEAVY) & set(runs[0]["modules"])
    assert "arforge" in runs[0]["modules"]
    assert statistics.median(run["seconds"] for run in runs) < 0.5
