"""Tiny bundles, exported once a session, and the checkpoints that they come from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from made_once import kept_folder, made_once
from oracle import Decoder
from safetensors.torch import save_file
from tiny import ARPG_CONFIG, CONFIG, GROUPED_CONFIG, PAR_CONFIG, TEXT_CONFIG, VQ_CONFIG, random_weights
from torch import Tensor
from traced_once import PROGRAMS, trace_once

from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families import arpg, llamagen_t2i, par
from arforge.export.families.llamagen import FAMILY
from arforge.export.image_tokenizers.vq import VQModel
from arforge.runner import Runner

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import the library themselves
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start, too: torch's threads wait for each other busily
os.environ["ARFORGE_KERNELS"] = "off"  # Python has them only where they were compiled; their own tests switch them on
settings.register_profile("arforge", deadline=None, database=None)
settings.load_profile("arforge")

LONGEST = (  # files that take more than half a minute, the longest first
    *("test_readme.py", "examples/test_fashion.py", "reliability/test_faults.py"),
    *("runner/cpp/test_tensorrt.py", "runner/cpp/test_tensorrt_safety.py", "engines/test_tensorrt_ids.py"),
    *("export/test_memory.py", "examples/test_emoji.py", "runner/cpp/test_hostile.py", "bench/test_gpu.py"),
    *("export/image_tokenizers/test_bands.py", "runner/cpp/test_tokens.py", "runner/cpp/test_adaptive.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process is left alone with it at the end."""
    place = {Path(__file__).parent / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _quiet_torch() -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch.__trace").propagate = False  # thousands of lines for each graph that is traced


@pytest.fixture(scope="session", autouse=True)
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of graphs that were traced in this session."""
    folder = kept_folder(tmp_path_factory) / "traced"
    with pytest.MonkeyPatch.context() as patch:
        trace_once(folder, patch)
        yield folder


@pytest.fixture
def programs_trace_once(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python programs that the test starts take those graphs, too."""
    monkeypatch.setenv("TRACED", str(traced))
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS), prepend=os.pathsep)


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG, seed=1)


@pytest.fixture(scope="session")
def grouped_weights() -> dict[str, Tensor]:
    return random_weights(GROUPED_CONFIG, seed=2)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """A LlamaGen checkpoint in the authors' layout."""
    return made_once(tmp_path_factory, "tiny.pt", lambda path: torch.save({"model": weights}, path))


@pytest.fixture(scope="session")
def tokenizer_model() -> VQModel:
    torch.manual_seed(3)
    model = VQModel(VQ_CONFIG).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


@pytest.fixture(scope="session")
def tokenizer_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: VQModel) -> Path:
    model = {"model": tokenizer_model.state_dict()}
    return made_once(tmp_path_factory, "tiny-vq.pt", lambda path: torch.save(model, path))


@pytest.fixture(scope="session")
def exported_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, tokenizer_checkpoint: Path) -> Path:
    """An 8x8 bundle with its tokenizer, not built. Tests must leave it as it is."""

    def make(path: Path) -> None:
        schedules = ("ntp", "zipar:4", "zipar:2")
        export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, tokenizer_checkpoint, path, schedules))

    return made_once(tmp_path_factory, "exported.bundle", make)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, exported_bundle: Path) -> Path:
    """The same, built for ONNX Runtime. Tests must leave it as it is."""

    def make(path: Path) -> None:
        shutil.copytree(exported_bundle, path)
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "tiny.bundle", make)


@pytest.fixture(scope="session")
def bf16_tokenizer_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, tokenizer_model: VQModel) -> Path:
    """The same with an image tokenizer of bf16. Tests must leave it as it is."""

    def make(path: Path) -> None:
        state = {name: tensor.bfloat16() for name, tensor in tokenizer_model.state_dict().items()}
        torch.save({"model": state}, path.with_name("bf16-vq.pt"))
        export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, path.with_name("bf16-vq.pt"), path, ("ntp", "zipar:4")))
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "bf16-vq.bundle", make)


@pytest.fixture(scope="session")
def noise_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The same model without a tokenizer, whose tokens are drawn by noise. Tests must leave it as it is."""

    def make(path: Path) -> None:
        sampler = replace(FAMILY.sampler(CONFIG), kind="noise")
        export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, None, path, ("ntp", "zipar:3"), sampler))
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "noise.bundle", make)


@pytest.fixture(scope="session")
def noise_runner(noise_bundle: Path) -> Iterator[Runner]:
    with Runner.open(noise_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def grouped_bundle(tmp_path_factory: pytest.TempPathFactory, grouped_weights: dict[str, Tensor]) -> Path:
    """A 4x6 bundle with grouped heads and no tokenizer, from a .safetensors checkpoint."""

    def make(path: Path) -> None:
        save_file(grouped_weights, path.with_name("grouped.safetensors"))
        export_bundle(ExportJob(FAMILY, GROUPED_CONFIG, path.with_name("grouped.safetensors"), None, path))
        onnxruntime.build(path)

    path = made_once(tmp_path_factory, "grouped.bundle", make)
    save_file(grouped_weights, path.with_name("grouped.safetensors"))  # tests compare with it
    return path


@pytest.fixture(scope="session")
def arpg_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_checkpoint: Path) -> Path:
    """A 4x6 bundle of random order with its tokenizer: images of 8x12."""

    def make(path: Path) -> None:
        torch.save(random_weights(ARPG_CONFIG, seed=5, family=arpg.FAMILY), path.with_name("tiny.pt"))
        export_bundle(ExportJob(arpg.FAMILY, ARPG_CONFIG, path.with_name("tiny.pt"), tokenizer_checkpoint, path))
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "arpg.bundle", make)


@pytest.fixture(scope="session")
def par_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An 8x8 bundle of 4 regions, without a tokenizer."""

    def make(path: Path) -> None:
        torch.save(random_weights(PAR_CONFIG, seed=4, family=par.FAMILY), path.with_name("tiny.pt"))
        export_bundle(ExportJob(par.FAMILY, PAR_CONFIG, path.with_name("tiny.pt"), None, path))
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "par.bundle", make)


@pytest.fixture(scope="session")
def text_weights() -> dict[str, Tensor]:
    return random_weights(TEXT_CONFIG, seed=6, family=llamagen_t2i.FAMILY)


@pytest.fixture(scope="session")
def text_bundle(
    tmp_path_factory: pytest.TempPathFactory, text_weights: dict[str, Tensor], tokenizer_checkpoint: Path
) -> Path:
    """An 8x8 bundle that takes features of captions, with its image tokenizer and without a text encoder."""

    def make(path: Path) -> None:
        torch.save({"model": text_weights}, path.with_name("tiny.pt"))
        schedules = ("ntp", "zipar:4")
        job = ExportJob(
            llamagen_t2i.FAMILY, TEXT_CONFIG, path.with_name("tiny.pt"), tokenizer_checkpoint, path, schedules
        )
        export_bundle(job)
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "text.bundle", make)


@pytest.fixture(scope="session")
def words_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_checkpoint: Path) -> Path:
    """An 8x8 bundle that takes prompts in words, with its image tokenizer and a text encoder of the T5 kind."""
    from tiny_text import SLOTS, WIDTH, random_t5, save_folder  # transformers takes long to import

    def make(path: Path) -> None:
        config = llamagen_t2i.LlamaGenTextConfig(**{**vars(TEXT_CONFIG), "caption_dim": WIDTH, "caption_slots": SLOTS})
        weights, folder = path.with_name("model.pt"), path.with_name("t5")
        torch.save({"model": random_weights(config, seed=8, family=llamagen_t2i.FAMILY)}, weights)
        folder.mkdir()
        save_folder(folder, random_t5())
        schedules = ("ntp", "zipar:4")
        family = llamagen_t2i.FAMILY
        export_bundle(ExportJob(family, config, weights, tokenizer_checkpoint, path, schedules, text_encoder=folder))
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "words.bundle", make)


@pytest.fixture(scope="session")
def ids_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_checkpoint: Path) -> Path:
    """An 8x8 bundle that reads ids of prompts, with positions in sequence and a token at the end of rows."""
    from tiny_ids import save_bundle  # so does tokenizers

    return made_once(tmp_path_factory, "ids.bundle", lambda path: save_bundle(path, tokenizer_checkpoint))


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    """The 8x8 bundle, to be changed."""
    return Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))


@pytest.fixture
def drawing_bundle(bundle_copy: Path) -> Path:
    """The 8x8 bundle as one of VisionVQ, exported without its encoder."""
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["image_tokenizer"]["kind"] = "vision-vq"
    (encoder,) = (graph for graph in manifest["graphs"] if graph["name"] == "encoder")
    manifest["graphs"].remove(encoder)
    del manifest["files"][encoder["path"]]
    (bundle_copy / encoder["path"]).unlink()
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    return bundle_copy


@pytest.fixture(scope="session")
def runner(bundle: Path) -> Iterator[Runner]:
    with Runner.open(bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def grouped_runner(grouped_bundle: Path) -> Iterator[Runner]:
    with Runner.open(grouped_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def par_runner(par_bundle: Path) -> Iterator[Runner]:
    with Runner.open(par_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def arpg_runner(arpg_bundle: Path) -> Iterator[Runner]:
    with Runner.open(arpg_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def text_runner(text_bundle: Path) -> Iterator[Runner]:
    with Runner.open(text_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def ids_runner(ids_bundle: Path) -> Iterator[Runner]:
    with Runner.open(ids_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def decoder(weights: dict[str, Tensor]) -> Decoder:
    """The independent reference of the 8x8 bundle."""
    return Decoder(weights, heads=CONFIG.n_head, grid=CONFIG.grid)


@pytest.fixture(scope="session")
def grouped_decoder(grouped_weights: dict[str, Tensor]) -> Decoder:
    c = GROUPED_CONFIG
    return Decoder(grouped_weights, c.n_head, c.grid, kv_heads=2, eps=c.norm_eps, base=c.rope_base)
