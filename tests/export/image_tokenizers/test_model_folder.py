"""A model's folder is the checkpoint of its decoder and of its image tokenizer, and draws its publisher's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_images
import torch
from click.testing import CliRunner
from tiny_images import llamagen, truncated, weights_of
from tiny_llama import CODE_WIDTH, CODES, JANUS_WORDS, janus_weights, save_janus, save_tokenizer

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.runner import Runner


def test_a_janus_folder_gives_tokens_and_images(tmp_path: Path) -> None:
    theirs = tiny_images.janus(num_embeddings=CODES, embed_dim=CODE_WIDTH, num_patches=4)
    names = {name: tensor for name, tensor in llamagen(weights_of(theirs)).items() if not name.startswith("encoder.")}
    inside = {f"gen_vision_model.{name}": tensor for name, tensor in names.items()}
    folder = save_janus(tmp_path / "Janus", {**janus_weights(seed=5), **inside})
    save_tokenizer(folder, {word: 270 + index for index, word in enumerate(JANUS_WORDS)})
    bundle = tmp_path / "janus.bundle"
    command = ["export", folder, "--image-tokenizer", folder, "--grid", "4x4", "--output", bundle]
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "took its image tokenizer, gen_vision_model.*" in result.output
    onnxruntime.build(bundle)
    with Runner.open(bundle, threads=1) as runner:
        found = runner.generate(ids=[np.array([270, 8, 100, 272])], seeds=[1], guidance=2.0)
    assert found.images is not None
    with torch.no_grad():
        expected = truncated(theirs.decode(torch.from_numpy(found.tokens).view(1, 16)))
    assert np.abs(found.images.astype(int) - expected.astype(int)).max() <= 1
    assert expected.std() > 20
