"""The kinds of image tokenizers that arforge exports, by name. A new one is a file here and its name below."""

from __future__ import annotations

from typing import Any

from arforge.export.image_tokenizers import vision_vq, vq
from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizerKind

IMAGE_TOKENIZERS: dict[str, ImageTokenizerKind[Any]] = {kind.kind: kind for kind in (vq.KIND, vision_vq.KIND)}
