"""BERT (Devlin et al. 2019) over ragged texts: the published weights, names and arithmetic, no padding.

RoBERTa (Liu et al. 2019) differs in where positions begin. Hidden states equal those of `transformers` to float32
rounding; the state dict has its names, so that weights need no map.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.encoders import weights
from pretrain.layers.attention import attention

# model type → whether positions begin after the padding token's number, as RoBERTa's do
KINDS = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}
ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


class Bert(nn.Module):
    """config: the `transformers` configuration. Raises ValueError, naming `origin`, for what this file is not."""

    def __init__(self, config: Any, origin: str, what: str):
        super().__init__()
        _check(config, origin, what)
        self.config = config
        self.first = config.pad_token_id + 1 if KINDS[config.model_type] else 0
        width, norm = config.hidden_size, partial(nn.LayerNorm, config.hidden_size, config.layer_norm_eps)
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width),
                "position_embeddings": nn.Embedding(config.max_position_embeddings, width),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, width),
                "LayerNorm": norm(),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})

    @property
    def room(self) -> int:
        """The longest text, CLS and SEP included."""
        return self.config.max_position_embeddings - self.first

    def forward(self, ids: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
        """[T, width], last hidden states. ids, positions: int64 [T], CLS and SEP included, CLS at position 0."""
        parts = self.embeddings
        rows = parts["word_embeddings"](ids) + parts["token_type_embeddings"](torch.zeros_like(ids))
        rows = parts["LayerNorm"](rows + parts["position_embeddings"](positions + self.first))
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]  # a ModuleList
            rows = layer(rows, offsets)
        return rows


class Layer(nn.Module):
    """norm(x + Attention(x)), then norm(x + MLP(x)); modules are nested as their published names are."""

    def __init__(self, config: Any):
        super().__init__()
        width, inner, self.heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        looked_up = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": looked_up, "output": _output(width, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _output(inner, config)

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        query_THD, key_THD, value_THD = (
            part(rows).unflatten(1, (self.heads, -1))
            for part in self.attention["self"].values()  # type: ignore[operator]  # a ModuleDict
        )
        attended = attention(query_THD, key_THD, value_THD, offsets, offsets).flatten(1)
        rows = _joined(self.attention["output"], attended, rows)
        return _joined(self.output, self.activation(self.intermediate["dense"](rows)), rows)


def read(folder: Path, what: str) -> dict[str, Tensor]:
    """The folder's weights by `Bert`'s names, without a task's head, the pooler and what is computed."""
    found = weights.read_folder(folder, what) if any(folder.glob("*.safetensors")) else _pickled(folder, what)
    tensors = {}
    for name, tensor in found.items():
        name = re.sub(r"^(bert|roberta)\.", "", name)
        name = re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))  # as the first files wrote norms
        if re.match(r"(embeddings|encoder)\.", name) and not name.endswith(("position_ids", "token_type_ids")):
            tensors[name] = tensor
    return tensors


def _pickled(folder: Path, what: str) -> dict[str, Tensor]:
    path = folder / weights.OLDER
    if not path.is_file():
        raise ValueError(f"{what}: {folder} has neither a .safetensors file nor {weights.OLDER}")
    return weights.read(path, what)


def _check(config: Any, origin: str, what: str) -> None:
    kind, activation = config.model_type, getattr(config, "hidden_act", None)
    if kind not in KINDS:
        raise ValueError(f"{what}: {origin} is of model type {kind!r}; supported are {', '.join(KINDS)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{what}: {origin} has hidden_act {activation!r}; supported are {', '.join(ACTIVATIONS)}")
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute" or getattr(config, "is_decoder", False):
        seen = "is a decoder" if positions == "absolute" else f"has {positions!r} positions"
        raise ValueError(f"{what}: {origin} {seen}; an encoder with absolute positions was expected")


def _output(width: int, config: Any) -> nn.ModuleDict:
    dense, norm = nn.Linear(width, config.hidden_size), nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
    return nn.ModuleDict({"dense": dense, "LayerNorm": norm})


def _joined(output: Any, values: Tensor, rows: Tensor) -> Tensor:
    return output["LayerNorm"](output["dense"](values) + rows)
