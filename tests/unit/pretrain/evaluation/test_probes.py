"""Probes: they find what embeddings hold, nothing where they hold nothing, and never look at the test split."""

import pytest
import torch

from pretrain.evaluation.metrics import aupr_micro, fmax_torchdrug
from pretrain.evaluation.probes import Labelled, ProbeConfig, probe


def split(count: int, seed: int, known: bool = True) -> Labelled:
    """Labels are signs of four directions; or of four that the embeddings do not have."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    rows, other = torch.randn(count, 8, generator=draw), torch.randn(count, 8, generator=draw)
    return Labelled(100 + 5 * rows, (rows if known else other) @ directions > 1)


def three(*counts: int, known: bool = True) -> tuple[Labelled, Labelled, Labelled]:
    one, two, other = (split(n, n, known) for n in counts)
    return one, two, other


@pytest.mark.parametrize("hidden", [0, 32])
def test_it_finds_what_is_there_and_nothing_else(hidden: int) -> None:
    config = ProbeConfig(hidden=hidden, lr=1e-2, dropout=0.0, epochs=60)
    found, nothing = (probe(*three(600, 200, 201, known=known), config) for known in (True, False))
    assert found.fmax > 0.85 and found.aupr > 0.95 and found.valid_fmax > 0.85
    assert nothing.aupr < 0.55 and nothing.fmax < found.fmax - 0.2
    test = split(201, 201)
    assert found.fmax == fmax_torchdrug(found.scores, test.labels) and found.aupr == aupr_micro(
        found.scores, test.labels
    )


def test_it_is_the_same_again_and_chosen_by_validation_alone() -> None:
    parts = three(300, 100, 101)
    config = ProbeConfig(hidden=16, epochs=8)
    state = torch.get_rng_state()
    one, again, other = probe(*parts, config), probe(*parts, config), probe(*parts, config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.scores, again.scores) and not torch.equal(one.scores, other.scores)
    wrong = Labelled(parts[2].embeddings, ~parts[2].labels)
    assert torch.equal(probe(parts[0], parts[1], wrong, config).scores, one.scores)


def test_it_stops_when_validation_does_not_improve() -> None:
    parts = three(100, 101, 50, known=False)
    assert probe(*parts, ProbeConfig(hidden=64, epochs=10_000, patience=5)).epoch < 1000


def test_a_constant_column_says_nothing() -> None:
    config, values = ProbeConfig(hidden=0, lr=1e-2, epochs=60), (3.0, 3.0, 1e6)
    more = [
        Labelled(torch.cat([p.embeddings, torch.full((len(p.labels), 1), value)], 1), p.labels)
        for p, value in zip(three(200, 100, 101), values, strict=True)
    ]
    found = probe(more[0], more[1], more[2], config)
    assert found.scores.isfinite().all() and found.aupr > 0.8


def test_what_is_no_split_is_refused() -> None:
    good = split(20, 0)
    with pytest.raises(ValueError, match=r"needs embeddings \[N, D\] and labels \[N, K\]"):
        Labelled(good.embeddings, good.labels[:3])
    with pytest.raises(ValueError, match="embeddings that are finite"):
        Labelled(good.embeddings * torch.inf, good.labels)
    with pytest.raises(ValueError, match="the same width and labels"):
        probe(good, good, Labelled(good.embeddings[:, :3], good.labels))
