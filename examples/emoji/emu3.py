"""Emu3 at small size, for training in torch: prompts and images are words of one vocabulary, in one line.

Its folder is laid out as the published one: `config.json`, `tokenizer.json`, weights by the authors' names. What an
image is fed is what the runner feeds it: the template of the family, codes row by row, a token behind each row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import captions
import torch
import torch.nn.functional as F
from model import PlainAttention
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from arforge.export.families.emu3 import FLAWS, NAMES, QUALITY, Emu3Config
from arforge.export.layers import Block, RMSNorm, Rotary, line_table

FOLDER = "emu3"
PIECES = 1200  # words and parts of words of prompts
CODES, GRID, POSITIONS = 1024, (10, 10), 192
SPECIAL = ("eol", "bos", "img", "boi", "eoi")  # behind the pieces, in the published order; codes follow
ORDINARY = 200  # times that the template's words are among the texts that pieces are made of: few pieces each
DROPOUT = 0.1  # of batches see the flaws in place of captions, as unconditional rows do
TOKEN_DROPOUT = 0.05
IGNORED = -100


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """One of captions and of the template's words, with the special words behind."""
    made = captions.train_tokenizer([*texts, *[QUALITY, FLAWS] * ORDINARY], PIECES)
    plain = json.loads(made.to_str())
    plain["post_processor"] = None  # the template brings what begins and ends a prompt
    # what has no piece is no special word, which the runner would refuse in a prompt
    plain["added_tokens"] = [word for word in plain["added_tokens"] if word["content"] != captions.UNKNOWN]
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.add_special_tokens([AddedToken(NAMES[name], normalized=False, special=True) for name in SPECIAL])
    return tokenizer


def config_of(tokenizer: Tokenizer) -> Emu3Config:
    ids = {name: tokenizer.token_to_id(NAMES[name]) for name in SPECIAL}
    first = ids["eoi"] + 1
    return Emu3Config(
        dim=256, n_layer=5, n_head=4, n_kv_head=2, grid=GRID, vocab_size=CODES, words=first + CODES, first_image=first,
        max_positions=POSITIONS, multiple_of=1, ffn_dim_multiplier=640.5 / 682, row_end=ids["eol"],
        first_word=ids["bos"], image_word=ids["img"], size_word=ids["boi"],
    )  # fmt: skip


class Emu3(nn.Module):
    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.words, config.dim)
        self.layers = nn.ModuleList(
            Block(config.dim, config.n_head, config.kv_heads, config.hidden, config.norm_eps)
            for _ in range(config.n_layer)
        )
        for layer in self.layers:
            layer.attention = PlainAttention(config.dim, config.n_head, config.kv_heads)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.words, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        table = line_table(POSITIONS, config.head_size, config.rope_base)
        for name, values in zip(("cosine", "sine"), table, strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward(self, ids: Tensor, begins: Tensor) -> Tensor:
        """Logits of codes [rows, width, codes] behind ids [rows, width], which begin at place `begins` [rows]."""
        width = ids.shape[1]
        place = torch.arange(width) - begins[:, None]
        rotary = Rotary(self.cosine, self.sine, place.clamp(min=0), interleaved=False)
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        seen = causal & (place >= 0)[:, None] | torch.eye(width, dtype=torch.bool)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x, _ = layer(x, rotary, seen[:, None], None, None)
        images = slice(self.config.first_image, self.config.first_image + self.config.vocab_size)
        return F.linear(self.norm(x), self.lm_head.weight[images])


class Sequences:
    """Lines of ids as the runner feeds them, and what they decide."""

    def __init__(self, config: Emu3Config, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        size = self.words(f"{config.grid[0]}*{config.grid[1]}")
        self.suffix = [config.size_word, *size, config.image_word]
        self.negative = [config.first_word, *self.words(FLAWS), *self.suffix]

    def words(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, text: str) -> list[int]:
        return [self.config.first_word, *self.words(text + QUALITY), *self.suffix]

    def image(self, codes: Tensor) -> Tensor:
        """What is fed of images, from their codes int64 [rows, cells]: all but the last, with the ends of rows."""
        columns = self.config.grid[1]
        lines = (codes + self.config.first_image).unflatten(1, (-1, columns))
        ended = F.pad(lines, (0, 1), value=self.config.row_end)
        return ended.flatten(1)[:, :-2]  # the last code and the end behind it are fed to nobody

    def targets(self, codes: Tensor, prompt: int) -> Tensor:
        """The code that each place decides, IGNORED where it decides none: [rows, prompt + fed]."""
        columns = self.config.grid[1]
        lines = F.pad(codes.unflatten(1, (-1, columns)), (0, 1), value=IGNORED)
        return F.pad(lines.flatten(1)[:, :-1], (prompt - 1, 0), value=IGNORED)


def batch_loss(
    model: Emu3,
    lines: Sequences,
    codes: Tensor,
    prompts: Sequence[Sequence[Sequence[int]]],
    chosen: Tensor,
    blind: float,
) -> Tensor:
    """Mean cross-entropy, in nats a code, behind one of each picture's prompts; of some batches behind none."""
    of_each = [prompts[picture] for picture in chosen.tolist()]
    asked = [some[int(torch.randint(len(some), ()))] for some in of_each]
    if torch.rand(()) < DROPOUT:
        asked = [lines.negative] * len(chosen)
    longest = max(map(len, asked))
    padded = torch.tensor([[0] * (longest - len(one)) + list(one) for one in asked])
    begins = torch.tensor([longest - len(one) for one in asked])
    wanted = codes[chosen]
    noise = torch.randint(lines.config.vocab_size, wanted.shape)
    share = torch.where(torch.rand(len(chosen), 1) < blind, torch.rand(len(chosen), 1), TOKEN_DROPOUT)
    given = torch.where(torch.rand(wanted.shape) < share, noise, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.cat([padded, lines.image(given)], dim=1), begins)
    targets = lines.targets(wanted, longest)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def description(config: Emu3Config) -> dict[str, object]:
    """The `config.json` of the published layout."""
    return {
        "architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "hidden_act": "silu",
        "hidden_size": config.dim, "intermediate_size": config.hidden, "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head, "num_key_value_heads": config.kv_heads, "vocab_size": config.words,
        "max_position_embeddings": config.max_positions, "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base, "image_area": (8 * config.grid[0]) * (8 * config.grid[1]),
        "bos_token_id": config.first_word, "img_token_id": config.image_word, "boi_token_id": config.size_word,
        "eoi_token_id": config.first_image - 1, "eol_token_id": config.row_end, "torch_dtype": "float16",
    }  # fmt: skip


def save_folder(model: Emu3, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model by the authors' names, as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in published(model.state_dict(), model.config).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(description(model.config), indent=1) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))


def load_folder(folder: Path) -> tuple[Emu3, Tokenizer]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Emu3(config_of(tokenizer))
    kept = load_file(folder / "model.safetensors")
    own = {}
    for name, tensor in model.state_dict().items():
        parts = [kept[part].float() for part in names_of(name)]
        own[name] = torch.cat(parts).reshape(tensor.shape)
    model.load_state_dict(own)
    return model, tokenizer


INSIDE = {
    "attention.wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.wo": ("self_attn.o_proj",),
    "feed_forward.w1": ("mlp.gate_proj",),
    "feed_forward.w3": ("mlp.up_proj",),
    "feed_forward.w2": ("mlp.down_proj",),
    "attention_norm": ("input_layernorm",),
    "ffn_norm": ("post_attention_layernorm",),
}


def names_of(name: str) -> list[str]:
    """The published names of a parameter's parts."""
    if name == "lm_head.weight":
        return [name]
    for own, parts in INSIDE.items():
        if f".{own}." in name:
            return ["model." + name.replace(own, part) for part in parts]
    return [f"model.{name}"]


def published(state: dict[str, Tensor], config: Emu3Config) -> dict[str, Tensor]:
    """The parameters by the authors' names."""
    widths = [config.n_head * config.head_size, *[config.kv_heads * config.head_size] * 2]
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = names_of(name)
        result |= zip(names, tensor.split(widths) if len(names) > 1 else [tensor], strict=True)
    return result
