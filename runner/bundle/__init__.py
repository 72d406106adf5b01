"""The bundle: what `arforge export` writes and everything else reads."""

from arforge.runner.bundle.bundle import (
    FORMAT,
    MANIFEST,
    VERSION,
    Bundle,
    Model,
    Sampler,
    Tokenizer,
    check_distinct,
    check_relative,
    open_bundle,
    sha256_of,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "Bundle",
    "Model",
    "Sampler",
    "Tokenizer",
    "check_distinct",
    "check_relative",
    "open_bundle",
    "sha256_of",
]
