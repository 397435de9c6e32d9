"""Several positives: groups by search, L_out anchor by anchor, and parts that sum to it in value and gradient."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pretrain.objectives.contrastive import Rows, collect, gather, info_nce
from pretrain.objectives.positives import groups, spread

PAIR = ("sequence", "function")


def searched(codes: list[list[int]]) -> list[int]:
    """For each row the least one that a chain of shared codes leads to."""
    found = []
    for row in range(len(codes)):
        reached, more = {row}, [row]
        while more:
            here = set(codes[more.pop()]) - {0}
            new = {i for i, other in enumerate(codes) if here & set(other)} - reached
            reached |= new
            more += new
        found.append(min(reached))
    return found


@pytest.mark.parametrize(
    "codes",
    [
        [[5], [0], [5], [7], [0], [7], [5]],
        [[1, 2], [3, 2], [3, 4], [0, 4], [0, 0], [9, 9], [0, 0], [2, 0]],
        [[i, i + 1] for i in range(1, 60)],  # a chain
        [[(i * 37) % 60 + 1, (i * 37 + 1) % 60 + 1] for i in range(59)],  # the same, out of order
        [[-4, 3], [3, -4]],
        [],
    ],
)
def test_groups_are_what_a_search_finds(codes: list[list[int]]) -> None:
    assert groups(torch.tensor(codes, dtype=torch.int64).reshape(len(codes), -1 if codes else 2)).tolist() == searched(
        codes
    )


def test_groups_of_random_codes() -> None:
    draw = torch.Generator().manual_seed(0)
    for high in (2, 20, 100, 300):
        codes = torch.randint(0, high, (80, 2), generator=draw)
        assert groups(codes).tolist() == searched(codes.tolist())


def naive(left: Tensor, right: Tensor, both: Sequence[bool], heat: Tensor, group: Sequence[int]) -> Tensor:
    """SupCon's L_out, both ways, anchor by anchor."""
    rows = [i for i, there in enumerate(both) if there]
    total = heat.sum() * 0
    for here, there in ((left, right), (right, left)):
        for i in rows:
            scores = {j: (here[i] * there[j]).sum() / heat.squeeze() for j in rows}
            whole = torch.stack(list(scores.values())).logsumexp(0)
            positives = [j for j in rows if group[j] == group[i]]
            total = total - sum((scores[j] - whole for j in positives), torch.zeros(())) / len(positives) / 2
    return total


def example(size: int = 12) -> tuple[list[Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    tables = [normalize(torch.randn(size, 5, generator=draw, dtype=torch.float64), dim=1) for _ in range(2)]
    both = torch.rand(size, generator=draw) < 0.8
    codes = torch.randint(0, 5, (size, 2), generator=draw) * torch.tensor([[1, 0]])
    codes[4:6, 1], codes[7, 1] = 40, 40
    return [each.requires_grad_() for each in (*tables, torch.tensor([0.2], dtype=torch.float64))], both, codes


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_sum_to_l_out(parts: int) -> None:
    inputs, both, codes = example()
    group = groups(codes)
    assert len(set(group.tolist())) < 9 and len(set(group[both].tolist())) > 2
    expected = naive(inputs[0], inputs[1], both.tolist(), inputs[2], group.tolist())
    wanted = torch.autograd.grad(expected, inputs)
    slots = [torch.arange(12)[part::parts] for part in range(parts)]
    single = [each.detach().float().requires_grad_() for each in inputs]
    cut = [
        Rows(
            dict(zip(PAIR, (single[0][at] * both[at, None], single[1][at] * both[at, None]), strict=True)),
            dict.fromkeys(PAIR, both[at]), [PAIR], single[2], codes[at], [PAIR],
        )
        for at in slots
    ]  # fmt: skip
    negatives = collect(cut, slots)
    total, grads = 0.0, [torch.zeros_like(each) for each in single]
    for part, at in zip(cut, slots, strict=True):
        loss, _ = negatives.with_own(part, at).info_nce(PAIR)
        total += loss.item()
        for grad, new in zip(grads, torch.autograd.grad(loss, single, retain_graph=True), strict=True):
            grad += new
    assert total == pytest.approx(expected.item(), rel=1e-6)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad.double(), want, rtol=1e-4, atol=1e-5)
    if parts == 1:
        whole, count = gather(cut[0]).info_nce(PAIR)
        assert whole.item() == pytest.approx(total) and count == int(both.sum())
        other = replace(cut[0], grouped=())
        assert gather(other).info_nce(PAIR)[0].item() != pytest.approx(total, rel=1e-3)


def test_gradients_are_those_of_finite_differences() -> None:
    """In float32 inside, so against the loss itself in float64, and against its slope."""
    inputs, both, codes = example()
    group, every = groups(codes), torch.ones_like(both)

    def loss(*given: Tensor) -> Tensor:
        return naive(given[0], given[1], both.tolist(), given[2], group.tolist())

    assert torch.autograd.gradcheck(loss, inputs)
    left, right, heat = single = [each.detach().float().requires_grad_() for each in inputs]
    ours = info_nce(left, right, both, every, heat) + spread(left, right, both, every, heat, group)
    for got, want in zip(torch.autograd.grad(ours, single), torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_rows_that_lack_a_side_and_rows_alone_add_nothing() -> None:
    (left, right, heat), both, codes = example()
    group, every = groups(codes), torch.ones_like(both)
    value = spread(left, right, both, every, heat, group)
    changed = torch.where(both[:, None], left, torch.nan)
    assert torch.equal(spread(changed, right, both, every, heat, group), value)
    alone = spread(left, right, both, every, heat, torch.arange(12))
    assert alone.item() == 0 and not any(grad.any() for grad in torch.autograd.grad(alone, (left, right, heat)))
    nobody = spread(left[:0], right[:0], both[:0], every[:0], heat, group[:0])
    assert nobody.item() == 0 and nobody.requires_grad


def test_each_pair_has_its_temperature() -> None:
    (left, right, _), both, _ = example()
    tables = {"a": left.float(), "b": right.float(), "c": right.float().roll(1, 0)}
    pairs = [("a", "b"), ("a", "c")]
    heats = torch.tensor([0.1, 0.5], requires_grad=True)
    step = gather(Rows(tables, dict.fromkeys("abc", both), pairs, heats))
    for place, (pair, heat) in enumerate(zip(pairs, ([0.1], [0.5]), strict=True)):
        value, _ = step.info_nce(pair)
        every = torch.ones_like(both)
        assert torch.equal(value, info_nce(tables[pair[0]], tables[pair[1]], both, every, torch.tensor(heat)))
        (grad,) = torch.autograd.grad(value, heats)
        assert grad[place] != 0 and grad[1 - place] == 0


@pytest.mark.parametrize("grouped", [False, True])
def test_a_protein_is_no_negative_of_itself(grouped: bool) -> None:
    """It may be in a step twice, with another text or structure: in every pair, grouped by text or not."""
    (left, right, heat), both, codes = example()
    proteins = torch.tensor([7, 1, 7, 2, 3, 4, 5, 6, 8, 9, 1, 7])
    pair, every = [PAIR] if grouped else [], torch.cat([codes, proteins.unsqueeze(1)], 1)
    sides = dict(zip(PAIR, (left.float(), right.float()), strict=True))
    rows = Rows(sides, dict.fromkeys(PAIR, both), [PAIR], heat.float(), codes if grouped else None, pair, proteins)
    wanted = naive(left, right, both.tolist(), heat, groups(every if grouped else proteins.unsqueeze(1)).tolist())
    assert gather(rows).info_nce(PAIR)[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(0))
    cut = [order[:5], order[5:]]
    parts = [
        replace(
            rows, embeddings={name: table[at] for name, table in sides.items()}, present=dict.fromkeys(PAIR, both[at]),
            codes=codes[at] if grouped else None, proteins=proteins[at],
        )
        for at in cut
    ]  # fmt: skip
    negatives = collect(parts, cut)
    total = sum(negatives.with_own(part, at).info_nce(PAIR)[0].item() for part, at in zip(parts, cut, strict=True))
    assert total == pytest.approx(wanted.item(), rel=1e-5)
