"""Ragged blocks: segments are strangers to each other, zero rows are a normal input, positions stay apart."""

import math
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pretrain.batch import offsets_of
from pretrain.layers.transformer import (
    CrossBlock,
    Mark,
    SelfBlock,
    Transformer,
    compiled,
    interleave,
    recompute,
    sinusoid,
)


def offsets(*lengths: int) -> torch.Tensor:
    return offsets_of(torch.tensor(lengths, dtype=torch.int64))


def test_a_segment_alone_is_the_same_as_among_others():
    torch.manual_seed(0)
    model = Transformer(12, 2, 3)
    lengths = (4, 0, 1, 6)
    rows = torch.randn(11, 12)
    whole = model(rows, offsets(*lengths))
    for part, alone in zip(whole.split(lengths), rows.split(lengths), strict=True):
        torch.testing.assert_close(model(alone, offsets(len(alone))), part, rtol=1e-5, atol=1e-6)


def test_a_self_block_is_pytorchs_pre_norm_layer():
    torch.manual_seed(0)
    ours, theirs = (
        SelfBlock(8, 2, 3.0),
        nn.TransformerEncoderLayer(8, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True),
    )
    parts = (ours.attention.query, ours.attention.key, ours.attention.value)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
    theirs.linear1.load_state_dict(ours.mlp[0].state_dict())
    theirs.linear2.load_state_dict(ours.mlp[2].state_dict())
    rows = torch.randn(5, 8)
    torch.testing.assert_close(ours(rows, offsets(5)), theirs(rows[None])[0], rtol=1e-5, atol=1e-6)


def test_a_cross_block_reads_its_own_segment_of_the_context_in_any_order():
    torch.manual_seed(0)
    block = CrossBlock(8, 2, context_width=6)
    rows, context = torch.randn(5, 8), torch.randn(7, 6)
    out = block(rows, context, offsets(2, 3, 0), offsets(4, 1, 2))
    shuffled = torch.cat([context[:4].flip(0), context[4:]])
    torch.testing.assert_close(block(rows, shuffled, offsets(2, 3, 0), offsets(4, 1, 2)), out, rtol=1e-5, atol=1e-6)
    other = torch.cat([context[:4], context[4:].flip(1)])
    moved = block(rows, other, offsets(2, 3, 0), offsets(4, 1, 2))
    torch.testing.assert_close(moved[:2], out[:2])
    assert not torch.allclose(moved[2:], out[2:])


@pytest.mark.parametrize(("queries", "keys"), [((), ()), ((0, 0), (0, 0)), ((3, 0), (0, 0)), ((0, 0), (2, 1))])
def test_every_parameter_gets_a_gradient_without_rows_or_context(queries: tuple[int, ...], keys: tuple[int, ...]):
    torch.manual_seed(0)
    block, encoder, mark = CrossBlock(8, 2, 6), Transformer(8, 1, 2), Mark(8)
    rows = mark(torch.zeros(sum(queries), 8))
    out = encoder(block(rows, torch.randn(sum(keys), 6), offsets(*queries), offsets(*keys)), offsets(*queries))
    out.sum().backward()
    for module in (block, encoder, mark):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_positions_follow_the_formula_at_any_magnitude():
    positions = torch.tensor([0, 1, 7, 12_345, 10**9 + 7])
    table = sinusoid(positions, 6)
    for row, position in zip(table.tolist(), positions.tolist(), strict=True):
        angles = [position / 10_000 ** (i / 3) for i in range(3)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-6)
    far = sinusoid(torch.arange(10**9, 10**9 + 50), 64)
    assert torch.pdist(far).min() > 0.5  # neighbours remain distinct where float32 angles would have merged
    assert sinusoid(positions[:0], 6).shape == (0, 6)


def test_interleave_groups_rows_by_owner_list_by_list():
    owners = [torch.tensor([0, 2, 2]), torch.tensor([0, 0, 3]), torch.zeros(0, dtype=torch.int64)]
    order, bounds = interleave(owners, 5)
    assert order.tolist() == [0, 3, 4, 1, 2, 5] and bounds.tolist() == [0, 3, 3, 5, 6, 6]
    values = torch.randn(6)
    assert torch.equal(values[order][order.argsort()], values)
    order, bounds = interleave([torch.zeros(0, dtype=torch.int64)], 0)
    assert order.tolist() == [] and bounds.tolist() == [0]


def stepped(change: Callable[[nn.Module], None] | None, batches: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Outputs, gradients of the rows and, at the end, of the parameters of one model on several batches."""
    torch.manual_seed(0)
    model = Transformer(32, 2, 4)
    if change:
        change(model)
    found = []
    for lengths in batches:
        rows = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = model(rows, offsets(*lengths))
        out.square().sum().backward()
        found += [out.detach(), rows.grad]
    return found + [parameter.grad for parameter in model.parameters()]


def test_recomputed_blocks_are_the_same_to_the_bit():
    batches = [(5, 0, 40), (), (0,), (3,)]
    calls = []
    handle = SelfBlock.forward

    def counting(self: SelfBlock, rows: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return handle(self, rows, bounds)

    plain = stepped(None, batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelfBlock, "forward", counting)
        again = stepped(recompute, batches)
    assert calls.count(45) == 4  # two blocks, forward and again
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_for_any_lengths():
    batches = [(5, 0, 40), (30, 2), (0,), (100, 3, 9)]
    plain, fast = stepped(None, batches), stepped(compiled, batches)
    scale = max(float(each.abs().max()) for each in plain if each.numel())
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("setting", [recompute, compiled])
def test_a_setting_that_would_do_nothing_is_refused(setting: Callable[[nn.Module], None]):
    with pytest.raises(ValueError, match=r"engine\.(activation_checkpointing|compile): this model has no transformer"):
        setting(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
