"""Into a model's width, and out of it to one vector per protein."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.batch import Tokens
from pretrain.layers import flops
from pretrain.layers.transformer import Mark, sinusoid


class Projection(nn.Module):
    """Frozen features [N, source] → rows [N, width]: a linear map, plus the position, plus the modality's mark."""

    def __init__(self, source: int, width: int):
        super().__init__()
        self.width = width
        self.linear = nn.Linear(source, width)
        self.mark = Mark(width)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        rows = self.linear(values.to(self.linear.weight.dtype))
        return self.mark(rows + sinusoid(positions, self.width).to(rows.dtype))

    def flops(self, rows: Tensor) -> int:
        return flops.linear(self.linear, rows)


class Temperature(nn.Module):
    """A positive scalar, learned as its logarithm."""

    def __init__(self, initial: float):
        super().__init__()
        self.log = nn.Parameter(torch.full((1,), math.log(initial)))

    def forward(self) -> Tensor:
        return self.log.exp()


def mean(parts: Sequence[Tokens]) -> Tensor:
    """float32 [B, D]: the mean over all of a protein's tokens in `parts`; 0 for one that has none."""
    proteins, width = len(parts[0].offsets) - 1, parts[0].values.shape[1]
    total = parts[0].values.new_zeros(proteins, width, dtype=torch.float32)
    for part in parts:
        total = total.index_add(0, part.owners, part.values.float())
    return total / torch.stack([part.lengths for part in parts]).sum(0).clamp(min=1).unsqueeze(1)
