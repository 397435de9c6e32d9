"""InfoNCE over a whole step, in parts that add up whatever the ranks and micro-batches the step is cut into.

Every part compares all rows of the step. It owns some of them: those are live, the others are constants. Its value is
the own rows' share of the loss, and its gradient with respect to the own rows is the whole loss's, which includes their
role as negatives of the others. So values and gradients of the parts sum to those of the uncut loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.distributed import gather_rows
from pretrain.sample import Modality


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
    denominator. own: bool [S], the live rows. temperature: scalar; its gradient is that of the own rows' part, because
    the other parts bring theirs. With fewer than two rows having both the loss is 0.
    """
    with torch.autocast(left_SD.device.type, enabled=False):
        left, right, mine = left_SD[both].float(), right_SD[both].float(), own[both]
        temperature = temperature.float()
        per_row = torch.where(mine, temperature, temperature.detach()).unsqueeze(1)
        similarity = left @ right.T
        forth = (similarity / per_row).log_softmax(1).diagonal()
        back = (similarity.T / per_row).log_softmax(1).diagonal()
        loss = -(forth + back) / 2
        others = loss[~mine].sum()
        return loss[mine].sum() + (others - others.detach())


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
