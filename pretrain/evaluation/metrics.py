"""Metrics named by what they compute. Each has a brute-force twin in the tests."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

TIE = 1e-9  # cosines nearer than this are one score: above float64's rounding, below any difference with a meaning
ENOUGH = 16  # embeddings; of fewer no rank says anything


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


@dataclass(frozen=True)
class Cloud:
    """How `n` embeddings of `width` numbers, L2-normalised, lie on their sphere.

    uniformity: log E exp(−2 ‖x − y‖²) over pairs of different rows (Wang & Isola 2020, §4.1.2, t = 2): 0 for one point,
        −4 and less for points all over the sphere. spread: the root mean square distance from their mean, 0 to 1.
    effective_rank: exp of the entropy of the singular values, which sum to 1 (Roy & Vetterli 2007), of the rows less
        their mean: about how many directions they use, 1 to min(width, n − 1). 0 where they do not differ by more than
        their rounding: rounding alone points everywhere, and would pass for a high rank.
    """

    n: int
    width: int
    uniformity: float
    spread: float
    effective_rank: float

    def collapsed(self, least: float) -> bool:
        """Whether they use fewer directions than `least`, or than a quarter of those that so many could use: of 20
        proteins none is asked to fill many. Their mean does not count: before training it is by far the longest part.
        """
        possible = min(self.width, self.n - 1)
        return self.n >= ENOUGH and self.effective_rank < min(least, possible / 4)


def cloud(rows: Tensor, rounding: float = 1e-6, chunk: int = 1024) -> Cloud:
    """What one modality's embeddings [N, D] look like, N ≥ 2. Memory: N × D, D × D or N × N, and chunk × N numbers.

    rounding: how far rows lie apart (of length 1) that are equal but for their arithmetic.
    Raises ValueError for fewer rows and for values that are not finite.
    """
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"a cloud needs a [N, D] matrix, N ≥ 2; got {(*rows.shape,)}")
    _check_finite(rows)
    rows = normalize(rows.double(), dim=-1)
    centred = rows - rows.mean(0)
    spread = float(centred.square().sum(1).mean().sqrt())
    return Cloud(
        n=len(rows),
        width=rows.shape[1],
        uniformity=_uniformity(rows, chunk),
        spread=spread,
        effective_rank=_effective_rank(centred) if spread > rounding else 0.0,
    )


def alignment(a: Tensor, b: Tensor) -> float:
    """E ‖a − b‖² over pairs, L2-normalised (Wang & Isola 2020, §4.1.1, α = 2): 0 for the same point, 2 for unrelated.

    a, b: [N, D], row i of both is the same protein, N ≥ 1. Raises ValueError for values that are not finite.
    """
    _check_finite(a, b)
    a, b = (normalize(rows.double(), dim=-1) for rows in (a, b))
    return float((a - b).square().sum(1).mean())


def _uniformity(rows: Tensor, chunk: int) -> float:
    total, lengths = 0.0, rows.square().sum(1)  # 1, but of an embedding that is 0
    for start in range(0, len(rows), chunk):
        some = slice(start, start + chunk)
        squares = (lengths[some, None] + lengths - 2 * rows[some] @ rows.T).clamp(min=0)
        own = torch.arange(start, start + len(squares), device=rows.device)[:, None]
        total += float((-2 * squares).exp().scatter(1, own, 0.0).sum())
    return math.log(total / (len(rows) * (len(rows) - 1)))


def _effective_rank(centred: Tensor) -> float:
    """Over the smaller Gram matrix's eigenvalues, the squares of the singular values."""
    gram = centred.T @ centred if centred.shape[1] <= len(centred) else centred @ centred.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _check_finite(*sides: Tensor) -> None:
    if not all(bool(rows.isfinite().all()) for rows in sides):
        raise ValueError("embeddings that are not finite: the model has diverged, or a protein broke it")


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
    _check_finite(a, b)
    codes = _codes(texts, len(a)).to(a.device)
    a, b = (normalize(rows.double(), dim=-1) for rows in (a, b))
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


def fmax_torchdrug(scores: Tensor, truth: Tensor) -> float:
    """Protein-centric maximum F of the tables in GearNet, ProtST and AMMA, over all thresholds. 0 to 1.

    scores: float [N, K]; truth: bool [N, K], N proteins and K labels. Of a threshold: precision is the mean over the
    proteins with a score at or above it; recall the mean over all proteins, one without a true label counting 0.
    Equal scores are one threshold. Raises ValueError for other shapes and for scores that are not finite.
    """
    precision, recall = _protein_centred(scores, truth)
    return float(_f(precision, recall).max())


def fmax_cafa(scores: Tensor, truth: Tensor) -> float:
    """As `fmax_torchdrug`, over the proteins that have a true label (Radivojac et al. 2013). Scores and truth must hold
    each term's ancestors already. Raises ValueError where no protein has a label."""
    known = truth.any(1) if truth.ndim == 2 else truth
    if not bool(known.any()):
        raise ValueError("fmax_cafa is over proteins with a true label, and there is none")
    return fmax_torchdrug(scores[known], truth[known])


def aupr_micro(scores: Tensor, truth: Tensor) -> float:
    """Average precision over all (protein, label) pairs: the precision at every positive's score, averaged. Equal
    scores are one threshold. NaN without a positive. Raises ValueError as `fmax_torchdrug` does."""
    _check_scores(scores, truth)
    values, order = scores.double().flatten().sort(descending=True)
    hits = truth.flatten()[order].double()
    ends = _ends(values)
    true = hits.cumsum(0)[ends]
    gained = torch.diff(true, prepend=true.new_zeros(1))
    return float((gained * true / (ends + 1)).sum() / hits.sum())


def _protein_centred(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(precision, recall) at each distinct score, highest first: [T] each.

    One pass over all pairs in the order of scores: a pair changes its own protein's precision, from what its r − 1
    better ones gave to what r give, and its recall.
    """
    _check_scores(scores, truth)
    proteins, labels = truth.shape
    order = scores.double().argsort(dim=1, descending=True, stable=True)
    hits = truth.gather(1, order).double()
    found, rank = hits.cumsum(1), torch.arange(1, labels + 1, dtype=torch.double)
    precise = found / rank
    change = torch.diff(precise, dim=1, prepend=precise.new_zeros(proteins, 1))
    recalled = hits / truth.sum(1, keepdim=True).clamp(min=1)
    values, along = scores.double().gather(1, order).flatten().sort(descending=True, stable=True)
    first = (rank == 1).double().expand_as(hits)
    change, recalled, first = (part.flatten()[along].cumsum(0) for part in (change, recalled, first))
    ends = _ends(values)
    return change[ends] / first[ends], recalled[ends] / proteins


def _f(precision: Tensor, recall: Tensor) -> Tensor:
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def _ends(values: Tensor) -> Tensor:
    """int64 [T]: the last place of each run of equal values."""
    last = torch.ones(len(values), dtype=torch.bool)
    last[:-1] = values[1:] != values[:-1]
    return last.nonzero().squeeze(1)


def _check_scores(scores: Tensor, truth: Tensor) -> None:
    if scores.ndim != 2 or scores.shape != truth.shape or not scores.numel() or truth.dtype != torch.bool:
        raise ValueError(
            f"scores and truth must be [proteins, labels], truth of bool; got {(*scores.shape,)} and "
            f"{(*truth.shape,)} of {truth.dtype}"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError("scores that are not finite: the model or the probe has diverged")
