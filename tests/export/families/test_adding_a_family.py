"""The family that docs/adding-a-family.md adds, as it stands there: from a checkpoint to tokens."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner
from oracle import Decoder
from tiny import CONFIG, random_weights

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.export.families import FAMILIES
from arforge.export.verify import check_weights
from arforge.runner import Runner, open_bundle

PAGE = Path(__file__).parents[3] / "docs/adding-a-family.md"
SMALL = replace(CONFIG, n_layer=1, grid=(3, 4))


@pytest.fixture
def splitgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "splitgen.py").write_text(block)
    spec = importlib.util.spec_from_file_location("splitgen", tmp_path / "splitgen.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(FAMILIES, "splitgen", module.FAMILY)
    return module


def test_the_pages_family_exports_and_gives_the_references_tokens(splitgen: ModuleType, tmp_path: Path) -> None:
    weights = random_weights(SMALL, seed=8)
    tables = ("tok_embeddings.weight", "cls_embedding.embedding_table.weight")
    joined = {**weights, tables[0]: torch.cat([weights[name] for name in tables])}
    theirs = {}
    for name, tensor in joined.items():
        if name != tables[1]:
            sources = splitgen.sources(name)
            theirs.update(zip(sources, (part.clone() for part in tensor.chunk(len(sources))), strict=True))
    torch.save({"model": theirs}, tmp_path / "splitgen.pt")
    output = tmp_path / "x.bundle"
    given = ["export", tmp_path / "splitgen.pt", "--n-head", 4, "--grid", "3x4", "--output", output]
    done = CliRunner().invoke(main, [str(argument) for argument in given])
    assert done.exit_code == 0, done.output
    assert "splitgen of a size of its own (1 layers of 4 heads, width 64, 32 image tokens)" in done.stderr
    opened = open_bundle(output)
    assert (opened.model.family, opened.model.order, opened.sampler.guidance) == ("splitgen", "raster", 3.0)
    assert check_weights(opened, tmp_path / "splitgen.pt") == len(joined) - 1
    onnxruntime.build(output)
    with Runner.open(output, threads=1) as runner:
        found = runner.generate([2, 7], schedule="zipar:2", guidance=2.0, greedy=True).tokens
    decoder = Decoder(weights, SMALL.n_head, SMALL.grid)
    np.testing.assert_array_equal(found, oracle.zipar(decoder, [2, 7], window=2, guidance=2.0))
