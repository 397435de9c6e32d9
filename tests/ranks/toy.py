"""A model of two branches and proteins that have one, the other, or both: small enough to run at every ZeRO stage."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.batch import Features, Loss, Losses, Tokens, offsets_of
from pretrain.sample import Modality

WIDTHS = {Modality.SEQUENCE: 5, Modality.STRUCTURE: 7}
PROTEINS = [(3, 0), (2, 0), (0, 4), (0, 5)]  # (sequence, structure) rows; the second half lacks sequence altogether


class Toy(nn.Module):
    contrastive = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(w, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, w))
                for m, w in WIDTHS.items()
            }
        )
        self.register_buffer("scale", torch.ones(3))

    def counts(self, batch: Any) -> dict[str, int]:
        return {str(modality): len(batch.features[modality].values) for modality in WIDTHS}

    def forward(self, features: Features, batch: Any, negatives: Any = None, task: str = "losses") -> Losses:
        return {str(m): self._loss(m, features[m].values) for m in WIDTHS}

    def _loss(self, modality: Modality, values: Tensor) -> Loss:
        dtype = next(self.branches[modality].parameters()).dtype
        error = (self.branches[modality](values.to(dtype)).float() - values).pow(2).mean(-1)
        return Loss(error.sum(), len(values), 1.0 if modality is Modality.SEQUENCE else 0.5)


def batch(proteins: Sequence[int], step: int) -> Any:
    """A stand-in micro-batch of `PROTEINS[i]`, its rows drawn from (step, protein) wherever it landed."""
    draws = {i: torch.Generator().manual_seed(1000 * step + i) for i in proteins}
    features = {}
    for column, (modality, width) in enumerate(WIDTHS.items()):
        lengths = [PROTEINS[i][column] for i in proteins]
        rows = [torch.randn(n, width, generator=draws[i]) for i, n in zip(proteins, lengths, strict=True)]
        values = torch.cat([*rows, torch.zeros(0, width)])
        offsets = offsets_of(torch.tensor(lengths, dtype=torch.int64))
        features[modality] = Tokens(values, offsets, torch.arange(len(values)))
    return SimpleNamespace(features=features)


def encode(batch: Any) -> Features:
    return batch.features


def share(rank: int, world: int, accumulate: int, step: int) -> list[Any]:
    """This rank's micro-batches: consecutive proteins, so that on two ranks each lacks a modality altogether."""
    mine = range(len(PROTEINS) * rank // world, len(PROTEINS) * (rank + 1) // world)
    return [batch(mine[g::accumulate], step) for g in range(accumulate)]
