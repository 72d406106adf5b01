"""The arforge runner: opens a bundle and generates images. Needs numpy and one runtime; never torch or onnx."""

from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.errors import (
    ArforgeError,
    BundleError,
    Cancelled,
    EngineError,
    RequestError,
    ScheduleError,
)
from arforge.runner.request import Request
from arforge.runner.runner import Result, Runner
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import compile_schedule

__all__ = [
    "ArforgeError",
    "Bundle",
    "BundleError",
    "Cancelled",
    "EngineError",
    "Request",
    "RequestError",
    "Result",
    "Runner",
    "Schedule",
    "ScheduleError",
    "compile_schedule",
    "open_bundle",
]
