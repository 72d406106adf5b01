"""The text-to-image demo: captions, the text encoder, the model, and its training script on made-up pictures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.runner import Runner

pytest.importorskip("tokenizers")

EMOJI = Path(__file__).parent.parent.parent / "examples/emoji"
CHECKPOINTS = EMOJI / "checkpoints"
COLOURS = {"RED": (220, 30, 30), "GREEN": (30, 160, 60), "BLUE": (40, 60, 220), "BLACK": (0, 0, 0)}
SHAPES = ("SQUARE", "DISC")


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's folder on the path; its modules' names are the other demo's too, so they are forgotten afterwards."""
    before = dict(sys.modules)
    for name in [path.stem for path in EMOJI.glob("*.py")]:
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(str(EMOJI))
    yield
    for name in [path.stem for path in EMOJI.glob("*.py")]:
        sys.modules.pop(name, None)
        if name in before:
            sys.modules[name] = before[name]


def write_package(work: Path) -> None:
    """An archive as npm's, of coloured squares and discs."""
    import data

    entries, files = [], {}
    for place, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        corner = (16, 16) if shape == "SQUARE" else (4, 4)
        image.paste((*COLOURS[colour], 255), (*corner, 48, 48))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files[f"package/img/google/64/{place}.png"] = buffer.getvalue()
        entries.append(
            {
                "unified": str(place),
                "name": f"{colour} {shape}",
                "short_names": [f"{shape}_of_{colour}".lower()],
                "category": "Symbols",
                "subcategory": f"geometric-{shape}".lower(),
                "image": f"{place}.png",
                "sort_order": place,
                "has_img_google": True,
            }
        )
    files["package/emoji.json"] = json.dumps(entries).encode()
    work.mkdir(parents=True)
    with tarfile.open(work / data.ARCHIVE, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def flags(*countries: str) -> list[Any]:
    import data

    return [data.Emoji("", f"{c} Flag", (f"flag-{c[:2].lower()}",), "Flags", "country-flag") for c in countries]


def test_pictures_stand_on_white(tmp_path: Path) -> None:
    import data

    write_package(tmp_path / "work")
    emoji, pictures = data.load(tmp_path / "work")
    assert [one.name for one in emoji[:3]] == ["RED SQUARE", "RED DISC", "GREEN SQUARE"]
    assert pictures.shape == (8, data.SIDE, data.SIDE, 3)
    assert (pictures[:, -1, -1] == 255).all()
    assert tuple(pictures[4, data.SIDE // 2, data.SIDE // 2]) == COLOURS["BLUE"]


def test_held_out_wordings_are_never_trained_on() -> None:
    import captions
    import data

    emoji = [
        *flags("France", "Peru", "Chad", "Japan"),
        data.Emoji("", "FACE WITH TEARS OF JOY", ("joy",), "Smileys & Emotion", "face-smiling"),
        data.Emoji("", "CAT FACE", ("cat",), "Animals & Nature", "animal-mammal"),
        data.Emoji("", "CAT", ("cat2",), "Animals & Nature", "animal-mammal"),
    ]
    train, test = captions.split(emoji, held_out=100)
    assert len(test) == 100
    assert not {w.text for w in train} & {w.text for w in test}
    assert {w.emoji for w in train} == set(range(len(emoji)))
    assert captions.split(emoji, held_out=100) == (train, test)
    assert ("flag of peru", 1) in {(w.text, w.emoji) for w in train}
    # a name goes before another emoji's short name
    assert {w.emoji for w in train + test if w.text in ("cat", "a cat", "cat drawing")} == {6}
    unseen = {captions.fill(t, "joy", emoji[4]) for t in captions.UNSEEN_TEMPLATES}
    assert not unseen & {w.text for w in train}


def test_text_tokenizer_ends_and_lowers() -> None:
    import captions

    train, _ = captions.split(flags("France", "Peru", "Chad", "Japan"), held_out=10)
    tokenizer = captions.train_tokenizer([w.text for w in train], size=60)
    low, high, long = captions.token_ids(tokenizer, ["flag of peru", "Flag of PERU", "flag of peru " * 20], longest=12)
    assert low == high
    assert low[-1] == long[-1] == 1
    assert low.count(1) == 1
    assert len(long) == 12
    assert [tokenizer.token_to_id(name) for name in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]


def tiny() -> Any:
    import model
    import t5

    from arforge.export.families.llamagen import LlamaGenConfig

    torch.manual_seed(0)
    text = t5.T5Config(vocab_size=30, d_model=24, d_kv=8, num_heads=2, d_ff=32, num_layers=2)
    image = LlamaGenConfig(dim=32, n_layer=2, n_head=2, grid=(3, 4), vocab_size=20, num_classes=0, multiple_of=32)
    return model.Generator(text, image).eval()


def test_text_encoder_is_transformers_t5(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import model
    from safetensors.torch import save_file

    ours = tiny().text
    (tmp_path / "config.json").write_text(json.dumps(ours.config.as_json()))
    save_file(ours.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
    ids, mask = model.pad_left([[3, 4, 5, 1], list(range(2, 30)) * 6])
    with torch.no_grad():
        found = ours(ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(found[mask], expected[mask], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_draws_what_each_caption_draws_alone(guidance: float) -> None:
    generator = tiny()
    ids = [[5, 1], [7, 8, 9, 10, 1], [11, 12, 1]]
    together = generator.generate(ids, guidance, seeds=[3, 4, 5])
    alone = torch.cat([generator.generate([row], guidance, [3 + i]) for i, row in enumerate(ids)])
    assert together.shape == (3, 12)
    assert (together == alone).all()
    assert len(together.unique()) > 5


def test_training_pass_gives_the_logits_of_sampling() -> None:
    """The likeliest tokens, drawn step by step through caches, are those of one pass over them."""
    import model

    generator = tiny()
    ids, mask = model.pad_left([[5, 6, 1], [7, 1]])
    with torch.no_grad():
        features = generator.text(ids, mask)
        draws = [torch.Generator().manual_seed(0) for _ in ids]
        tokens = generator.image.sample(features, mask, 1.0, draws, top_k=1)
        logits = generator.image(features, mask, tokens[:, :-1])
    assert (logits.argmax(-1) == tokens).all()


def test_a_dropped_caption_leaves_its_length_alone() -> None:
    generator = tiny()
    tokens = torch.arange(11)[None]
    dropped = torch.tensor([True])

    def logits(*ids: int) -> Any:
        with torch.no_grad():
            return generator(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), tokens, dropped)

    assert torch.equal(logits(3, 4, 1), logits(9, 8, 1))
    assert not torch.allclose(logits(3, 4, 1), logits(4, 1), atol=1e-5)


def test_training_script_makes_checkpoints_and_goes_on(tmp_path: Path) -> None:
    work, made = tmp_path / "work", tmp_path / "checkpoints"
    write_package(work)

    def train(*arguments: object) -> str:
        places = ("--work", work, "--checkpoints", made, "--batch", 2)
        command = [sys.executable, EMOJI / "train.py", *arguments, *places]
        return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout

    steps = ("--decoder-steps", 2, "--text-steps", 2, "--model-steps", 2, "--emu3-steps", 2)
    assert train("all", *steps).count("model 0/2 loss") == 2
    for stage, file in (("model", "llamagen-t2i.safetensors"), ("emu3", "emu3/model.safetensors")):
        first = (made / file).read_bytes()
        train(stage, "--start", made, f"--{stage}-steps", 1)
        assert (made / file).read_bytes() != first
    sheet = tmp_path / "sheet.png"
    evaluate = [sys.executable, EMOJI / "evaluate.py", "--samples", 6, "--search", 2, "--sheet", sheet, "--write"]
    command = [str(word) for word in (*evaluate, "--work", work, "--checkpoints", made)]
    subprocess.run(command, check=True, capture_output=True)
    facts = json.loads((made / "llamagen-t2i.figures.json").read_text())
    assert facts["samples"] == 6
    assert all(0 <= share["emoji"] <= share["group"] <= 1 for share in facts["figures"].values())
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


def test_script_says_where_the_pictures_come_from(tmp_path: Path) -> None:
    command = [sys.executable, str(EMOJI / "train.py"), "model", "--work", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode != 0
    assert "npm pack emoji-datasource-google" in done.stderr


def test_score_is_by_the_nearest_picture() -> None:
    import evaluate

    real = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 200)])
    emoji = [*flags("France", "Peru"), *flags("Chad")]
    emoji[2] = type(emoji[2])("", "CAT", (), "", "animal-mammal")
    made = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (20, 140, 160)])
    assert evaluate.score(made, [0, 0, 0], real, emoji) == evaluate.Score(emoji=1 / 3, group=2 / 3)


def test_shipped_weights_are_small_whole_and_match() -> None:
    import weights

    files = list(CHECKPOINTS.rglob("*.safetensors"))
    own = [file for file in (CHECKPOINTS / "emu3").iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in own) < 10e6
    assert sum(file.stat().st_size for file in CHECKPOINTS.rglob("*") if file.is_file() and file not in own) < 20e6
    for file in files:
        assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(file).values())
    generator, tokenizer = weights.load_generator(CHECKPOINTS), weights.load_tokenizer(CHECKPOINTS)
    assert generator.image.config.vocab_size == tokenizer.quantize.embedding.num_embeddings
    assert weights.text_tokenizer(CHECKPOINTS).get_vocab_size() == generator.text.config.vocab_size


def test_kept_figures_say_that_captions_work() -> None:
    facts = json.loads((CHECKPOINTS / "llamagen-t2i.figures.json").read_text())
    assert facts["samples"] == 1000
    best = facts["figures"][f"ntp, guidance {facts['best guidance']:g}, 1000 samples"]
    assert best["emoji"] >= 0.5
    assert best["group"] >= best["emoji"]


def test_emu3_is_trained_on_what_the_runner_feeds(tmp_path: Path) -> None:
    """The shipped folder, exported as a published one: greedy tokens are those of the training pass, cell by cell."""
    import emu3

    output, prompts = tmp_path / "emu3.bundle", ["a red heart", "the flag of japan"]
    images = ("--image-tokenizer", CHECKPOINTS / "tokenizer.safetensors")
    arguments = ("export", CHECKPOINTS / "emu3", "--grid", "10x10", "--precision", "fp32", *images, "--output", output)
    done = CliRunner().invoke(main, [str(word) for word in arguments])
    assert done.exit_code == 0, done.output
    onnxruntime.build(output)
    with Runner.open(output, threads=1) as runner:
        assert runner.generate(prompts=["a red ♥; <eos>"], schedule="zipar:3").tokens.shape == (1, 100)
        found = runner.generate(prompts=prompts, schedule="ntp", guidance=2.0, greedy=True, top_k=0)
        condition = runner.bundle.model.condition
    model, tokenizer = emu3.load_folder(CHECKPOINTS / "emu3")
    lines = emu3.Sequences(model.config, tokenizer)
    assert list(condition.negative) == lines.negative
    assert found.images.shape == (2, 40, 40, 3)
    for text, tokens in zip(prompts, found.tokens, strict=True):
        codes = torch.from_numpy(tokens)[None]
        guided = []
        for prompt in (lines.prompt(text), lines.negative):
            ids = torch.cat([torch.tensor([prompt]), lines.image(codes)], dim=1)
            decides = lines.targets(codes, len(prompt))[0] >= 0
            with torch.no_grad():
                guided.append(model(ids, torch.zeros(1, dtype=torch.int64))[0, decides])
        logits = guided[1] + 2 * (guided[0] - guided[1])
        assert torch.equal(logits.argmax(-1), codes[0])


def test_emu3_batches_see_no_padding_and_decide_every_cell_once() -> None:
    import emu3

    tokenizer = emu3.train_tokenizer(["a red square", "a blue disc", "10*10"] * 20)
    config = emu3.config_of(tokenizer)
    torch.manual_seed(0)
    model, lines = emu3.Emu3(config).eval(), emu3.Sequences(config, tokenizer)
    codes = torch.randint(config.vocab_size, (2, config.cells))
    targets = lines.targets(codes, prompt=7)
    assert targets.shape == (2, 6 + config.cells + config.grid[0] - 1)
    assert torch.equal(targets[targets >= 0].view(2, -1), codes)
    prompt, fed = lines.prompt("a red disc"), lines.image(codes[:1])
    assert fed[0, 10] == config.row_end
    whole = torch.tensor([prompt + fed[0].tolist()])
    padded = torch.tensor([[0] * 5 + whole[0].tolist()])
    with torch.no_grad():
        alone, beside = model(whole, torch.tensor([0])), model(padded, torch.tensor([5]))
    torch.testing.assert_close(beside[:, 5:], alone, atol=1e-5, rtol=1e-4)
