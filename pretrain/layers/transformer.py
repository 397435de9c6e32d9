"""Pre-norm transformer blocks over ragged rows, and what they start from: positions and learned vectors.

Everything is rows [N, width] and offsets [B + 1]; zero rows are a normal input. Parameters are read only inside the
`forward` of the module that holds them, and every module returns a tensor of its own, never a view of a parameter:
ZeRO-3 gathers a module's parameters around its forward and frees them after it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pretrain.batch import offsets_of
from pretrain.layers import flops
from pretrain.layers.attention import attention, weights


class Transformer(nn.Module):
    """`depth` self-attention blocks and a last norm."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.blocks = nn.ModuleList(SelfBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        for block in self.blocks:
            rows = through(block, rows, offsets)
        return self.norm(rows)

    def looks(self, rows: Tensor, offsets: Tensor) -> list[list[Tensor]]:
        """Per block and segment, who attends to whom: [H, n, n], rows of sum 1."""
        found = []
        for block in self.blocks:
            normed = block.attention_norm(rows)  # type: ignore[operator]
            found.append(block.attention.looks(normed, normed, offsets, offsets))  # type: ignore[operator, union-attr]
            rows = block(rows, offsets)
        return found

    def flops(self, lengths: Tensor) -> int:
        """Forward over segments of int64 lengths [B]."""
        return sum(block.flops(lengths) for block in self.blocks if isinstance(block, SelfBlock))


class Recomputable(nn.Module):
    """A layer that `through` can run again in the backward pass, in place of keeping all that it computes."""

    recompute = False


class SelfBlock(Recomputable):
    """x + Attention(norm x), then x + MLP(norm x), within each segment."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        normed = self.attention_norm(rows)
        rows = rows + self.attention(normed, normed, offsets, offsets)
        return rows + self.mlp(self.mlp_norm(rows))

    def flops(self, lengths: Tensor) -> int:
        return self.attention.flops(lengths, lengths) + self.mlp.flops(lengths)


class CrossBlock(nn.Module):
    """As `SelfBlock`, but segment b of the rows reads segment b of a context, whose width may differ."""

    def __init__(self, width: int, heads: int, context_width: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context_width)
        self.attention = Attention(width, heads, context_width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, rows: Tensor, context: Tensor, offsets: Tensor, context_offsets: Tensor) -> Tensor:
        normed, context = self.attention_norm(rows), self.context_norm(context)
        rows = rows + self.attention(normed, context, offsets, context_offsets)
        return rows + self.mlp(self.mlp_norm(rows))

    def flops(self, lengths: Tensor, context_lengths: Tensor) -> int:
        return self.attention.flops(lengths, context_lengths) + self.mlp.flops(lengths)


class Attention(nn.Module):
    """Multi-head attention of rows [N, width] to a context [M, context_width]."""

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        assert width % heads == 0, f"width {width} is not a multiple of {heads} heads"
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.out = nn.Linear(width, width)

    def forward(self, rows: Tensor, context: Tensor, offsets: Tensor, context_offsets: Tensor) -> Tensor:
        query_NHD, key_MHD, value_MHD = map(self._by_head, (self.query(rows), self.key(context), self.value(context)))
        return self.out(attention(query_NHD, key_MHD, value_MHD, offsets, context_offsets).flatten(1))

    def looks(self, rows: Tensor, context: Tensor, offsets: Tensor, context_offsets: Tensor) -> list[Tensor]:
        """Per segment [H, n, m], how much each row reads of each of its context."""
        return weights(self._by_head(self.query(rows)), self._by_head(self.key(context)), offsets, context_offsets)

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, (self.heads, -1))

    def flops(self, queries: Tensor, keys: Tensor) -> int:
        there_and_back = flops.linear(self.query, queries) + flops.linear(self.out, queries)
        read = flops.linear(self.key, keys) + flops.linear(self.value, keys)
        return there_and_back + read + flops.attended(queries, keys, self.out.in_features)


class MLP(nn.Sequential):
    """Linear, GELU, Linear; `ratio` times wider inside."""

    def __init__(self, width: int, ratio: float = 4.0):
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def flops(self, rows: Tensor) -> int:
        return sum(flops.linear(each, rows) for each in self if isinstance(each, nn.Linear))


class Mark(nn.Module):
    """Adds one learned vector to every row: a modality's mark; on rows of zeros, a mask token or a global token."""

    def __init__(self, width: int):
        super().__init__()
        self.vector = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.vector, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        return rows + self.vector


def through(block: nn.Module, rows: Tensor, *given: Any) -> Tensor:
    """The block's rows; where `recompute` asks for it, it keeps its input only and runs again in the backward pass."""
    return _again(block, rows, *given) if block.recompute and torch.is_grad_enabled() else block(rows, *given)


def recompute(model: nn.Module) -> None:
    """Let self-attention blocks in `model`, ESM-2's layers too, keep their inputs only. ValueError without any."""
    blocks = [module for module in model.modules() if isinstance(module, Recomputable)]
    if not blocks:
        raise ValueError(
            "engine.activation_checkpointing: this model has no transformer blocks; other layers keep all that they "
            "compute; leave it out"
        )
    for block in blocks:
        block.recompute = True


def compiled(model: nn.Module) -> None:
    """Compile every block in `model`, in place, for any number of rows; ragged attention stays as it is. ValueError for
    a model that has none."""
    blocks = [module for module in model.modules() if isinstance(module, SelfBlock | CrossBlock)]
    if not blocks:
        raise ValueError("engine.compile: this model has no transformer blocks but its encoders'; leave it out")
    for block in blocks:
        block.compile(dynamic=True)


def _again(block: nn.Module, rows: Tensor, *given: Any) -> Tensor:
    """Recomputation stops at the block's last saved tensor, as it must for ZeRO-3: the last layer's parameters were
    gathered for its backward pass, and reaching its end again would free them too early."""
    with set_checkpoint_early_stop(True):
        found = checkpoint(block, rows, *given, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """float32 [N, width], the sines and then the cosines of int64 positions [N] at width/2 wavelengths, 2π to 10⁴·2π.

    Angles are taken in float64, so that positions of any magnitude stay apart (Vaswani et al. 2017, §3.5).
    """
    half = width // 2
    assert width == 2 * half, f"width {width} is odd"
    exponents = torch.arange(half, dtype=torch.float64, device=positions.device) / half
    angles = (positions.unsqueeze(1) * 10_000.0**-exponents).remainder(2 * torch.pi).float()
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def interleave(owners: list[Tensor], segments: int) -> tuple[Tensor, Tensor]:
    """The order that brings rows of several lists together by owner, and the offsets of the result.

    owners: per list, int64 [N_i], the segment of each row. Returns `order` int64 [Σ N_i] into the lists' concatenation
    (within a segment, list by list) and offsets int64 [segments + 1].
    """
    every = torch.cat(owners)
    return every.argsort(stable=True), offsets_of(torch.bincount(every, minlength=segments))
