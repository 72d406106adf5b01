"""On the path of a process, gives it a GPU that is not there (`fake_gpu.py`), and engines that crash or hang.

$CRASHES and $HANGS name builds as BUNDLE:PRECISION.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from fake_gpu import FakeGpu, fake_library

from arforge.engines import tensorrt
from arforge.runner.backends import cuda
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_identity import choose

build = tensorrt.build


def built(cls: Any, target: str, bundle: Any, precision: str, *more: Any) -> Any:
    identities, gpu = bundle.identities(target, precision), FakeGpu()
    library = fake_library(gpu, identities[0]["library"].split()[1], target)
    for identity in identities:
        library.trt.add(bundle, identity)
    return cls(bundle, choose(bundle, identities, library.name, gpu.compute_capability), library, gpu, *more)


def build_or_fail(job: Any, *report: Any) -> Any:
    name = f"{job.bundle.stem}:{job.precision}"
    if name == os.environ.get("CRASHES"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == os.environ.get("HANGS"):
        sleeper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        Path(os.environ["SLEEPER"]).write_text(str(sleeper.pid))
        time.sleep(600)
    return build(job, *report)


cuda.Gpu = FakeGpu  # type: ignore[misc, assignment]
TensorRTEngine.built = classmethod(built)  # type: ignore[method-assign, assignment]
tensorrt.build = build_or_fail
