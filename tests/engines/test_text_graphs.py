"""A text encoder in a bundle: builders leave it alone, verification looks at it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_text import random_t5, save_folder, text_bundle

from arforge.engines.graph_data import check_graphs
from arforge.engines.low_precision import has_graphs
from arforge.engines.trtexec import scratch_copy
from arforge.engines.verify import check_contract, check_text_tokenizer
from arforge.export.exporter import export_text_encoder
from arforge.export.text_encoders.text_encoder import open_text_encoder
from arforge.runner.bundle import Bundle, Graph
from arforge.runner.bundle.writer import file_facts
from arforge.runner.errors import BundleError, VerificationError

STEP = Graph("step", "fp32", "graphs/fp32/step.onnx", "graphs/fp32/weights/model.weights")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bundle")
    graphs, tokenizer = export_text_encoder(
        open_text_encoder(save_folder(tmp_path_factory.mktemp("t5"), random_t5())), root, "bf16"
    )
    return replace(text_bundle(root, graphs, tokenizer), files=file_facts(root))


def test_a_text_encoder_of_a_precision_is_no_step_of_it(texts: Bundle) -> None:
    assert [graph.key for graph in texts.graphs] == [("text", "bf16")]
    assert not has_graphs(texts, "bf16")
    assert has_graphs(replace(texts, graphs=(*texts.graphs, replace(STEP, precision="bf16"))), "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_build_elsewhere_copies_no_text_encoder(texts: Bundle, tmp_path: Path, precision: str) -> None:
    root = tmp_path / "bundle"
    for path in (STEP.path, STEP.weights):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    text = replace(texts.graphs[0], precision=precision)
    scratch_copy(replace(texts, root=root, graphs=(STEP, text)), precision, tmp_path / "scratch")
    copied = {path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file()}
    assert copied == {"step.onnx", "model.weights"}


def test_verification_looks_at_graph_data_and_tokenizer(texts: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (graph,) = texts.graphs
    check_graphs(texts, [graph.path])
    check_contract(texts, "text", "bf16", texts.path(graph.path))
    with pytest.raises(VerificationError, match="input features is missing, expected float32"):
        check_contract(texts, "condition", "bf16", texts.path(graph.path))
    lines: list[str] = []
    check_text_tokenizer(texts, lines.append)
    check_text_tokenizer(replace(texts, text_tokenizer=None), lines.append)
    monkeypatch.setattr("arforge.engines.verify.installed", lambda module: False)
    check_text_tokenizer(texts, lines.append)
    assert lines == [
        "text tokenizer: reads 'a picture' as 10 ids",
        "text tokenizer: not looked at (no tokenizers; pip install 'arforge[text]')",
    ]


def test_a_damaged_tokenizer_fails_verification(texts: Bundle) -> None:
    with pytest.raises(BundleError, match="is no tokenizer that tokenizers"):
        check_text_tokenizer(replace(texts, text_tokenizer=texts.graphs[0].path), print)
