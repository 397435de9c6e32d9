"""InfoNCE over a whole step, in parts that add up whatever the ranks and micro-batches the step is cut into.

Every part compares all rows of the step. It owns some of them: those are live, the others are constants. Its value is
the own rows' share of the loss, and its gradient with respect to the own rows is the whole loss's, which includes their
role as negatives of the others. So values and gradients of the parts sum to those of the uncut loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pretrain.distributed import gather_rows
from pretrain.sample import Modality

BLOCK = {
    "cpu": (256, 1024),
    "cuda": (8192, 16384),
}  # rows and columns of scores at a time: 1 MiB stays in a CPU's cache


@dataclass(frozen=True, eq=False)
class Rows:
    """What is compared. embeddings: modality → [B, D], L2-normalised, 0 where absent. present: modality → bool [B]."""

    embeddings: Mapping[Modality, Tensor]
    present: Mapping[Modality, Tensor]


@dataclass(frozen=True, eq=False)
class Negatives:
    """Every row of a step at its slot, as constants. embeddings: modality → [S, D]. present: modality → bool [S]."""

    embeddings: Mapping[Modality, Tensor]
    present: Mapping[Modality, Tensor]

    def with_own(self, rows: Rows, slots: Tensor) -> tuple[Rows, Tensor]:
        """(the step's rows, those at `slots` [B] replaced by live ones, bool [S] which these are)."""
        own = torch.zeros(len(next(iter(self.present.values()))), dtype=torch.bool, device=slots.device)
        return Rows(
            {m: self.embeddings[m].to(live.dtype).index_copy(0, slots, live) for m, live in rows.embeddings.items()},
            {m: self.present[m].index_copy(0, slots, live) for m, live in rows.present.items()},
        ), own.index_fill(0, slots, True)


def gather(rows: Rows) -> tuple[Rows, Tensor]:
    """(every rank's rows, this rank's own live, bool [S] which these are). Collective: once per step on every rank."""
    table, start = gather_rows(_pack(rows))
    own = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    own[start : start + len(next(iter(rows.present.values())))] = True
    return _unpack(table, rows), own


def collect(parts: Sequence[Rows], slots: Sequence[Tensor]) -> Negatives:
    """The step's rows from this rank's micro-batches and every other rank's. Collective: once per step on every rank.

    slots: per part, int64 [B], the rows' places in the step. A slot that nobody filled (a damaged sample) is absent.
    """
    table, _ = gather_rows(torch.cat([_pack(part) for part in parts]).detach())
    places, _ = gather_rows(torch.cat(list(slots)))
    size = int(places.max()) + 1 if len(places) else 0
    step = _unpack(table.new_zeros(size, table.shape[1]).index_copy(0, places, table), parts[0])
    return Negatives(step.embeddings, step.present)


def info_nce(left_SD: Tensor, right_SD: Tensor, both: Tensor, own: Tensor, temperature: Tensor) -> Tensor:
    """The own rows' part of the symmetric InfoNCE, −½ Σᵢ [log softmaxⱼ(lᵢ·rⱼ/t)ᵢ + log softmaxⱼ(rᵢ·lⱼ/t)ᵢ]: a float32.

    left_SD, right_SD: L2-normalised rows of the step. both: bool [S]; rows lacking a side are in neither numerator nor
    denominator, and get no gradient. own: bool [S], the live rows; the others get a gradient of 0. temperature: scalar;
    its gradient is that of the own rows' part, because the other parts bring theirs. With fewer than two rows having
    both the loss is 0. Memory is that of a few tables of [S, D] and one block, never [S, S].
    """
    return _InfoNCE.apply(left_SD, right_SD, both, own, temperature)  # type: ignore[return-value]  # untyped in torch


class _InfoNCE(Function):
    """In blocks, in two passes: log-sum-exp of every row and column, then, in the backward pass, the gradients.

    With s = l·r/t, and P and Q the softmax of s over rows and over columns, the gradient for lᵢ is
    (½ Σⱼ (Pᵢⱼ + Qᵢⱼ) rⱼ − rᵢ) / t; it needs Q's normaliser of every column, but P + Q itself for own rows and columns
    only. So rows are sorted, own ones first, and what is not own on either side is left out of the second pass.
    """

    @staticmethod
    def forward(ctx: Any, left_SD: Tensor, right_SD: Tensor, both: Tensor, own: Tensor, temperature: Tensor) -> Tensor:
        with torch.autocast(left_SD.device.type, enabled=False):
            order, live = _own_first(both, own)
            left, right, inverse = _taken(left_SD, order, live), _taken(right_SD, order, live), 1 / temperature.float()
            by_row, by_column = _normalisers(left, right, inverse)
            alike = torch.einsum("nd,nd->n", left[:live], right[:live]) * inverse
            ctx.save_for_backward(left_SD, right_SD, both, own, temperature, by_row, by_column)
            return ((by_row[:live] + by_column[:live]) / 2 - alike).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # one output
        left_SD, right_SD, both, own, temperature, by_row, by_column = ctx.saved_tensors
        with torch.autocast(left_SD.device.type, enabled=False):
            order, live = _own_first(both, own)
            left, right, inverse = _taken(left_SD, order, live), _taken(right_SD, order, live), 1 / temperature.float()
            left_grad, right_grad, heat = _gradients(left, right, inverse, by_row, by_column, live)
            del left, right
            heat = (heat * upstream * inverse).to(temperature.dtype)
            return (
                _put_back(left_grad.mul_(upstream), left_SD, order),
                _put_back(right_grad.mul_(upstream), right_SD, order),
                None,
                None,
                heat,
            )


def _own_first(both: Tensor, own: Tensor) -> tuple[Tensor, int]:
    """(the places of the rows that have both sides, own ones first, how many are own); none for a row that is alone."""
    mine = (both & own).nonzero().squeeze(1)
    order = torch.cat([mine, (both & ~own).nonzero().squeeze(1)])
    return (order, len(mine)) if len(order) > 1 else (order[:0], 0)


def _taken(table: Tensor, order: Tensor, live: int) -> Tensor:
    """The table's rows in that order as float32; the table itself where all of it is own."""
    return (table if live == len(table) else table[order]).float()


def _put_back(grad: Tensor, table: Tensor, order: Tensor) -> Tensor:
    """`_taken`'s inverse for the first rows in that order; 0 for the others."""
    grad = grad.to(table.dtype)
    return grad if len(grad) == len(table) else torch.zeros_like(table).index_copy_(0, order[: len(grad)], grad)


def _blocks(count: int, live: int, size: int) -> Iterator[tuple[slice, bool]]:
    """(consecutive slices of range(count), at most `size` long, whether its rows are own): none has own and others."""
    for start, stop in ((0, live), (live, count)):
        yield from ((slice(at, min(at + size, stop)), stop == live) for at in range(start, stop, size))


def _normalisers(left: Tensor, right: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """log Σⱼ exp sᵢⱼ of each row i, and log Σᵢ exp sᵢⱼ of each column j: float32 [S'] each."""
    by_row, by_column = (left.new_full((len(left),), -torch.inf) for _ in range(2))
    high, wide = BLOCK["cuda" if left.is_cuda else "cpu"]
    for rows, _ in _blocks(len(left), 0, high):
        scaled = left[rows] * inverse
        for columns, _ in _blocks(len(left), 0, wide):
            scores = scaled @ right[columns].T
            by_row[rows] = torch.logaddexp(by_row[rows], scores.logsumexp(1))
            by_column[columns] = torch.logaddexp(by_column[columns], scores.logsumexp(0))
    return by_row, by_column


def _gradients(
    left: Tensor, right: Tensor, inverse: Tensor, by_row: Tensor, by_column: Tensor, live: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the whole loss for the first `live` rows of l and of r; and of their own part for t, times t: a scalar."""
    left_grad, right_grad = right[:live] * -inverse, left[:live] * -inverse
    heat = torch.einsum("nd,nd->", left_grad, left[:live]).double().neg()
    high, wide = BLOCK["cuda" if left.is_cuda else "cpu"]
    for rows, own_rows in _blocks(len(left), live, high):
        scaled = left[rows] * inverse
        for columns, own_columns in _blocks(len(left), live, wide):
            if not (own_rows or own_columns):
                continue
            scores = scaled @ right[columns].T
            forth, back = (scores - by_row[rows].unsqueeze(1)).exp_(), (scores - by_column[columns]).exp_()
            heat -= torch.einsum("nm,nm->", forth, scores) / 2 if own_rows else 0
            heat -= torch.einsum("nm,nm->", back, scores) / 2 if own_columns else 0
            weights = forth.add_(back).mul_(inverse / 2)
            if own_rows:
                left_grad[rows].addmm_(weights, right[columns])
            if own_columns:
                right_grad[columns].addmm_(weights.T, left[rows])
    return left_grad, right_grad, heat


def _pack(rows: Rows) -> Tensor:
    """One table [B, ΣD + M], presence as 0 and 1 in its last columns: one collective for all modalities."""
    flags = [flag.unsqueeze(1) for flag in rows.present.values()]
    values = list(rows.embeddings.values())
    return torch.cat([*values, *(flag.to(values[0].dtype) for flag in flags)], dim=1)


def _unpack(table: Tensor, like: Rows) -> Rows:
    widths = [rows.shape[1] for rows in like.embeddings.values()]
    *values, flags = table.split([*widths, len(like.present)], dim=1)
    return Rows(
        dict(zip(like.embeddings, values, strict=True)),
        {modality: flags[:, i] > 0.5 for i, modality in enumerate(like.present)},
    )
