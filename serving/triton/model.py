"""The file that Triton's Python backend loads: tensors in, tensors out; all else is in arforge.serving.triton.

With numpy 2 tensors pass by DLPack: in backends before 24.12 `as_numpy` then gives wrong values without an error. With
numpy 1 they do not: what those backends make of its DLPack capsules ends the process.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from arforge.runner import ArforgeError, EngineError, RequestError, Runner, ScheduleError
from arforge.runner.batcher import Batcher
from arforge.runner.errors import Cancelled, DeadlineExceeded, QueueFull
from arforge.serving.triton.answers import Answer, Images, answers
from arforge.serving.triton.inputs import Call, call_of

BY_DLPACK = int(np.__version__.partition(".")[0]) >= 2
CODES = {  # names, since the backend adds them once this file is loaded
    RequestError: "INVALID_ARG",
    ScheduleError: "INVALID_ARG",
    QueueFull: "UNAVAILABLE",
    DeadlineExceeded: "UNAVAILABLE",
    Cancelled: "CANCELLED",
}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._kinds = {one["name"]: one["data_type"] for one in config["input"]}
        self._stream = pb_utils.using_decoupled_model_transaction_policy(config)
        if "TYPE_STRING" in self._kinds.values() and not texts_are_sound():
            raise EngineError(
                "this Python backend cannot read texts with numpy 2: use Triton 24.12 or later, install 'numpy<2' in "
                "the model's environment, or write the model with `arforge triton --prompts uint8`"
            )
        if args["model_instance_kind"] == "GPU":  # an instance is a process of its own
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
        bundle = Path(args["model_repository"]) / args["model_version"] / given["bundle"]
        threads = int(given["threads"]) if given["threads"] else None
        self._runner = Runner.open(bundle, given["target"], given["precision"], threads)
        most = config["max_batch_size"]
        self._batcher = Batcher(self._runner, batch=most, waiting=most)
        self._count = Counter(args["model_name"])

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        if self._stream:
            self._answer_streams(requests)
            return None
        last: dict[int, Any] = {index: response for index, response, _ in self._responses(requests)}
        return [last[index] for index in range(len(requests))]

    def finalize(self) -> None:
        self._batcher.close(drain=False)
        self._runner.close()

    def _answer_streams(self, requests: Sequence[Any]) -> None:
        senders = [request.get_response_sender() for request in requests]
        for index, response, final in self._responses(requests):
            senders[index].send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)

    def _responses(self, requests: Sequence[Any]) -> Iterator[tuple[int, Any, bool]]:
        """Of each request by its index the responses, and whether it is the last."""
        calls: dict[int, Call] = {}
        for index, request in enumerate(requests):
            try:
                calls[index] = self._call(request)
            except Exception as error:  # noqa: BLE001  the others have theirs to come
                yield index, self._failure(error), True
        places = list(calls)
        gone = [requests[index].is_cancelled for index in places]
        for answer in answers(self._batcher, list(calls.values()), gone):
            response = self._success(answer) if isinstance(answer.what, Images) else self._failure(answer.what)
            yield places[answer.of], response, answer.last

    def _success(self, answer: Answer) -> Any:
        assert isinstance(answer.what, Images)
        if answer.last:
            self._count("OK")
        found = answer.what.arrays(stream=self._stream).items()
        return pb_utils.InferenceResponse([tensor_of(name, array) for name, array in found])

    def _failure(self, error: BaseException) -> Any:
        code = next((name for kind, name in CODES.items() if isinstance(error, kind)), "INTERNAL")
        self._count(code)
        text = str(error) if isinstance(error, ArforgeError) else f"{type(error).__name__}: {error}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, getattr(pb_utils.TritonError, code)))

    def _call(self, request: Any) -> Call:
        arrays = {}
        for name, kind in self._kinds.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                arrays[name] = tensor.as_numpy() if kind == "TYPE_STRING" or not BY_DLPACK else np.from_dlpack(tensor)
        return call_of(arrays, request.parameters(), stream=self._stream)


def texts_are_sound() -> bool:
    """Whether arrays of this numpy come out of the backend as they went in."""
    probe = np.arange(3, dtype=np.int64)
    return np.array_equal(tensor_of("probe", probe).as_numpy(), probe)


def tensor_of(name: str, array: Any) -> Any:
    if not BY_DLPACK:
        return pb_utils.Tensor(name, array)
    capsule = array.__dlpack__()
    # the tensor frees it; numpy's own destructor complains, since the backend has given it another name
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


class Counter:
    """Counts requests by how they ended, beside Triton's own figures, which take every answer for a success."""

    def __init__(self, model: str) -> None:
        self._made: dict[str, Any] = {}
        try:
            self._family = pb_utils.MetricFamily(
                "arforge_requests_total", "Requests by outcome.", pb_utils.MetricFamily.COUNTER
            )
            for code in sorted({"OK", "INTERNAL", *CODES.values()}):
                self._made[code] = self._family.Metric({"model": model, "outcome": code})
        except pb_utils.TritonModelException:  # of a server without metrics
            self._made = {}

    def __call__(self, code: str) -> None:
        if code in self._made:
            self._made[code].increment(1)
