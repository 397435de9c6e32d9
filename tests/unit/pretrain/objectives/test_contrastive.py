"""InfoNCE in parts equals InfoNCE in one piece: values and gradients, also of the temperature, also with holes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pretrain.objectives import contrastive
from pretrain.objectives.contrastive import Rows, collect, gather, info_nce
from pretrain.sample import Modality

A, B = Modality.SEQUENCE, Modality.FUNCTION


def naive(left: list[Tensor | None], right: list[Tensor | None], temperature: Tensor) -> Tensor:
    """Anchor by anchor over the rows that have both."""
    rows = [i for i in range(len(left)) if left[i] is not None and right[i] is not None]
    total = temperature.sum() * 0
    for here, there in ((left, right), (right, left)):
        for i in rows:
            scores = {j: (here[i] * there[j]).sum() / temperature for j in rows}  # type: ignore[operator]
            denominator = torch.stack([score.exp().sum() for score in scores.values()]).sum()
            total = total - (scores[i].exp().sum() / denominator).log() / 2
    return total


def example(presence: list[tuple[int, int]]) -> tuple[Rows, Tensor]:
    torch.manual_seed(1)
    present = torch.tensor(presence, dtype=torch.bool).reshape(-1, 2)
    values = [normalize(torch.randn(len(present), 5), dim=1) * present[:, i : i + 1] for i in range(2)]
    tables = {A: values[0].requires_grad_(), B: values[1].requires_grad_()}
    temperature = torch.tensor([0.3], requires_grad=True)
    return Rows(tables, {A: present[:, 0], B: present[:, 1]}, [(A, B)], temperature), temperature


PRESENCE = {
    "all": [(1, 1)] * 6,
    "holes": [(1, 1), (1, 0), (1, 1), (0, 1), (0, 0), (1, 1), (1, 1)],
    "one pair": [(1, 0), (1, 1), (0, 1)],
    "no pair": [(1, 0), (0, 1)],
    "nothing": [],
}


@pytest.mark.parametrize("case", PRESENCE)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_sum_to_the_whole(case: str, parts: int):
    rows, temperature = example(PRESENCE[case])
    inputs = [rows.embeddings[A], rows.embeddings[B], temperature]
    columns = [
        [v if p else None for v, p in zip(rows.embeddings[m].unbind(), rows.present[m], strict=True)] for m in (A, B)
    ]
    expected = naive(columns[0], columns[1], temperature)
    expected_grads = torch.autograd.grad(expected, inputs, allow_unused=True)

    size = len(PRESENCE[case])
    slots = [torch.arange(size)[part::parts] for part in range(parts)]  # interleaved: parts need not be contiguous
    cut = [
        replace(
            rows,
            embeddings={m: values[at] for m, values in rows.embeddings.items()},
            present={m: here[at] for m, here in rows.present.items()},
        )
        for at in slots
    ]
    negatives = collect(cut, slots)
    assert not any(values.requires_grad for values in negatives.rows.embeddings.values())
    total, grads, count = torch.zeros(()), [torch.zeros_like(each) for each in inputs], 0
    for part, places in zip(cut, slots, strict=True):
        loss, rows_having_both = negatives.with_own(part, places).info_nce((A, B))
        count += rows_having_both
        total = total + loss.detach()
        for grad, new in zip(grads, torch.autograd.grad(loss, inputs, retain_graph=True), strict=True):
            grad += new
    assert count == sum(a and b for a, b in PRESENCE[case])
    if count < 2:
        assert total.item() == 0 and not any(grad.any() for grad in grads)
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-6)
    for grad, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if want is None else want, rtol=1e-4, atol=1e-6)


def test_rows_lacking_a_side_do_not_matter():
    rows, temperature = example(PRESENCE["holes"])
    both = rows.present[A] & rows.present[B]
    own = torch.ones(7, dtype=torch.bool)
    value = info_nce(rows.embeddings[A], rows.embeddings[B], both, own, temperature)
    other = torch.where(both.unsqueeze(1), rows.embeddings[A], torch.nan)
    assert torch.equal(info_nce(other, rows.embeddings[B], both, own, temperature), value)


def test_gathered_rows_are_the_ranks_in_order_with_one_live(monkeypatch):
    rows, _ = example([(1, 1), (0, 1)])
    others, _ = example([(1, 0), (1, 1), (0, 0)])

    def two_ranks(table: Tensor) -> tuple[Tensor, int]:
        assert table.shape == (2, 12)
        return torch.cat([contrastive._pack(others).detach(), table]), 3

    monkeypatch.setattr(contrastive, "gather_rows", two_ranks)
    compared = gather(rows)
    step = compared.rows
    assert compared.own.tolist() == [False] * 3 + [True] * 2
    assert step.present[A].tolist() == [True, True, False, True, False]
    assert step.present[B].tolist() == [False, True, False, True, True]
    for m in (A, B):
        assert torch.equal(step.embeddings[m], torch.cat([others.embeddings[m], rows.embeddings[m]]))


def test_a_slot_that_nobody_filled_is_absent():
    rows, _ = example([(1, 1), (1, 1)])
    negatives = collect([rows], [torch.tensor([3, 1])])
    assert negatives.rows.present[A].tolist() == [False, True, False, True]
    filled = negatives.rows.embeddings[B]
    assert torch.equal(filled[[3, 1]], rows.embeddings[B]) and not filled[[0, 2]].any()


def test_half_precision_is_compared_in_float32():
    rows, temperature = example(PRESENCE["all"])
    every = torch.ones(6, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(rows.embeddings[A], rows.embeddings[B], every, every, temperature)
    assert torch.equal(loss, info_nce(rows.embeddings[A], rows.embeddings[B], every, every, temperature))


def whole(left: Tensor, right: Tensor, both: Tensor, temperature: Tensor) -> Tensor:
    """The uncut loss with the whole matrix."""
    scores = left[both] @ right[both].T / temperature
    return -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).sum() / 2


@pytest.mark.parametrize("heat", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("block", [(7, 16), (64, 64), (1000, 1000)])
def test_blocks_make_no_difference(block: tuple[int, int], heat: float, monkeypatch: pytest.MonkeyPatch):
    """At CLIP's coldest temperature scores span e^±100, which no single shift of the exponent would hold."""
    monkeypatch.setitem(contrastive.BLOCK, "cpu", block)
    draw = torch.Generator().manual_seed(0)
    tables = [normalize(torch.randn(90, 24, generator=draw, dtype=torch.float64), dim=1) for _ in range(2)]
    both = torch.rand(90, generator=draw) < 0.8
    exact = [each.requires_grad_() for each in (*tables, torch.tensor([heat], dtype=torch.float64))]
    expected = whole(exact[0], exact[1], both, exact[2])
    wanted = torch.autograd.grad(expected, exact)

    inputs = [each.detach().float().requires_grad_() for each in exact]
    loss = info_nce(inputs[0], inputs[1], both, torch.ones_like(both), inputs[2])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    plain = torch.autograd.grad(whole(inputs[0], inputs[1], both, inputs[2]), inputs)
    for got, want, naively in zip(torch.autograd.grad(loss, inputs), wanted, plain, strict=True):
        scale = float(want.abs().max())
        rounding = float((naively - want).abs().max()) / scale  # what float32 costs the whole matrix
        assert float((got - want).abs().max()) / scale < max(1e-6, 4 * rounding)


def test_a_small_loss_is_as_exact_as_a_large_one():
    """Pairs that score far above the rest: their loss is near 0, and a score near 14."""
    draw = torch.Generator().manual_seed(0)
    left = normalize(torch.randn(40, 24, generator=draw, dtype=torch.float64), dim=1)
    right = normalize(left + 0.05 * torch.randn(40, 24, generator=draw, dtype=torch.float64), dim=1)
    exact = [each.requires_grad_() for each in (left, right, torch.tensor([0.07], dtype=torch.float64))]
    every = torch.ones(40, dtype=torch.bool)
    expected = whole(exact[0], exact[1], every, exact[2])
    assert expected.item() < 40 * 0.05
    inputs = [each.detach().float().requires_grad_() for each in exact]
    loss = info_nce(inputs[0], inputs[1], every, every, inputs[2])
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for got, want in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, exact), strict=True):
        assert float((got - want).abs().max()) < 2e-6 * float(want.abs().max())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_no_tensor_is_as_large_as_the_matrix(share: float, monkeypatch: pytest.MonkeyPatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            found = [each for each in (out if isinstance(out, tuple | list) else [out]) if isinstance(each, Tensor)]
            self.elements = max(self.elements, *(each.numel() for each in found), 0)
            return out

    monkeypatch.setitem(contrastive.BLOCK, "cpu", (16, 32))
    left, right = (normalize(torch.randn(400, 4), dim=1).requires_grad_() for _ in range(2))
    own = torch.rand(400) < share if share < 1 else torch.ones(400, dtype=torch.bool)
    with Largest() as largest:
        info_nce(left, right, torch.ones_like(own), own, torch.tensor([0.07], requires_grad=True)).backward()
    assert largest.elements == 400 * 4
