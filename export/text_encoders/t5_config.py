"""The dimensions of a T5 encoder, from the `config.json` of its folder."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self

from arforge.export.file_kind import read_head, text_kind, text_of
from arforge.runner.errors import CheckpointError
from arforge.runner.json_file import read_json

MODEL_TYPES = ("t5", "mt5")
MAX_INTEGER = 2**24
LIMITS = {"num_layers": 1024, "relative_attention_num_buckets": 2**16, "relative_attention_max_distance": 2**16}
ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
ALIASES = {"gated-gelu": "gated-gelu_new", "gated-swish": "gated-silu", "swish": "silu"}
"""Names of the hub for another activation than they say: the gated one by `gelu` is that by tanh."""


@dataclass(frozen=True)
class T5Config:
    """The fields that an encoder depends on, as the file names them."""

    vocab_size: int
    d_model: int  # width of the features
    d_kv: int  # of a head, whatever the width is
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    eos_token_id: int = 1

    @property
    def gated(self) -> bool:
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """One of ACTIVATIONS, if the file names one."""
        return ALIASES.get(self.feed_forward_proj, self.feed_forward_proj).removeprefix("gated-")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file. Raises CheckpointError that names the field, what it is and what was expected."""
        values = read_values(path)
        given = {field.name: values[field.name] for field in fields(cls) if values.get(field.name) is not None}
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in given]
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}: download it again")
        config = cls(**given)
        for problem in config.problems():
            raise CheckpointError(f"{path}: {problem}")
        return config

    def problems(self) -> list[str]:
        """What keeps the fields from being an encoder, in words."""
        found = []
        for name, value in vars(self).items():
            if name in ("feed_forward_proj", "layer_norm_epsilon"):
                continue
            most = LIMITS.get(name, MAX_INTEGER)
            if not (type(value) is int and 0 < value <= most):
                found.append(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if not (type(self.layer_norm_epsilon) in (int, float) and 0 < self.layer_norm_epsilon < 1):
            found.append(f"layer_norm_epsilon must be a small positive number, not {self.layer_norm_epsilon!r}")
        if not isinstance(self.feed_forward_proj, str) or self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            found.append(f"feed_forward_proj {self.feed_forward_proj!r} is none of {known}, with gated- before or not")
        if not found and not self._distances_fit():
            found.append(
                f"{self.relative_attention_num_buckets} buckets for distances up to "
                f"{self.relative_attention_max_distance}: expected a multiple of 4, and longer distances than a quarter"
            )
        return found

    def _distances_fit(self) -> bool:
        buckets = self.relative_attention_num_buckets
        return buckets % 4 == 0 and self.relative_attention_max_distance > buckets // 4


def read_values(path: Path) -> dict[str, Any]:
    """What the file says of a T5. Raises CheckpointError if it is another file, or of another model."""
    text = text_of(read_head(path))
    if text is not None and text.strip() and not text.lstrip().startswith("{"):
        raise CheckpointError(f"{path} is {text_kind(text)}")
    values = read_json(path, CheckpointError)
    found = values.get("model_type") if isinstance(values, dict) else None
    if found not in MODEL_TYPES:
        raise CheckpointError(
            f"{path} is of the model type {found!r}, expected {' or '.join(MODEL_TYPES)}: name the folder of the text "
            "encoder that the model was trained with"
        )
    return dict(values)
