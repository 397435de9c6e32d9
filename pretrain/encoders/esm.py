"""ESM-2 (Lin et al. 2023) and ESM-1b (Rives et al. 2021) over ragged sequences: the published weights and arithmetic,
no padding. ESM-1b learns a vector for each position where ESM-2 turns queries and keys, and has one norm more.

Linear layers see all residues of the batch at once, attention is `pretrain.layers.attention`. BOS and EOS are put
around each sequence here and taken away again here. Logits equal fair-esm's to float32 rounding.

Shape legend: N residues, T = N plus BOS and EOS of every sequence present; W width; H heads; D head width.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from pretrain.batch import HIDDEN as HIDDEN
from pretrain.batch import Sequences, Tokens, lengths_of, offsets_of, owners_of
from pretrain.config import Config
from pretrain.encoders import esm_files, weights
from pretrain.encoders.esm_files import ALPHABET as ALPHABET
from pretrain.layers import flops
from pretrain.layers.attention import attention
from pretrain.layers.transformer import Recomputable, through

BOS, EOS, MASK = (ALPHABET.index(name) for name in ("<cls>", "<eos>", "<mask>"))
# In its training 15 % of the tokens were hidden, 80 % of those as zero vectors; with fewer hidden, all shrink to match.
SEEN = 1 - 0.15 * 0.8
WHAT = "sequence encoder (esm)"

_tokens = torch.full((256,), ALPHABET.index("X"))  # ASCII code → token; what the alphabet lacks is X
_tokens[HIDDEN] = MASK
for _token, _symbol in enumerate(ALPHABET):
    if len(_symbol) == 1:
        _tokens[ord(_symbol)] = _token


class EsmConfig(Config):
    """weights: a fair-esm `.pt` file, a transformers folder (config.json, *.safetensors), `package:…`, `hub:ORG/NAME`,
    or `random`.

    layers, width, heads: required for random weights, otherwise read from the weights (and checked where given).
    head, token_dropout: read from the weights as well. places, norm_before: too; what ESM-1b has and ESM-2 has not, a
    table of learned positions (1,024, BOS's and EOS's among them; 0 for none, positions are rotary then) and a norm
    before the first layer. max_length: residues, those beyond it are not seen; published models were trained on 1,022.
    tiers: depths whose rows the features are, side by side, the last after the final norm; 1 is that alone.
    """

    kind: Literal["esm"] = "esm"
    weights: str
    seed: int = 0
    layers: PositiveInt | None = None
    width: PositiveInt | None = None
    heads: PositiveInt | None = None
    max_length: PositiveInt = 1022
    head: bool = True
    token_dropout: bool = True
    places: NonNegativeInt = 0
    norm_before: bool = False
    tiers: PositiveInt = 1


@dataclass(frozen=True)
class Framed:
    """Where the T rows lie. inner: int64 [N], the rows that are residues. positions: int64 [T], 0 is BOS."""

    offsets: Tensor
    inner: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Hidden:
    """Residues between layers. hidden: [T, W], BOS and EOS included, whose rows are `framed`. turn: their rotation,
    if positions are rotary."""

    hidden: Tensor
    framed: Framed
    turn: tuple[Tensor, Tensor] | None

    @property
    def rows(self) -> Tensor:
        """[N, W], the residues'."""
        return self.hidden[self.framed.inner]

    def with_rows(self, rows: Tensor) -> "Hidden":
        return replace(self, hidden=self.hidden.index_copy(0, self.framed.inner, rows.to(self.hidden.dtype)))


class Esm(nn.Module):
    """Frozen or trainable; the state dict names are ours. `begin`, `run` and `finish` are what `forward` does, for
    models that come in between."""

    def __init__(self, config: EsmConfig):
        super().__init__()
        if config.layers is None or config.width is None or config.heads is None:
            raise ValueError(f"{WHAT}: random weights need `layers`, `width` and `heads` (ESM-2 650M has 33, 1280, 20)")
        if config.width % (2 * config.heads):
            raise ValueError(f"{WHAT}: width {config.width} over {config.heads} heads must be an even number per head")
        if config.places and config.max_length + 2 > config.places:
            raise ValueError(
                f"{WHAT}: max_length = {config.max_length}, BOS and EOS exceed the {config.places} positions that "
                f"{config.weights} has; {config.places - 2} are the most"
            )
        if config.layers % config.tiers:
            raise ValueError(f"{WHAT}: tiers = {config.tiers} must divide its {config.layers} layers")
        self.config = config
        self.depth = config.tiers
        self.width = config.tiers * config.width
        self.between = config.width  # of rows between layers
        self.head_width = config.width // config.heads
        self.embed = Tied(len(ALPHABET), config.width)
        self.places = nn.Embedding(config.places, config.width) if config.places else None
        self.norm_before = nn.LayerNorm(config.width) if config.norm_before else None
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = Head(config.width) if config.head else None

    @classmethod
    def build(cls, config: EsmConfig) -> Self:
        if config.weights == weights.RANDOM:
            return weights.initialise(weights.empty(lambda: cls(config)), config.seed, WHAT)
        path = weights.locate(config.weights, WHAT)
        geometry, tensors = esm_files.read(path, WHAT)
        for name in ("layers", "width", "heads"):
            asked = getattr(config, name)
            if asked is not None and asked != geometry[name]:
                raise ValueError(f"{WHAT}: the configuration asks for {name} = {asked}, {path} has {geometry[name]}")
        complete = config.model_copy(update=geometry)
        return weights.fill(weights.empty(lambda: cls(complete)), tensors, path, WHAT)

    @classmethod
    def skeleton(cls, config: EsmConfig, folder: Path) -> Self:
        """Without values, for a state dict to fill. `config` is a built module's own."""
        return weights.empty(lambda: cls(config))

    def save_files(self, folder: Path) -> None:
        """Nothing: the completed configuration says it all."""

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features; of ESM-2 what it was before ESM-1b could be read."""
        one = self.config
        learned = {"places": one.places, "norm_before": one.norm_before}
        ours = {"heads": one.heads, "token_dropout": one.token_dropout, "max_length": one.max_length}
        return ours | (learned if any(learned.values()) else {}) | ({"tiers": one.tiers} if one.tiers > 1 else {})

    def forward(self, sequences: Sequences) -> Tokens:
        """Last hidden states after the final norm, one per residue; before them those of other tiers, each row with
        mean 0 and variance 1: between layers their scale is nobody's concern."""
        state, each, parts = self.begin(sequences), len(self.layers) // self.depth, []
        for tier in range(self.depth):
            state = self.run(state, range(tier * each, (tier + 1) * each))
            if tier < self.depth - 1:
                parts.append(functional.layer_norm(state.hidden[state.framed.inner], (self.between,)))
        values = torch.cat([*parts, self.finish(state)], 1)
        starts = sequences.offsets[:-1][owners_of(sequences.offsets)]
        positions = torch.arange(len(values), device=values.device) - starts
        return Tokens(values, sequences.offsets, positions)

    def flops(self, offsets: Tensor) -> int:
        """Forward over segments, the language-model head left out."""
        rows = lengths_of(framed(offsets).offsets)
        return sum(layer.flops(rows) for layer in self.layers if isinstance(layer, Layer))

    def logits(self, sequences: Sequences) -> Tensor:
        """[N, 33] over `ALPHABET`, of each residue, `HIDDEN` ones too. ValueError for weights without such a head."""
        if self.head is None:
            raise ValueError(f"{WHAT}: {self.config.weights} has no language-model head, so there are no logits")
        return self.head(self.finish(self.run(self.begin(sequences), range(len(self.layers)))), self.embed)

    def begin(self, sequences: Sequences) -> Hidden:
        lengths = lengths_of(sequences.offsets)
        longest = int(lengths.max()) if len(lengths) else 0
        assert longest <= self.config.max_length, f"collate left {longest} residues, {self.config.max_length} allowed"
        rows = framed(sequences.offsets)
        tokens = torch.full_like(rows.positions, EOS)
        tokens[rows.positions == 0] = BOS
        tokens[rows.inner] = tokens_of(sequences.letters)
        hidden = self.embed(tokens)
        if self.config.token_dropout:
            hidden = (hidden * _shown(tokens == MASK, rows.offsets)).to(hidden.dtype)
        turn = None if self.places is not None else _rotation(rows.positions, self.head_width, hidden.dtype)
        hidden = hidden if self.places is None else hidden + self.places(rows.positions)
        return Hidden(hidden if self.norm_before is None else self.norm_before(hidden), rows, turn)

    def run(self, state: Hidden, layers: range) -> Hidden:
        """Through these layers."""
        hidden = state.hidden
        for i in layers:
            hidden = through(self.layers[i], hidden, state.framed.offsets, state.turn)
        return replace(state, hidden=hidden)

    def finish(self, state: Hidden) -> Tensor:
        """[N, width], after the final norm."""
        return self.norm(state.hidden)[state.framed.inner]


class Layer(Recomputable):
    """x + Attention(norm x), then x + MLP(norm x); queries and keys turned by position, where it is not in x."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor, offsets: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        joined = self.query_key_value(self.attention_norm(hidden)).view(-1, 3, self.heads, self.head_width)
        query_key_T2HD, value_THD = joined[:, :2], joined[:, 2]
        query_THD, key_THD = (query_key_T2HD if turn is None else _rotate(query_key_T2HD, turn)).unbind(1)
        hidden = hidden + self.out(attention(query_THD, key_THD, value_THD, offsets, offsets).flatten(1))
        return hidden + self.down(functional.gelu(self.up(self.mlp_norm(hidden))))

    def flops(self, rows: Tensor) -> int:
        """Forward over segments of int64 lengths [B]."""
        linears = (self.query_key_value, self.out, self.up, self.down)
        return sum(flops.linear(each, rows) for each in linears) + flops.attended(rows, rows, self.out.in_features)


class Tied(nn.Embedding):
    """Tokens to rows; or rows to a score of every token, by the same matrix. ZeRO-3 has it in this `forward` alone."""

    def forward(self, input: Tensor, scores: bool = False) -> Tensor:
        return functional.linear(input, self.weight) if scores else super().forward(input)


class Head(nn.Module):
    """The masked-language-model head; its last matrix is the input embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.empty(len(ALPHABET)))

    def forward(self, hidden: Tensor, embed: Tied) -> Tensor:
        return embed(self.norm(functional.gelu(self.dense(hidden))), scores=True) + self.bias


def tokens_of(letters: Tensor) -> Tensor:
    """int64 [N], places in `ALPHABET`, of ASCII codes uint8 [N]; `HIDDEN` is the mask's."""
    return _tokens.to(letters.device)[letters.long()]


def framed(offsets: Tensor) -> Framed:
    """A row before and a row after every segment that has any; an absent one stays without rows."""
    lengths = lengths_of(offsets)
    extended = offsets_of(torch.where(lengths > 0, lengths + 2, 0))
    inner = torch.arange(int(offsets[-1]), device=offsets.device)
    inner = inner + (extended[:-1] - offsets[:-1] + 1)[owners_of(offsets)]
    positions = torch.arange(int(extended[-1]), device=offsets.device) - extended[:-1][owners_of(extended)]
    return Framed(extended, inner, positions)


def _shown(masked: Tensor, offsets: Tensor) -> Tensor:
    """float32 [T, 1]: 0 for masked tokens; the others as if as many of their sequence were masked as in training."""
    owners = owners_of(offsets)
    counts = torch.zeros(len(offsets) - 1, device=masked.device).index_add(0, owners, masked.float())
    share = counts / lengths_of(offsets).clamp(min=1)
    return ((SEEN / (1 - share))[owners] * ~masked).unsqueeze(1)


def _rotation(positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cosines, sines), each [T, 1, 1, D/2]: rotary embedding (Su et al. 2021) with base 10,000."""
    exponents = torch.arange(0, width, 2, device=positions.device).float() / width
    angles = positions.float().unsqueeze(1) * (1.0 / 10_000**exponents)
    angles = angles[:, None, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(rows: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn component i of the first half with component i of the second."""
    cosine, sine = turn
    first, second = rows.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
