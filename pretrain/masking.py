"""Every random draw of training, keyed by (seed, step, slot, purpose) and by nothing else; and what to mask with them.

Masking is MultiMAE's: of a protein's tokens a fixed share stays visible, and a Dirichlet draw divides that share among
its modalities, so that a model meets every mixture from "nearly all sequence" to "nearly all function".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pretrain.config import Config
from pretrain.sample import Modality


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the format of a run: append, never renumber."""

    STRUCTURE = 1
    TEXT = 2
    IMAGE = 3
    WINDOW = 4
    DROPOUT = 5
    BUDGET = 6
    KEEP = 7
    HIDE = 8
    PAIR = 9
    LEVEL = 10
    VIEW_WINDOW = 20
    VIEW_HIDE = 21
    VIEW_NOISE = 22
    VIEW_TEXT = 23


def generator(seed: int, step: int, slot: int, purpose: Purpose) -> np.random.Generator:
    """A counter-based generator (Philox): the same draw for the same protein of a step on any rank, in any order."""
    return np.random.Generator(np.random.Philox(_Key(seed), counter=[0, purpose, slot, step]))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """A Philox key (seed, 0). If it were given as `key`, the library would ask the system for entropy all the same."""

    def __init__(self, seed: int) -> None:
        self._key = np.array([seed, 0], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        assert (n_words, dtype) == (len(self._key), np.uint64), "what Philox asks for"
        return self._key


class Alpha(Config):
    """Dirichlet concentrations: how the visible share is divided among the modalities a protein has."""

    sequence: float = Field(default=1.0, gt=0)
    structure: float = Field(default=2.0, gt=0)
    function: float = Field(default=2.0, gt=0)
    image: float = Field(default=2.0, gt=0)


class Dropout(Config):
    """Probability that a present modality is treated as absent in the encoder, yet reconstructed."""

    sequence: float = Field(default=0.0, ge=0, le=1)
    structure: float = Field(default=0.0, ge=0, le=1)
    function: float = Field(default=0.0, ge=0, le=1)
    image: float = Field(default=0.0, ge=0, le=1)


class MaskingConfig(Config):
    """keep: share of a protein's tokens that the encoder sees."""

    keep: float = Field(default=1 / 6, gt=0, le=1)
    alpha: Alpha = Alpha()
    dropout: Dropout = Dropout()


class ViewConfig(Config):
    """How a protein is shown once more, to be compared with itself.

    shortest: share of its residues that the view's window spans at least; the share is drawn, evenly up to 1. masked:
    share of residues that its sequence does not tell. noise: standard deviation of what is added to coordinates, in Å.
    """

    shortest: float = Field(default=0.5, gt=0, le=1)
    masked: float = Field(default=0.15, ge=0, lt=1)
    noise: float = Field(default=0.3, ge=0)


@dataclass(frozen=True, eq=False)
class Masks:
    """visible: modality → bool [N_m], tokens that enter the encoder. kept: modality → int64 [B], how many. On CPU."""

    visible: Mapping[Modality, Tensor]
    kept: Mapping[Modality, Tensor]


def draw_masks(
    lengths: Mapping[Modality, Tensor],
    seed: int,
    step: int,
    slots: Tensor,
    config: MaskingConfig,
    residues: Mapping[Modality, Tensor] | None = None,
) -> Masks:
    """What each protein shows of itself at this step, whoever its rank and batch mates are.

    lengths: modality → int64 [B], tokens per protein, 0 where absent. slots: int64 [B], its place in the step.
    residues: modality → int64 [N_m], the residue that each token is of: these modalities show the same ones, as far as
    each shows so many and has them. Without, each shows its own.
    """
    modalities = [modality for modality in Modality if modality in lengths]  # the order of draws is part of the format
    columns = [lengths[modality].tolist() for modality in modalities]
    places = {
        modality: iter(each.cpu().split(lengths[modality].tolist())) for modality, each in (residues or {}).items()
    }
    rows = {modality: [np.zeros(0, dtype=bool)] for modality in modalities}
    kept: dict[Modality, list[int]] = {modality: [] for modality in modalities}
    for slot, *counts in zip(slots.tolist(), *columns, strict=True):
        present = dict(zip(modalities, counts, strict=True))
        shown = drop(present, config.dropout, generator(seed, step, slot, Purpose.DROPOUT))
        budget = budgets(shown, config, generator(seed, step, slot, Purpose.BUDGET))
        rng = generator(seed, step, slot, Purpose.KEEP)
        met = {modality: next(each).numpy() for modality, each in places.items()}
        draws = rng.random(1 + max((int(each.max()) for each in met.values() if len(each)), default=-1))
        for modality in modalities:
            if modality in met:
                rows[modality].append(lowest(draws[met[modality]], budget[modality]))
            else:
                rows[modality].append(keep(present[modality], budget[modality], rng))
            kept[modality].append(budget[modality])
    return Masks(
        {modality: torch.from_numpy(np.concatenate(parts)) for modality, parts in rows.items()},
        {modality: torch.tensor(counts, dtype=torch.int64) for modality, counts in kept.items()},
    )


def hide(lengths: Tensor, seed: int, step: int, slots: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(bool [N], a `share` of each protein's tokens that are to be told; float64 [N], a uniform draw for each token).

    lengths, slots: int64 [B]. At least one token of each protein that has any. On CPU.
    """
    chosen, uniform = [np.zeros(0, dtype=bool)], [np.zeros(0)]
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        rng = generator(seed, step, slot, Purpose.HIDE)
        chosen.append(keep(length, max(1, round(share * length)) if length else 0, rng))
        uniform.append(rng.random(length))
    return torch.from_numpy(np.concatenate(chosen)), torch.from_numpy(np.concatenate(uniform))


def mates(lengths: Tensor, seed: int, step: int, slots: Tensor) -> Tensor:
    """int64 [N, 2]: two other tokens of the same protein for each token, as rows of the batch, evenly drawn and not
    the same one; the token itself where its protein has too few. On CPU."""
    found, begin = [np.zeros((0, 2), np.int64)], 0
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        rng, own = generator(seed, step, slot, Purpose.PAIR), np.arange(length)[:, None]
        steps = np.zeros((length, 2), np.int64)
        if length >= 3:
            first, second = rng.integers(1, length, length), rng.integers(1, length - 1, length)
            steps = np.stack([first, second + (second >= first)], 1)
        found.append(begin + (own + steps) % max(1, length))
        begin += length
    return torch.from_numpy(np.concatenate(found))


def drop(lengths: Mapping[Modality, int], dropout: Dropout, rng: np.random.Generator) -> dict[Modality, int]:
    """`lengths` with dropped modalities at 0. When every present one would go, one of them, drawn evenly, stays."""
    uniform = dict(zip(Modality, rng.random(len(Modality)), strict=True))  # one each, present or not
    present = [modality for modality, length in lengths.items() if length]
    stays = [modality for modality in present if uniform[modality] >= getattr(dropout, modality)]
    if present and not stays:
        stays = [present[rng.integers(len(present))]]
    return {modality: length if modality in stays else 0 for modality, length in lengths.items()}


def not_dropped(
    lengths: Mapping[Modality, Tensor], seed: int, step: int, slots: Tensor, dropout: Dropout
) -> dict[Modality, Tensor]:
    """Modality → bool [B], on its lengths' device: of which proteins it is shown, where they have it and `drop` leaves
    it. lengths: int64 [B]."""
    kept = []
    counts = zip(*(each.tolist() for each in lengths.values()), strict=True)
    for slot, present in zip(slots.tolist(), counts, strict=True):
        rng = generator(seed, step, slot, Purpose.DROPOUT)
        kept.append(drop(dict(zip(lengths, present, strict=True)), dropout, rng))
    return {
        m: torch.tensor([each[m] > 0 for each in kept], dtype=torch.bool, device=lengths[m].device) for m in lengths
    }


def hold_out(present: Tensor, seed: int, step: int, slots: Tensor, probability: float) -> Tensor:
    """bool [B, L], on `present`'s device: which of a protein's L levels are held out, those that it has (`present`,
    bool [B, L]) each with this probability. When all would be, one of them, drawn evenly, is not."""
    rows = []
    for slot, has in zip(slots.tolist(), present.tolist(), strict=True):
        rng = generator(seed, step, slot, Purpose.LEVEL)
        held = np.array(has) & (rng.random(len(has)) < probability)
        if held.any() and (held == has).all():
            held[rng.choice(np.flatnonzero(held))] = False
        rows.append(held)
    return torch.from_numpy(np.array(rows, dtype=np.bool_).reshape(present.shape)).to(present.device)


def budgets(lengths: Mapping[Modality, int], config: MaskingConfig, rng: np.random.Generator) -> dict[Modality, int]:
    """How many tokens of each modality to keep: exactly round(keep × tokens), at least 1, split by a Dirichlet draw.

    A modality whose share exceeds its tokens keeps them all, and the excess is divided among the others in proportion
    to their shares. Rounding goes to the largest remainders, so that the total is exact.
    """
    kept = dict.fromkeys(lengths, 0)
    present = [modality for modality, length in lengths.items() if length]
    if not present:
        return kept
    sizes = np.array([lengths[modality] for modality in present])
    total = max(1, round(config.keep * int(sizes.sum())))
    shares = rng.dirichlet([getattr(config.alpha, modality) for modality in present])
    exact = _fill(shares, sizes, total)
    whole = np.floor(exact).astype(np.int64)
    while whole.sum() < total:
        whole[np.argmax(np.where(whole < sizes, exact - whole, -np.inf))] += 1
    return kept | dict(zip(present, whole.tolist(), strict=True))


def keep(length: int, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """bool [length] with `count` True, every choice equally likely."""
    visible = np.zeros(length, dtype=bool)
    visible[rng.choice(length, count, replace=False) if count else []] = True
    return visible


def lowest(draws: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """bool [n], True of the `count` lowest."""
    visible = np.zeros(len(draws), dtype=bool)
    visible[draws.argsort()[:count]] = True
    return visible


def _fill(shares: NDArray[np.float64], sizes: NDArray[np.int64], total: int) -> NDArray[np.float64]:
    """`total` ≤ Σ sizes divided in proportion to `shares`, none above its size. Each round fills up at least one."""
    filled = np.zeros(len(sizes), dtype=bool)
    while True:
        open_shares = np.where(filled, 0.0, np.maximum(shares, np.finfo(float).tiny))
        rest = total - sizes[filled].sum()
        exact = np.where(filled, sizes, rest * open_shares / max(open_shares.sum(), np.finfo(float).tiny))
        over = ~filled & (exact > sizes)
        if not over.any():
            return exact
        filled |= over
