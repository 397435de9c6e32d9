"""Fusion by residue: who meets whom, every equation one residue at a time, gradients, and what passes through."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, layer_norm, linear
from torch.utils.flop_counter import FlopCounterMode

from pretrain.batch import offsets_of, owners_of
from pretrain.layers.fusion import BRANCHES, SEQUENCE, STRUCTURE, Attend, Cross, Exchange, Feed, Gate, Joint, joined
from pretrain.layers.transformer import sinusoid

WIDTHS = {SEQUENCE: 6, STRUCTURE: 4}
# Length of the sequence, positions of the structure's residues: both, sequence alone, neither, structure alone, both.
PROTEINS: list[tuple[int, list[int]]] = [(5, [1, 2, 4]), (3, []), (0, []), (0, [2, 7, 8]), (2, [0, 1])]


def joint_of(proteins: list[tuple[int, list[int]]]) -> Joint:
    sequence = offsets_of(torch.tensor([length for length, _ in proteins], dtype=torch.int64))
    structure = offsets_of(torch.tensor([len(places) for _, places in proteins], dtype=torch.int64))
    return Joint.of(sequence, structure, torch.tensor([p for _, each in proteins for p in each], dtype=torch.int64))


def rows_of(joint: Joint) -> dict[Any, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        m: torch.randn(int(joint.rows[m][-1]), WIDTHS[m], generator=draw, dtype=torch.float64).requires_grad_(True)
        for m in BRANCHES
    }


def drawn(module: nn.Module) -> Any:
    """In float64, every parameter drawn, those that begin at 0 as well."""
    module.double()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=draw)
    return module


def told(module: nn.Module, rows: dict[Any, Tensor], joint: Joint) -> dict[Any, Tensor]:
    return dict(zip(BRANCHES, module(rows[SEQUENCE], rows[STRUCTURE], joint), strict=True))


def test_rows_meet_by_residue() -> None:
    joint = joint_of(PROTEINS)
    assert joint.offsets.tolist() == [0, 5, 8, 8, 11, 13]
    told, seen, at = [], [], 0
    first = {SEQUENCE: 0, STRUCTURE: 0}
    pairs = []
    for length, places in PROTEINS:
        told += [at + i for i in range(length)]
        seen += [at + (place if length else i) for i, place in enumerate(places)]
        if length:
            pairs += [(first[SEQUENCE] + place, first[STRUCTURE] + i) for i, place in enumerate(places)]
        first = {SEQUENCE: first[SEQUENCE] + length, STRUCTURE: first[STRUCTURE] + len(places)}
        at += length or len(places)
    assert joint.places[SEQUENCE].tolist() == told and joint.places[STRUCTURE].tolist() == seen
    assert list(zip(joint.pairs[SEQUENCE].tolist(), joint.pairs[STRUCTURE].tolist(), strict=True)) == pairs
    assert joint.positions[SEQUENCE].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    with pytest.raises(AssertionError, match="beyond its sequence"):
        joint_of([(3, [1, 3])])


def test_the_gate_is_its_equations() -> None:
    joint, gate = joint_of(PROTEINS), drawn(Gate(WIDTHS, 8, BRANCHES))
    rows = rows_of(joint)
    found = told(gate, rows, joint)
    expected = {m: rows[m].detach().clone() for m in BRANCHES}
    weight = dict(gate.named_parameters())

    def given(m: Any, row: int) -> Tensor:
        normed = layer_norm(rows[m][row], (WIDTHS[m],), weight[f"norms.{m}.weight"], weight[f"norms.{m}.bias"])
        return weight[f"given.{m}.weight"] @ normed + weight[f"given.{m}.bias"]

    def score(row: Tensor) -> Tensor:
        hidden = gelu(weight["score.0.weight"] @ row + weight["score.0.bias"])
        return weight["score.2.weight"] @ hidden + weight["score.2.bias"]

    for i, j in zip(joint.pairs[SEQUENCE].tolist(), joint.pairs[STRUCTURE].tolist(), strict=True):
        one, other = given(SEQUENCE, i), given(STRUCTURE, j)
        a, b = (score(one) + score(other)).exp()
        mixed = (a * one + b * other) / (a + b)
        for m, row in ((SEQUENCE, i), (STRUCTURE, j)):
            expected[m][row] += weight[f"back.{m}.weight"] @ mixed + weight[f"back.{m}.bias"]
    for m in BRANCHES:
        torch.testing.assert_close(found[m], expected[m])
        alone = sorted(set(range(len(rows[m]))) - set(joint.pairs[m].tolist()))
        assert len(alone) > 2 and torch.equal(found[m][alone], rows[m][alone])  # they pass through


def test_the_attention_is_its_equations() -> None:
    joint, attend = joint_of(PROTEINS), drawn(Attend(WIDTHS, 8, 2, BRANCHES))
    rows = rows_of(joint)
    found = told(attend, rows, joint)
    weight: dict[str, Tensor] = dict(attend.named_parameters())
    for protein in range(len(PROTEINS)):
        every, mine = [], {}
        for m in BRANCHES:
            mine[m] = (owners_of(joint.rows[m]) == protein).nonzero().squeeze(1).tolist()
            for row in mine[m]:
                normed = layer_norm(rows[m][row], (WIDTHS[m],), weight[f"norms.{m}.weight"], weight[f"norms.{m}.bias"])
                each = weight[f"given.{m}.linear.weight"] @ normed + weight[f"given.{m}.linear.bias"]
                place = sinusoid(joint.positions[m][row : row + 1], 8)[0]
                every.append(each + place + weight[f"given.{m}.mark.vector"])
        if not every:
            continue
        table = torch.stack(every)
        query, key, value = (
            linear(table, weight[f"attention.{name}.weight"], weight[f"attention.{name}.bias"])
            for name in ("query", "key", "value")
        )
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            heads.append((query[:, h] @ key[:, h].T / math.sqrt(4)).softmax(1) @ value[:, h])
        heard = linear(torch.cat(heads, 1), weight["attention.out.weight"], weight["attention.out.bias"])
        at = 0
        for m in BRANCHES:
            for row in mine[m]:
                back = weight[f"back.{m}.weight"] @ heard[at] + weight[f"back.{m}.bias"]
                torch.testing.assert_close(found[m][row], rows[m][row] + back)
                at += 1


def test_a_cross_attention_reads_the_other_branch_of_the_same_protein() -> None:
    joint, cross = joint_of(PROTEINS), drawn(Cross(6, 2, BRANCHES))
    rows = {m: torch.randn(int(joint.rows[m][-1]), 6, dtype=torch.float64, requires_grad=True) for m in BRANCHES}
    found = told(cross, rows, joint)
    for m, other in ((SEQUENCE, STRUCTURE), (STRUCTURE, SEQUENCE)):
        block = cross.blocks[m]
        want = block(rows[m], rows[other], joint.rows[m], joint.rows[other])
        torch.testing.assert_close(found[m], want)
        (touched,) = torch.autograd.grad(found[m][0].sum(), rows[other], retain_graph=True)
        assert torch.equal(touched.abs().sum(1) > 0, owners_of(joint.rows[other]) == 0)
    assert list(Cross(6, 2, (STRUCTURE,)).blocks) == ["structure"]
    assert torch.equal(drawn(Cross(6, 2, (STRUCTURE,)))(*rows.values(), joint)[0], rows[SEQUENCE])


def test_a_feed_adds_the_sequence_to_the_structure() -> None:
    joint, feed = joint_of(PROTEINS), drawn(Feed(6, 4))
    rows = rows_of(joint)
    found, expected = feed(*rows.values(), joint), rows[STRUCTURE].detach().clone()
    for i, j in zip(joint.pairs[SEQUENCE].tolist(), joint.pairs[STRUCTURE].tolist(), strict=True):
        expected[j] += feed.back(feed.norm(rows[SEQUENCE][i]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("first", [False, True])
def test_a_residues_row_is_the_mean_of_its_branches(first: bool) -> None:
    joint = joint_of(PROTEINS)
    rows = {m: torch.randn(int(joint.rows[m][-1]), 5) for m in BRANCHES}
    found = joined(rows, joint.places, int(joint.offsets[-1]) + 1, first)
    for residue in range(len(found)):
        has = {m: (joint.places[m] == residue).nonzero().squeeze(1).tolist() for m in BRANCHES}
        parts = [rows[m][i] for m in BRANCHES for i in has[m]]
        parts = [rows[STRUCTURE][i] for i in has[STRUCTURE]] if first and has[STRUCTURE] else parts
        want = torch.stack(parts).mean(0) if parts else torch.zeros(5)
        torch.testing.assert_close(found[residue], want)
    assert not found[-1].any()


@pytest.mark.parametrize("levels", [("local",), ("global",), ("local", "global")])
def test_gradients_are_those_of_finite_differences(levels: tuple[str, ...]) -> None:
    joint, exchange = joint_of(PROTEINS), drawn(Exchange(WIDTHS, 4, 2, levels, BRANCHES))
    rows = rows_of(joint)
    parameters = tuple(exchange.parameters())

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return exchange(*values[:2], joint)

    assert torch.autograd.gradcheck(run, (*rows.values(), *parameters), eps=1e-6, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("into", [BRANCHES, (SEQUENCE,), (STRUCTURE,)])
def test_it_begins_without_effect_and_reaches_only_who_is_told(into: tuple[Any, ...]) -> None:
    joint = joint_of(PROTEINS)
    rows = rows_of(joint)
    exchange = Exchange(WIDTHS, 8, 2, ("local", "global"), into).double()
    assert all(torch.equal(found, rows[m]) for m, found in told(exchange, rows, joint).items())
    found = told(drawn(exchange), rows, joint)
    assert {m for m in BRANCHES if not torch.equal(found[m], rows[m])} == set(into)


@torch.no_grad()
def test_batch_mates_do_not_matter_and_nothing_is_a_batch() -> None:
    joint, exchange = joint_of(PROTEINS), drawn(Exchange(WIDTHS, 8, 2, ("local", "global"), BRANCHES))
    rows = rows_of(joint)
    together = told(exchange, rows, joint)
    for i, one in enumerate(PROTEINS):
        spans = {m: slice(*joint.rows[m][i : i + 2].tolist()) for m in BRANCHES}
        alone = told(exchange, {m: rows[m][spans[m]] for m in BRANCHES}, joint_of([one]))
        for m in BRANCHES:
            torch.testing.assert_close(together[m][spans[m]], alone[m])
    assert all(len(part) == 0 for part in exchange(*(rows[m][:0] for m in BRANCHES), joint_of([])))


def test_flops_are_those_of_a_counter() -> None:
    joint = joint_of(PROTEINS)
    rows = rows_of(joint)
    same = {m: torch.randn(int(joint.rows[m][-1]), 6, dtype=torch.float64) for m in BRANCHES}
    parts: list[Any] = [
        Gate(WIDTHS, 8, BRANCHES),
        Attend(WIDTHS, 8, 2, (STRUCTURE,)),
        Feed(6, 4),
        Cross(6, 2, BRANCHES),
    ]
    for part in parts:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            part.double()(*(same if isinstance(part, Cross) else rows).values(), joint)
        assert part.flops(joint) == counter.get_total_flops() > 0, type(part)
