"""Into a model's width, and out of it to one vector per protein."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pretrain.batch import Tokens
from pretrain.layers import flops
from pretrain.layers.transformer import Mark, sinusoid
from pretrain.sample import Modality

COLDEST = 0.01  # as CLIP's: scores span no more than e^±100


def check_encoded(modalities: Collection[Modality], widths: Mapping[Modality, int]) -> None:
    """Raises ValueError where one of a model's modalities has no features. widths: of those that there are."""
    if missing := [m for m in modalities if m not in widths]:
        raise ValueError(
            f"the model has {', '.join(missing)} but encoders give only {', '.join(widths) or 'nothing'}: "
            "configure an encoder for each of `model.modalities`, or leave those out of it"
        )


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


class Head(nn.Sequential):
    """Two layers from rows [N, source], each brought to mean 0 and variance 1, to [N, width]."""

    def __init__(self, source: int, hidden: int, width: int):
        super().__init__(nn.LayerNorm(source), nn.Linear(source, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, input: Tensor) -> Tensor:
        """In the type of its weights; `on_sphere` gives rows of length 1."""
        return super().forward(input.to(next(self.parameters()).dtype))

    def flops(self, rows: Tensor, trained: bool = False) -> int:
        """Of a step; trained: whether the features need a gradient."""
        first, second = (flops.linear(each, rows) for each in self if isinstance(each, nn.Linear))
        return (flops.TRAINED if trained else flops.TRAINED - 1) * first + flops.TRAINED * second


def on_sphere(values: Tensor) -> Tensor:
    """float32 [N, D]: rows of length 1; a row of zeros stays one."""
    return normalize(values.float(), dim=1)


class Temperature(nn.Module):
    """A scalar above `COLDEST`, learned as the logarithm of its distance from it."""

    def __init__(self, initial: float):
        super().__init__()
        assert initial > COLDEST, f"a temperature of {initial} is not above {COLDEST}"
        self.log = nn.Parameter(torch.full((1,), math.log(initial - COLDEST)))

    def forward(self) -> Tensor:
        return COLDEST + self.log.exp()


def mean(parts: Sequence[Tokens]) -> Tensor:
    """float32 [B, D]: the mean over all of a protein's tokens in `parts`; 0 for one that has none."""
    proteins, width = len(parts[0].offsets) - 1, parts[0].values.shape[1]
    total = parts[0].values.new_zeros(proteins, width, dtype=torch.float32)
    for part in parts:
        total = total.index_add(0, part.owners, part.values.float())
    return total / torch.stack([part.lengths for part in parts]).sum(0).clamp(min=1).unsqueeze(1)
