"""On the path of a process, gives it a GPU that is not there (`fake_machine.py`), and engines that crash or hang.

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

from fake_machine import pretend

from arforge.engines import tensorrt

build = tensorrt.build


def build_or_fail(job: Any, *report: Any) -> Any:
    name = f"{job.bundle.stem}:{job.precision}"
    if name == os.environ.get("CRASHES"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == os.environ.get("HANGS"):
        sleeper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        Path(os.environ["SLEEPER"]).write_text(str(sleeper.pid))
        time.sleep(600)
    return build(job, *report)


pretend(setattr)
tensorrt.build = build_or_fail
