"""What frozen embeddings know: a small network over them, trained for a task, and nothing of the model beneath.

Published tables often fine-tune the encoders (GearNet, ProtST). A probe tells models apart by what they hold, takes
seconds, and cannot make up for what they lack. It stops at the validation split's best epoch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pretrain.config import Config
from pretrain.evaluation.metrics import aupr_micro, fmax_torchdrug

RARE = 1e-4  # no label's share is taken for less, nor for more than 1 less it
LEAST = 1e-6  # of a column's spread: below it, the column is constant and says nothing


class ProbeConfig(Config):
    """hidden: width of the one hidden layer, 0 for a linear probe. patience: epochs without a better validation."""

    hidden: int = Field(default=256, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    batch: int = Field(default=128, ge=1)
    epochs: int = Field(default=200, ge=1)
    patience: int = Field(default=50, ge=1)  # hundreds of rare labels (EC) show nothing in a first dozen epochs


@dataclass(frozen=True, eq=False)
class Labelled:
    """embeddings: float32 [N, D], one row per protein. labels: bool [N, K]."""

    embeddings: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or self.labels.ndim != 2 or len(self.embeddings) != len(self.labels):
            raise ValueError(
                f"a probe needs embeddings [N, D] and labels [N, K]; got {(*self.embeddings.shape,)} and "
                f"{(*self.labels.shape,)}"
            )
        if not len(self.embeddings) or not bool(self.embeddings.isfinite().all()):
            raise ValueError("a probe needs at least one protein, and embeddings that are finite")


@dataclass(frozen=True, eq=False)
class Probe:
    """scores: float32 [N, K], probabilities of the test proteins. fmax, aupr: of them (`pretrain.evaluation.metrics`).

    valid_fmax: at `epoch`, which was chosen by it; the test proteins chose nothing.
    """

    scores: Tensor
    fmax: float
    aupr: float
    valid_fmax: float
    epoch: int


def probe(train: Labelled, valid: Labelled, test: Labelled, config: ProbeConfig | None = None, seed: int = 0) -> Probe:
    """Train on `train`, stop by `valid`, score `test`; the same for the same seed. Columns are brought to mean 0 and
    variance 1 over `train`. Raises ValueError for splits of different widths or labels."""
    config = config or ProbeConfig()
    shapes = {(part.embeddings.shape[1], part.labels.shape[1]) for part in (train, valid, test)}
    if len(shapes) > 1:
        raise ValueError(f"train, valid and test must have the same width and labels; got {sorted(shapes)}")
    (width, labels), mean, spread = shapes.pop(), train.embeddings.mean(0), train.embeddings.std(0, correction=0)
    scale = torch.where(spread > LEAST, 1 / spread.clamp(min=LEAST), torch.zeros_like(spread))
    inputs = {name: (part.embeddings - mean) * scale for name, part in (("train", train), ("valid", valid))}
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(width, labels, config)
        share = train.labels.float().mean(0).clamp(RARE, 1 - RARE)
        last: Any = network[-1]
        last.bias.data.copy_(share.logit())  # it begins with how common each label is, not by finding that out
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        best, chosen, state = -1.0, 0, network.state_dict()
        for epoch in range(config.epochs):
            _epoch(network, optimizer, inputs["train"], train.labels, config.batch, draw)
            score = fmax_torchdrug(_scores(network, inputs["valid"]), valid.labels)
            if score > best:
                best, chosen, state = score, epoch + 1, {k: v.clone() for k, v in network.state_dict().items()}
            if epoch + 1 - chosen >= config.patience:
                break
    network.load_state_dict(state)
    scores = _scores(network, (test.embeddings - mean) * scale)
    return Probe(scores, fmax_torchdrug(scores, test.labels), aupr_micro(scores, test.labels), best, chosen)


def _network(width: int, labels: int, config: ProbeConfig) -> nn.Sequential:
    if not config.hidden:
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, labels))
    inner = nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Dropout(config.dropout))
    return nn.Sequential(*inner, nn.Linear(config.hidden, labels))


def _epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor, labels: Tensor, size: int, draw: torch.Generator
) -> None:
    network.train()
    for chosen in torch.randperm(len(rows), generator=draw).split(size):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(network(rows[chosen]), labels[chosen].float()).backward()
        optimizer.step()


@torch.no_grad()
def _scores(network: nn.Module, rows: Tensor) -> Tensor:
    return network.eval()(rows).sigmoid()
