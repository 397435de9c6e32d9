"""Metrics against twins that loop, and against what must never look good."""

import math
import random

import pytest
import torch
from torch import Tensor

from pretrain.evaluation.metrics import Cloud, alignment, aupr_micro, cloud, fmax_cafa, fmax_torchdrug, recall_at_k


def brute(a, b, k, texts=None):
    """Hit rates by explicit loops: a negative that ties with the best positive stands before it."""
    texts = texts or list(range(len(a)))

    def ranks(queries, items):
        out = []
        for i, query in enumerate(queries):
            scores = [float(torch.dot(query, item) / query.norm() / item.norm()) for item in items]
            best = max(score for j, score in enumerate(scores) if texts[j] == texts[i])
            out.append(1 + sum(score >= best - 1e-9 for j, score in enumerate(scores) if texts[j] != texts[i]))
        return out

    there, back = ranks(a, b), ranks(b, a)
    both = sorted(there + back)
    return (
        sum(r <= k for r in there) / len(a),
        sum(r <= k for r in back) / len(a),
        (both[len(a) - 1] + both[len(a)]) / 2,
    )


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("duplicates", [False, True])
def test_equals_the_brute_force_twin(chunk, duplicates):
    random.seed(0)
    torch.manual_seed(0)
    a = torch.randn(41, 6, dtype=torch.float64)
    b = a + 0.8 * torch.randn(41, 6, dtype=torch.float64)
    texts = [random.choice("abcdefghijklm") for _ in range(41)] if duplicates else None
    found = recall_at_k(a, b, 5, texts, chunk=chunk)
    assert (found.forward, found.backward, found.median_rank) == pytest.approx(brute(a, b, 5, texts))
    assert found.recall == pytest.approx((found.forward + found.backward) / 2)
    assert (found.k, found.n) == (5, 41)


def test_perfect_and_reversed():
    a = torch.eye(12)
    assert recall_at_k(a, a, 1).recall == 1.0
    assert recall_at_k(a, a, 1).median_rank == 1.0
    assert recall_at_k(a, a.roll(1, 0), 1).recall == 0.0


def test_the_scale_of_rows_does_not_matter():
    torch.manual_seed(1)
    a, b = torch.randn(30, 8), torch.randn(30, 8)
    scaled = a * torch.logspace(-3, 3, 30)[:, None]
    assert recall_at_k(a, b, 10) == recall_at_k(scaled, b, 10)


@pytest.mark.parametrize("n, k", [(100, 10), (12, 10), (11, 7), (1031, 1000)])
def test_a_constant_embedding_never_beats_chance(n, k):
    torch.manual_seed(2)
    point, zero, other = torch.randn(1, 33).expand(n, -1), torch.zeros(n, 33), torch.randn(n, 33)
    assert recall_at_k(point, point, k).recall == 0.0
    assert recall_at_k(zero, zero, k).recall == 0.0
    one_sided = recall_at_k(point, other, k)
    assert one_sided.forward == pytest.approx(k / n)  # every query ranks the proteins alike: exactly k of them hit
    assert one_sided.backward == 0.0  # all candidates tie, and ties count against


def test_chance_counts_positives():
    embeddings = torch.randn(20, 4)
    assert recall_at_k(embeddings, embeddings, 5).chance == pytest.approx(5 / 20)
    texts = ["same"] * 4 + [str(i) for i in range(16)]
    several = 1 - math.comb(16, 5) / math.comb(20, 5)
    assert recall_at_k(embeddings, embeddings, 5, texts).chance == pytest.approx((4 * several + 16 * 5 / 20) / 20)
    assert recall_at_k(embeddings, embeddings, 50).chance == pytest.approx(1.0)


def test_chance_is_what_random_embeddings_reach():
    torch.manual_seed(3)
    texts = [str(i // 3) for i in range(60)]
    trials = [recall_at_k(torch.randn(60, 16), torch.randn(60, 16), 10, texts) for _ in range(200)]
    assert sum(t.recall for t in trials) / len(trials) == pytest.approx(trials[0].chance, abs=0.01)


def test_identical_texts_are_positives():
    """Two proteins with one text: either one found counts, and neither stands in the other's way."""
    a = torch.eye(4)
    b = a[[1, 0, 2, 3]]
    assert recall_at_k(a, b, 1).recall == 0.5
    assert recall_at_k(a, b, 1, ["kinase", "kinase", "ligase", "lyase"]).recall == 1.0


def test_bad_input_is_named():
    a = torch.randn(4, 3)
    broken = a.clone()
    broken[2, 1] = torch.nan
    for arguments, word in [
        ((a, a[:3], 1), "equal"),
        ((a[:0], a[:0], 1), "N ≥ 1"),
        ((a, broken, 1), "not finite"),
        ((a, a, 0), "recall at 0"),
        ((a, a, 1, ["one"]), "1 texts"),
    ]:
        with pytest.raises(ValueError, match=word):
            recall_at_k(*arguments)


def test_alignment_and_uniformity_equal_their_twins():
    torch.manual_seed(4)
    a = torch.randn(37, 5, dtype=torch.float64) + 1
    b = a + torch.randn(37, 5, dtype=torch.float64)
    unit = [[row / row.norm() for row in rows] for rows in (a, b)]
    apart = [float(((x - y) ** 2).sum()) for x, y in zip(*unit, strict=True)]
    assert alignment(a, b) == pytest.approx(sum(apart) / 37)
    near = [math.exp(-2 * float(((x - y) ** 2).sum())) for i, x in enumerate(unit[0]) for y in unit[0][:i]]
    for chunk in (1, 10, 1000):
        assert cloud(a, chunk=chunk).uniformity == pytest.approx(math.log(sum(near) / len(near)))


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (12, 12)])
def test_effective_rank_equals_its_twin(shape):
    torch.manual_seed(5)
    rows = torch.randn(*shape, dtype=torch.float64) * torch.logspace(0, -2, shape[1], dtype=torch.float64) + 3
    unit = rows / rows.norm(dim=1, keepdim=True)
    mean = sum(unit) / len(unit)
    values = [float(value) for value in torch.linalg.svdvals(unit - mean) if value > 1e-9]
    entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values)
    found = cloud(rows)
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-5)
    assert found.spread == pytest.approx(math.sqrt(sum(float(((x - mean) ** 2).sum()) for x in unit) / len(unit)))
    assert (found.n, found.width) == shape


def test_effective_rank_counts_directions():
    """Rows in k directions and their opposites: exactly k, also far from the origin's other side."""
    for k in (1, 3, 8):
        axes = torch.eye(20, dtype=torch.float64)[:k]
        assert cloud(torch.cat([axes, -axes])).effective_rank == pytest.approx(k)


def test_a_long_common_mean_is_no_collapse_and_a_point_is_one():
    torch.manual_seed(6)
    spread = torch.randn(200, 32)
    shifted = cloud(spread + 50)  # a cosine near 1 between any two, and yet all of them differ
    assert shifted.uniformity > -0.1 and shifted.effective_rank > 25 and not shifted.collapsed(2.0)
    for point in (torch.ones(200, 32), torch.zeros(200, 32), 1 + 1e-8 * torch.randn(200, 32, dtype=torch.float64)):
        found = cloud(point)
        assert found.effective_rank == 0 and found.collapsed(2.0) and found.uniformity == pytest.approx(0, abs=1e-6)
    line = torch.randn(200, 1) * torch.randn(1, 32) + 50 * torch.randn(1, 32)
    assert cloud(line).effective_rank == pytest.approx(1, abs=0.1) and cloud(line).collapsed(2.0)


def test_few_proteins_ring_no_alarm():
    def of(n: int, rank: float, width: int = 64) -> bool:
        return Cloud(n, width, -1.0, 0.5, rank).collapsed(4.0)

    assert of(100, 3.9) and not of(100, 4.1)
    assert not of(15, 0.0)  # too few to say anything
    assert of(16, 3.7) and not of(16, 3.8)  # a quarter of 15
    assert of(1000, 1.4, width=6) and not of(1000, 1.6, width=6)  # a quarter of 6


def test_what_makes_no_cloud_is_named():
    with pytest.raises(ValueError, match="N ≥ 2"):
        cloud(torch.ones(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        cloud(torch.full((3, 3), torch.inf))
    with pytest.raises(ValueError, match="not finite"):
        alignment(torch.ones(2, 3), torch.full((2, 3), torch.nan))


# --- function annotation ---


def slow_fmax(scores: Tensor, truth: Tensor) -> float:
    """Every score as a threshold, every protein by itself."""
    best = 0.0
    for threshold in scores.unique().tolist():
        precisions, recalls = [], []
        for row, labels in zip(scores.tolist(), truth.tolist(), strict=True):
            said = [i for i, score in enumerate(row) if score >= threshold]
            right = sum(labels[i] for i in said)
            if said:
                precisions.append(right / len(said))
            recalls.append(right / sum(labels) if any(labels) else 0.0)
        p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
        best = max(best, 2 * p * r / (p + r) if p + r else 0.0)
    return best


def annotations(seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    scores, truth = torch.rand(11, 7, generator=draw), torch.rand(11, 7, generator=draw) < 0.3
    truth[3] = False  # a protein without a label
    return (scores * 4).round() / 4 if ties else scores, truth


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_fmax_is_the_slow_ones(seed: int, ties: bool) -> None:
    scores, truth = annotations(seed, ties)
    assert fmax_torchdrug(scores, truth) == pytest.approx(slow_fmax(scores, truth), abs=1e-12)
    known = truth.any(1)
    assert fmax_cafa(scores, truth) == pytest.approx(slow_fmax(scores[known], truth[known]), abs=1e-12)
    assert fmax_cafa(scores, truth) > fmax_torchdrug(scores, truth)


@pytest.mark.parametrize("ties", [False, True])
def test_aupr_is_average_precision(ties: bool) -> None:
    from sklearn.metrics import average_precision_score

    for seed in range(6):
        scores, truth = annotations(seed, ties)
        want = average_precision_score(truth.flatten().numpy(), scores.flatten().numpy())
        assert aupr_micro(scores, truth) == pytest.approx(want, abs=1e-12)


def test_perfect_and_constant_scores() -> None:
    _, truth = annotations(0, ties=False)
    truth[~truth.any(1), 0] = True
    assert fmax_torchdrug(truth.double(), truth) == pytest.approx(1) and aupr_micro(truth.double(), truth) == 1.0
    share = float(truth.double().mean(1).mean())
    assert fmax_torchdrug(torch.zeros(truth.shape), truth) == pytest.approx(2 * share / (share + 1))
    assert aupr_micro(torch.zeros(truth.shape), truth) == pytest.approx(float(truth.double().mean()))


def test_scores_that_are_none_are_refused() -> None:
    scores, truth = annotations(0, ties=False)
    for a, b in ((scores[:5], truth), (scores, truth.double()), (scores[0], truth[0]), (scores[:0], truth[:0])):
        with pytest.raises(ValueError, match="scores and truth must be"):
            fmax_torchdrug(a, b)
    with pytest.raises(ValueError, match="not finite"):
        aupr_micro(scores * torch.nan, truth)
    with pytest.raises(ValueError, match="there is none"):
        fmax_cafa(scores, torch.zeros_like(truth))
