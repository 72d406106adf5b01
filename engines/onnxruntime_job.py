"""What an engine of ONNX Runtime is asked to be."""

from __future__ import annotations

from dataclasses import dataclass

from arforge.engines.cache_trial import check_foldable
from arforge.runner.backends.kernels import find_kernels
from arforge.runner.bundle import Bundle
from arforge.runner.errors import EngineError
from arforge.runner.request import Subjects

TARGET = "onnxruntime"
PRECISIONS = ("fp32", "int8", "int4")
IN_BLOCKS = ("int8", "int4")
CACHES = ("fp32", "int8")
QUANTIZATIONS = ("blocks", "rows", "static")  # of int8; the last is the graph that `arforge calibrate` made


@dataclass(frozen=True)
class BuildJob:
    """The arguments of `onnxruntime.build`, which says what they mean."""

    precision: str
    widths: tuple[int, ...] = ()
    quantization: str | None = None
    caches: str = "fp32"
    subjects: Subjects | None = None
    measure_widths: bool = False
    measure_jacobi: bool = False
    trial: bool = True

    @property
    def low_caches(self) -> bool:
        return self.caches == "int8"

    @property
    def own(self) -> bool:
        """Whether there is to be a graph for arforge's own operators too."""
        return self.precision in IN_BLOCKS and self.quantization != "static"

    @property
    def chooses(self) -> bool:
        """Whether the quicker quantization is to be found."""
        return self.precision == "int8" and self.quantization is None and self.trial

    def check(self) -> None:
        """Raise EngineError for what no bundle has, or for wishes that do not go together."""
        self._check_precision()
        self._check_caches()
        if any(width < 1 for width in self.widths):
            raise EngineError(f"widths {list(self.widths)} must all be at least 1")
        if self.widths and self.measure_widths:
            raise EngineError("widths are either given or measured: leave one out")
        if not self.trial and (self.measure_widths or self.measure_jacobi):
            raise EngineError("what is not opened is not measured: leave the trial in")
        if self.widths and self.measure_jacobi:
            raise EngineError("running ahead on drafts is measured at widths of its own: leave the widths out")

    def _check_precision(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineError(f"target {TARGET} has no precision {self.precision!r}: use {', '.join(PRECISIONS)}")
        if self.quantization is not None and (self.precision != "int8" or self.quantization not in QUANTIZATIONS):
            raise EngineError(
                f"quantization {self.quantization!r} with precision {self.precision}: int8 has "
                f"{', '.join(QUANTIZATIONS)}, other precisions no choice"
            )

    def _check_caches(self) -> None:
        if self.caches not in CACHES:
            raise EngineError(f"caches {self.caches!r}: use {', '.join(CACHES)}")
        if self.low_caches and (self.precision not in IN_BLOCKS or self.quantization == "static"):
            raise EngineError("8-bit caches go with int8 and int4 that need no calibration")
        if self.low_caches and not self.trial:
            raise EngineError("8-bit caches are measured: give --cache-precision int8 no --no-trial")
        if self.low_caches and self.measure_jacobi and find_kernels() is None:
            raise EngineError(
                "running ahead on drafts has 8-bit caches by arforge's own operators alone, which are not here: "
                "compile them with `arforge kernels`, or leave out --measure-jacobi"
            )
        if self.subjects is not None and not self.low_caches:
            raise EngineError("images are drawn for 8-bit caches alone: leave out what they are to show")

    def check_bundle(self, bundle: Bundle) -> None:
        """Raise EngineError for what this bundle does not have: positions, float weights, fit keys and values.

        Raises RequestError for subjects that the model does not take.
        """
        widest, stored = max(self.widths, default=1), bundle.model.stored_precision
        if widest > bundle.model.position_rows:
            raise EngineError(f"width {widest} is more than the model's {bundle.model.position_rows} positions")
        if self.quantization == "rows" and stored in IN_BLOCKS:
            raise EngineError(
                f"{bundle.root} stores its weights in blocks, which are not rounded again: leave out rows"
            )
        if {stored, self.precision} == {"int8", "int4"}:
            raise EngineError(
                f"{bundle.root} stores its weights in {stored}, of which no {self.precision} engine is made: build "
                f"{stored}, or export the checkpoint again with --precision {self.precision}"
            )
        if self.low_caches:
            check_foldable(bundle, self.subjects)
