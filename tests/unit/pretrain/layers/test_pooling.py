"""Gated multiple-instance pooling against the paper's equations, written as a loop over bags and rows."""

import pytest
import torch
from torch import Tensor

from pretrain.batch import offsets_of
from pretrain.layers.pooling import GatedPooling

SIZES = [3, 0, 1, 5]


def made(width: int = 6, hidden: int = 4, sizes: list[int] = SIZES) -> tuple[GatedPooling, Tensor, Tensor]:
    torch.manual_seed(1)
    return GatedPooling(width, hidden), torch.randn(sum(sizes), width), offsets_of(torch.tensor(sizes))


def test_it_is_the_papers_sum() -> None:
    module, rows, offsets = made()
    tell, gate = module.sides.weight.chunk(2)
    with torch.no_grad():
        found = module(rows, offsets)
        for bag, size in zip(range(4), SIZES, strict=True):
            own = rows[offsets[bag] : offsets[bag + 1]]
            scores = [float(module.score.weight[0] @ (torch.tanh(tell @ h) * torch.sigmoid(gate @ h))) for h in own]
            total = sum(torch.tensor(s).exp() for s in scores)
            slow = torch.zeros(6)
            for score, h in zip(scores, own, strict=True):
                slow = slow + torch.tensor(score).exp() / total * h
            torch.testing.assert_close(found[bag], slow, atol=1e-6, rtol=1e-5)
            assert size or not found[bag].any()


def test_gradients_are_those_of_finite_differences() -> None:
    module, rows, offsets = made()
    module = module.double()
    names = list(dict(module.named_parameters()))

    def run(rows: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (rows, offsets))

    inputs = [rows.double(), *(p.detach().clone() for p in module.parameters())]
    assert torch.autograd.gradcheck(run, [each.requires_grad_(True) for each in inputs])


def test_neither_order_nor_other_bags_matter() -> None:
    module, rows, offsets = made()
    found = module(rows, offsets)
    torch.testing.assert_close(module(rows[[2, 0, 1]], offsets[:2]), found[:1])
    torch.testing.assert_close(module(rows[4:], torch.tensor([0, 5])), found[3:])
    shares = module.shares(rows, offsets)
    torch.testing.assert_close(torch.stack([part.sum() for part in shares.split(SIZES)]), torch.tensor([1.0, 0, 1, 1]))


def test_large_scores_do_not_overflow() -> None:
    module, rows, offsets = made()
    with torch.no_grad():
        module.score.weight.mul_(1e4)
    assert module(rows, offsets).isfinite().all()


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_nothing_is_zero_and_attached(sizes: list[int]) -> None:
    module, rows, _ = made(sizes=sizes)
    found = module(rows, torch.zeros(len(sizes) + 1, dtype=torch.int64))
    assert found.shape == (len(sizes), 6)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_what_it_costs_is_counted() -> None:
    module, _, offsets = made()
    assert module.flops(offsets.diff()) == 2 * 9 * (6 * 8 + 4)
