"""The bundle: what `arforge export` writes and everything else reads."""

from arforge.runner.bundle.bundle import Bundle, open_bundle, use_bundle
from arforge.runner.bundle.facts import (
    BuiltEngine,
    Captions,
    ClassCondition,
    Condition,
    FeaturesCondition,
    File,
    Graph,
    IdsCondition,
    ImageTokenizerFacts,
    ModelFacts,
    Order,
    Precision,
    SamplerDefaults,
    StoredSchedule,
    Unconditional,
)
from arforge.runner.bundle.files import check_distinct, check_relative, sha256_of
from arforge.runner.bundle.manifest import FORMAT, MANIFEST, VERSION, Manifest

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "BuiltEngine",
    "Bundle",
    "Captions",
    "ClassCondition",
    "Condition",
    "FeaturesCondition",
    "File",
    "Graph",
    "IdsCondition",
    "ImageTokenizerFacts",
    "Manifest",
    "ModelFacts",
    "Order",
    "Precision",
    "SamplerDefaults",
    "StoredSchedule",
    "Unconditional",
    "check_distinct",
    "check_relative",
    "open_bundle",
    "sha256_of",
    "use_bundle",
]
