"""Metrics named by what they compute. Each has a brute-force twin in the tests."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-9  # cosines nearer than this are one score: above float64's rounding, below any difference with a meaning


@dataclass(frozen=True)
class Retrieval:
    """Recall at `k` over `n` pairs: `forward` finds b for a, `backward` finds a for b, `recall` is their mean.

    chance: what a random order would reach: k / n when every query has one positive; with p positives
        1 − C(n − p, k) / C(n, k), averaged over the queries. median_rank: over the queries of both directions, from 1.
    """

    k: int
    n: int
    forward: float
    backward: float
    recall: float
    chance: float
    median_rank: float


def recall_at_k(a: Tensor, b: Tensor, k: int, texts: Sequence[Hashable] | None = None, chunk: int = 1024) -> Retrieval:
    """How often a row's partner is among the k most similar of the other side, by cosine, in both directions.

    a, b: [N, D], row i of both is the same protein, N ≥ 1. texts: one per row; rows with equal texts are positives of
    each other, and the best placed positive gives a query's rank. `chunk` bounds memory to chunk × N scores.

    Ties count against the query: every negative that scores as high as the best positive stands before it. So a
    collapsed encoder, which maps all proteins to one point, scores 0 rather than what its order happens to give.
    Raises ValueError for unpaired shapes, for no rows and for values that are not finite (a NaN compares below
    everything, and would pass for a perfect rank).
    """
    if a.ndim != 2 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"recall needs two [N, D] matrices of equal shape, N ≥ 1; got {(*a.shape,)} and {(*b.shape,)}")
    if k < 1 or (texts is not None and len(texts) != len(a)):
        raise ValueError(f"recall at {k} of {len(a)} pairs with {'no' if texts is None else len(texts)} texts")
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise ValueError("recall of embeddings that are not finite: the model has diverged, or a protein broke it")
    codes = _codes(texts, len(a)).to(a.device)
    a, b = (torch.nn.functional.normalize(rows.double(), dim=-1) for rows in (a, b))
    there, back = _ranks(a, b, codes, chunk), _ranks(b, a, codes, chunk)
    forward, backward = float((there <= k).double().mean()), float((back <= k).double().mean())
    return Retrieval(
        k=k,
        n=len(a),
        forward=forward,
        backward=backward,
        recall=(forward + backward) / 2,
        chance=_chance(codes, k),
        median_rank=float(torch.cat([there, back]).double().sort().values[len(a) - 1 : len(a) + 1].mean()),
    )


def _codes(texts: Sequence[Hashable] | None, n: int) -> Tensor:
    """int64 [N]: equal where texts are equal; all different without texts."""
    if texts is None:
        return torch.arange(n)
    code: dict[Hashable, int] = {}
    return torch.tensor([code.setdefault(text, len(code)) for text in texts])


def _ranks(queries: Tensor, items: Tensor, codes: Tensor, chunk: int) -> Tensor:
    """int64 [N], from 1: 1 + the negatives that score at least as high as the query's best positive."""
    ranks = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ items.T
        positive = codes[start : start + chunk, None] == codes
        best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((scores >= best - TIE) & ~positive).sum(1))
    return torch.cat(ranks)


def _chance(codes: Tensor, k: int) -> float:
    """The mean over queries of 1 − C(n − p, k) / C(n, k), p the query's positives."""
    n = len(codes)
    _, inverse, counts = codes.unique(return_inverse=True, return_counts=True)
    negatives = (n - counts[inverse]).double()
    miss = torch.ones_like(negatives)
    for drawn in range(min(k, n)):
        miss *= (negatives - drawn).clamp(min=0) / (n - drawn)
    return float((1 - miss).mean())
