"""InfoNCE over a whole step, in parts that add up whatever the ranks and micro-batches the step is cut into.

Every part compares all rows of the step. It owns some of them: those are live, the others are constants. Its value is
the own rows' share of the loss, and its gradient with respect to the own rows is the whole loss's, which includes their
role as negatives of the others. So values and gradients of the parts sum to those of the uncut loss.

The work is shared as well. What a row scores against all its negatives (`Sums`) is found once a step, each rank going
through the rows that it owns; a part's backward pass then scores its own rows and columns once more.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from pretrain.distributed import add_logs, gather_rows
from pretrain.objectives.positives import groups, spread

BLOCK = {
    "cpu": (256, 1024),
    "cuda": (8192, 16384),
}  # rows and columns of scores at a time: 1 MiB stays in a CPU's cache
Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Rows:
    """What is compared. embeddings: name → [B, D], L2-normalised, 0 where absent. present: name → bool [B].

    A name is a modality's, or of anything else that a protein has one vector of, such as a view.
    pairs: which names are compared with each other. temperature: [1], or [P], one for each pair.
    codes: int64 [B, K]; in the pairs that are `grouped`, proteins with a code in common (0 is none) are positives of
    each other (`objectives.positives`). None where no pair is.
    proteins: int64 [B], equal for rows of one protein, which a step may hold more than once: it is no negative of
    itself in any pair. None: every row is another's.
    """

    embeddings: Mapping[Any, Tensor]
    present: Mapping[Any, Tensor]
    pairs: Sequence[Pair]
    temperature: Tensor
    codes: Tensor | None = None
    grouped: Collection[Pair] = ()
    proteins: Tensor | None = None

    def both(self, pair: Pair) -> Tensor:
        """bool [B]: the rows that have both sides of `pair`."""
        return self.present[pair[0]] & self.present[pair[1]]

    def heat(self, pair: Pair) -> Tensor:
        """[1]: the temperature of `pair`."""
        return self.temperature if self.temperature.numel() == 1 else self.temperature[[self.pairs.index(pair)]]


@dataclass(frozen=True, eq=False)
class Sums:
    """log Σ exp of the scores with all negatives: of each left row, and of each right row. float32 [S] each.

    The pair's own score is not among them: a small loss is the logarithm of a sum near 1, which would lose it.
    """

    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class Compared:
    """Every row of a step. own: bool [S], which of them are live here. sums: pair → what its rows score.

    group: pair → int64 [S], equal for rows that are each other's positives; a pair that is not there has none.
    """

    rows: Rows
    own: Tensor
    sums: Mapping[Pair, Sums]
    group: Mapping[Pair, Tensor]

    def info_nce(self, pair: Pair) -> tuple[Tensor, int]:
        """(the own rows' part of the pair's InfoNCE, how many of them have both sides)."""
        left, right, both = self.rows.embeddings[pair[0]], self.rows.embeddings[pair[1]], self.rows.both(pair)
        heat = self.rows.heat(pair)
        part = info_nce(left, right, both, self.own, heat, self.sums[pair])
        if pair in self.group:
            part = part + spread(left, right, both, self.own, heat, self.group[pair])
        return part, int((both & self.own).sum())


@dataclass(frozen=True, eq=False)
class Negatives:
    """Every row of a step at its slot, as constants, its sums and its groups."""

    rows: Rows
    sums: Mapping[Pair, Sums]
    group: Mapping[Pair, Tensor]

    def with_own(self, rows: Rows, slots: Tensor) -> Compared:
        """The step's rows, those at `slots` [B] replaced by live ones."""
        embeddings = {
            m: self.rows.embeddings[m].to(live.dtype).index_copy(0, slots, live) for m, live in rows.embeddings.items()
        }
        present = {m: self.rows.present[m].index_copy(0, slots, live) for m, live in rows.present.items()}
        step = replace(rows, embeddings=embeddings, present=present)
        return Compared(step, _marked(step, slots), self.sums, self.group)


def gather(rows: Rows) -> Compared:
    """Every rank's rows, this rank's own live. Collective: once per step on every rank."""
    table, start = gather_rows(_pack(rows))
    step = _unpack(table, rows)
    own = _marked(step, torch.arange(start, start + len(_pack(rows)), device=table.device))
    codes, proteins = (None if each is None else gather_rows(each)[0] for each in (rows.codes, rows.proteins))
    return Compared(step, own, _sums(step, own), _groups(rows, codes, proteins))


def collect(parts: Sequence[Rows], slots: Sequence[Tensor]) -> Negatives:
    """The step's rows from this rank's micro-batches and every other rank's. Collective: once per step on every rank.

    slots: per part, int64 [B], the rows' places in the step. A slot that nobody filled (a damaged sample) is absent.
    """
    table, _ = gather_rows(torch.cat([_pack(part) for part in parts]).detach())
    mine = torch.cat(list(slots))
    places, _ = gather_rows(mine)
    size = int(places.max()) + 1 if len(places) else 0
    step = _unpack(_at(places, table, size), parts[0])
    codes, proteins = (
        _at(places, gather_rows(torch.cat(each))[0], size)
        if (each := [one for one in said if one is not None])
        else None
        for said in ([part.codes for part in parts], [part.proteins for part in parts])
    )
    return Negatives(step, _sums(step, _marked(step, mine)), _groups(parts[0], codes, proteins))


def _groups(rows: Rows, codes: Tensor | None, proteins: Tensor | None) -> dict[Pair, Tensor]:
    """Which of the step's rows are each other's positives, by pair. codes, proteins: of all rows."""
    same = [] if proteins is None else [proteins.unsqueeze(1)]
    alone = groups(same[0]) if same else None
    alike = alone if codes is None else groups(torch.cat([codes, *same], 1))
    found = {pair: alike if pair in rows.grouped else alone for pair in rows.pairs}
    return {pair: group for pair, group in found.items() if group is not None}


def info_nce(
    left_SD: Tensor, right_SD: Tensor, both: Tensor, own: Tensor, temperature: Tensor, sums: Sums | None = None
) -> Tensor:
    """The own rows' part of the symmetric InfoNCE, −½ Σᵢ [log softmaxⱼ(lᵢ·rⱼ/t)ᵢ + log softmaxⱼ(rᵢ·lⱼ/t)ᵢ]: a float32.

    left_SD, right_SD: L2-normalised rows of the step. both: bool [S]; rows lacking a side are in neither numerator nor
    denominator, and get no gradient. own: bool [S], the live rows; the others get a gradient of 0. temperature: scalar;
    its gradient is that of the own rows' part, because the other parts bring theirs. sums: found here where None. With
    fewer than two rows having both the loss is 0. Memory is that of a few tables of [S, D] and one block, never [S, S].
    """
    if sums is None:
        sums = _scored(left_SD, right_SD, both, torch.ones_like(own), temperature)
    return _InfoNCE.apply(left_SD, right_SD, both, own, temperature, sums.left, sums.right)  # type: ignore[return-value]


class _InfoNCE(Function):
    """In blocks, in two passes: the sums of every row and column, then, in the backward pass, the gradients.

    With s = l·r/t, and P and Q the softmax of s over rows and over columns, the gradient for lᵢ is
    (½ Σⱼ (Pᵢⱼ + Qᵢⱼ) rⱼ − rᵢ) / t; it needs Q's normaliser of every column, but P + Q itself for own rows and columns
    only. So rows are sorted, own ones first, and what is not own on either side is left out of the second pass. Pᵢᵢ − 1
    is taken as −sigmoid(sum of negatives − own score), because the difference would be rounded away.
    """

    @staticmethod
    def forward(
        ctx: Any, left_SD: Tensor, right_SD: Tensor, both: Tensor, own: Tensor, temperature: Tensor, *sums: Tensor
    ) -> Tensor:
        with torch.autocast(left_SD.device.type, enabled=False):
            order, live = _own_first(both, own)
            alike = _alike(left_SD, right_SD, order[:live], temperature)
            ctx.save_for_backward(left_SD, right_SD, both, own, temperature, *sums)
            return sum(softplus(each[order[:live]] - alike).sum() / 2 for each in sums)  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # one output
        left_SD, right_SD, both, own, temperature, *sums = ctx.saved_tensors
        with torch.autocast(left_SD.device.type, enabled=False):
            order, live = _own_first(both, own)
            alike = _alike(left_SD, right_SD, order, temperature)
            left, right, inverse = _taken(left_SD, order, live), _taken(right_SD, order, live), 1 / temperature.float()
            by_row, by_column = (each[order] for each in sums)
            left_grad, right_grad, heat = _gradients(left, right, inverse, by_row, by_column, alike, live)
            del left, right
            heat = (heat * upstream * inverse).to(temperature.dtype)
            return (
                _put_back(left_grad.mul_(upstream), left_SD, order),
                _put_back(right_grad.mul_(upstream), right_SD, order),
                None,
                None,
                heat,
                None,
                None,
            )


@torch.no_grad()
def _sums(step: Rows, own: Tensor) -> dict[Pair, Sums]:
    """Every pair's, each rank scoring its own rows. Collective."""
    parts = [
        _scored(step.embeddings[a], step.embeddings[b], step.both((a, b)), own, step.heat((a, b)))
        for a, b in step.pairs
    ]
    totals = add_logs(torch.stack([torch.stack([part.left, part.right]) for part in parts]))
    return {pair: Sums(left, right) for pair, (left, right) in zip(step.pairs, totals, strict=True)}


@torch.no_grad()
def _scored(left_SD: Tensor, right_SD: Tensor, both: Tensor, own: Tensor, temperature: Tensor) -> Sums:
    """The own left rows' part of the sums: all of their own, and what they add to each right row's; −∞ is nothing."""
    with torch.autocast(left_SD.device.type, enabled=False):
        order, live = _own_first(both, own)
        left, right, inverse = _taken(left_SD, order, live), _taken(right_SD, order, live), 1 / temperature.float()
        found = left.new_full((2, len(left_SD)), -torch.inf)
        by_row, by_column = found[:, order]
        high, wide = BLOCK["cuda" if left.is_cuda else "cpu"]
        for rows, _ in _blocks(live, 0, high):
            scaled = left[rows] * inverse
            for columns, _ in _blocks(len(order), 0, wide):
                scores = scaled @ right[columns].T
                _pairs(scores, rows, columns).fill_(-torch.inf)
                by_row[rows] = torch.logaddexp(by_row[rows], scores.logsumexp(1))
                by_column[columns] = torch.logaddexp(by_column[columns], scores.logsumexp(0))
        return Sums(*found.index_copy_(1, order, torch.stack([by_row, by_column])))


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


def _pairs(block: Tensor, rows: slice, columns: slice) -> Tensor:
    """A view of the block's entries whose row and column are of one protein; none in most blocks."""
    return block.diagonal(rows.start - columns.start)


def _alike(left_SD: Tensor, right_SD: Tensor, order: Tensor, temperature: Tensor) -> Tensor:
    """The scores of the pairs themselves, in that order: float32."""
    return torch.einsum("nd,nd->n", left_SD[order].float(), right_SD[order].float()) / temperature.float()


def _gradients(
    left: Tensor, right: Tensor, inverse: Tensor, by_row: Tensor, by_column: Tensor, alike: Tensor, live: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the whole loss for the first `live` rows of l and of r; and of their own part for t, times t: a scalar."""
    amiss = ((by_row - alike).sigmoid() + (by_column - alike).sigmoid())[:live] / 2
    left_grad, right_grad = (table[:live] * (-inverse * amiss).unsqueeze(1) for table in (right, left))
    heat = (amiss * alike[:live]).double().sum()
    by_row, by_column = torch.logaddexp(by_row, alike), torch.logaddexp(by_column, alike)
    high, wide = BLOCK["cuda" if left.is_cuda else "cpu"]
    for rows, own_rows in _blocks(len(left), live, high):
        scaled = left[rows] * inverse
        for columns, own_columns in _blocks(len(left), live, wide):
            if not (own_rows or own_columns):
                continue
            scores = scaled @ right[columns].T
            forth, back = (scores - by_row[rows].unsqueeze(1)).exp_(), (scores - by_column[columns]).exp_()
            for each in (forth, back):
                _pairs(each, rows, columns).zero_()
            heat -= torch.einsum("nm,nm->", forth, scores) / 2 if own_rows else 0
            heat -= torch.einsum("nm,nm->", back, scores) / 2 if own_columns else 0
            weights = forth.add_(back).mul_(inverse / 2)
            if own_rows:
                left_grad[rows].addmm_(weights, right[columns])
            if own_columns:
                right_grad[columns].addmm_(weights.T, left[rows])
    return left_grad, right_grad, heat


def _marked(step: Rows, places: Tensor) -> Tensor:
    """bool [S]: which rows of the step are at `places`."""
    size = len(next(iter(step.present.values())))
    return torch.zeros(size, dtype=torch.bool, device=places.device).index_fill(0, places, True)


def _at(places: Tensor, table: Tensor, size: int) -> Tensor:
    """[size, …]: the table's rows at their places, 0 elsewhere."""
    return table.new_zeros(size, *table.shape[1:]).index_copy(0, places, table)


def _pack(rows: Rows) -> Tensor:
    """One table [B, ΣD + M], presence as 0 and 1 in its last columns: one collective for all names."""
    flags = [flag.unsqueeze(1) for flag in rows.present.values()]
    values = list(rows.embeddings.values())
    return torch.cat([*values, *(flag.to(values[0].dtype) for flag in flags)], dim=1)


def _unpack(table: Tensor, like: Rows) -> Rows:
    widths = [rows.shape[1] for rows in like.embeddings.values()]
    *values, flags = table.split([*widths, len(like.present)], dim=1)
    embeddings = dict(zip(like.embeddings, values, strict=True))
    present = {name: flags[:, i] > 0.5 for i, name in enumerate(like.present)}
    return replace(like, embeddings=embeddings, present=present, codes=None, proteins=None)
