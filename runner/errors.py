"""Every error that arforge raises on purpose. Each message says what was wrong, what was expected, what to do."""


class ArforgeError(Exception):
    """Base of all errors that a user can act on."""


class ScheduleError(ArforgeError):
    """A schedule specification that cannot be compiled, or a schedule that breaks a rule."""


class RequestError(ArforgeError):
    """A generation request with arguments out of range."""


class ImageError(RequestError):
    """An image file that cannot be read as 8-bit RGB; `reason` says why, without the file's name."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.reason = reason


class Cancelled(ArforgeError):
    """The caller cancelled a generation between two steps."""


class QueueFull(ArforgeError):
    """A batcher has as many images waiting as it takes."""


class DeadlineExceeded(ArforgeError):
    """A request's time was up before its images were done."""


class BundleError(ArforgeError):
    """A bundle that cannot be used. Subclasses name the way in which it is wrong."""


class ManifestError(BundleError):
    """manifest.json is missing, is not JSON, or does not follow its schema."""


class FormatVersionError(BundleError):
    """The bundle was written by a newer arforge."""


class PathError(BundleError):
    """A path in the bundle is absolute, leaves the bundle, or goes through a link."""


class MissingFileError(BundleError):
    """A file that the manifest lists is not there."""


class FileSizeError(BundleError):
    """A file's size differs from the manifest's."""


class HashError(BundleError):
    """A file's sha256 differs from the manifest's."""


class EngineError(ArforgeError):
    """An engine that is not built, does not fit this machine or library, or whose runtime is missing."""


class NumericsError(ArforgeError):
    """Logits that are non-finite, or tokens that the model does not have, in a step of a generation."""


class CheckpointError(ArforgeError):
    """A checkpoint that is missing, truncated, of another family, or of other dimensions."""


class VerificationError(ArforgeError):
    """A bundle or engine whose results differ from the reference."""


class CalibrationError(ArforgeError):
    """A calibration that has nothing to measure or to quantise, or whose measurements are non-finite."""


class EvaluationError(ArforgeError):
    """Images, a classifier or a feature network that an evaluation cannot use."""
