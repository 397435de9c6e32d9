"""Ragged attention against attention written out protein by protein."""

import pytest
import torch
from torch import Tensor

from pretrain.batch import offsets_of
from pretrain.layers import attention as module
from pretrain.layers.attention import attention

HEADS, WIDTH = 3, 8


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain(query: Tensor, key: Tensor, value: Tensor, query_offsets: Tensor, key_offsets: Tensor) -> Tensor:
    """softmax(q k / sqrt(D)) v for each protein and head, in so many words."""
    out = []
    for b in range(len(query_offsets) - 1):
        q = query[query_offsets[b] : query_offsets[b + 1]]
        k, v = (x[key_offsets[b] : key_offsets[b + 1]] for x in (key, value))
        weights = (torch.einsum("nhd,mhd->hnm", q, k) / WIDTH**0.5).softmax(-1)
        out.append(torch.einsum("hnm,mhd->nhd", weights, v) if len(k) else torch.zeros_like(q))
    return torch.cat(out)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([5], [5]),
        ([5, 17, 1, 33], [5, 17, 1, 33]),
        ([4, 0, 3, 7, 0], [2, 5, 0, 9, 0]),
        ([0, 0, 6], [3, 0, 6]),
        ([6, 6, 6], [8, 8, 8]),
    ],
)
def test_values_and_gradients_equal_attention_per_protein(queries: list[int], keys: list[int]) -> None:
    query, key, value = rows(sum(queries), 1), rows(sum(keys), 2), rows(sum(keys), 3)
    offsets = offsets_of(torch.tensor(queries)), offsets_of(torch.tensor(keys))
    ours, expected = attention(query, key, value, *offsets), plain(query, key, value, *offsets)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad(ours, (query, key, value), upstream)
    for ours_, expected_ in zip(gradients, torch.autograd.grad(expected, (query, key, value), upstream), strict=True):
        torch.testing.assert_close(ours_, expected_, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("queries", "keys"), [([], []), ([0, 0], [0, 0]), ([3, 0], [0, 4]), ([0], [4]), ([2, 5], [0, 0])]
)
def test_nothing_to_attend_to_gives_zeros_attached_to_every_input(queries: list[int], keys: list[int]) -> None:
    query, key, value = rows(sum(queries)), rows(sum(keys)), rows(sum(keys))
    with torch.no_grad():
        for tensor in (query, key, value):
            tensor.fill_(torch.inf)  # zeros must not come from multiplying by zero
    out = attention(query, key, value, *(offsets_of(torch.tensor(x, dtype=torch.int64)) for x in (queries, keys)))
    assert out.shape == query.shape and out.eq(0).all()
    out.sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None and tensor.grad.eq(0).all()


def test_a_protein_does_not_depend_on_its_batch_mates() -> None:
    lengths = [40, 7, 301, 0, 64]
    query, key, value = (rows(sum(lengths), seed) for seed in (1, 2, 3))
    offsets = offsets_of(torch.tensor(lengths))
    together = attention(query, key, value, offsets, offsets)
    for b, length in enumerate(lengths):
        own = slice(int(offsets[b]), int(offsets[b + 1]))
        alone = attention(query[own], key[own], value[own], *[torch.tensor([0, length])] * 2)
        torch.testing.assert_close(together[own], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("empties", [1, 3])
def test_empty_segments_anywhere_change_no_bit(place: int, empties: int) -> None:
    """Values and gradients of the others, wherever the empty ones stand: before, between, after."""
    lengths = [6, 1, 130]
    tensors = [rows(sum(lengths), seed) for seed in (1, 2, 3)]
    found = []
    for counts in (lengths, lengths[:place] + [0] * empties + lengths[place:]):
        offsets = offsets_of(torch.tensor(counts))
        out = attention(tensors[0], tensors[1], tensors[2], offsets, offsets)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), tensors)])
    assert all(torch.equal(plain, holes) for plain, holes in zip(*found, strict=True))


def test_gradients_do_not_depend_on_batch_mates() -> None:
    lengths = [40, 0, 7, 301]
    tensors = [rows(sum(lengths), seed) for seed in (1, 2, 3)]
    offsets = offsets_of(torch.tensor(lengths))
    together = torch.autograd.grad(
        attention(tensors[0], tensors[1], tensors[2], offsets, offsets).square().sum(), tensors
    )
    for b, length in enumerate(lengths):
        own = slice(int(offsets[b]), int(offsets[b + 1]))
        query, key, value = (each[own].detach().requires_grad_() for each in tensors)
        out = attention(query, key, value, *[torch.tensor([0, length])] * 2)
        for alone, whole in zip(torch.autograd.grad(out.square().sum(), (query, key, value)), together, strict=True):
            torch.testing.assert_close(whole[own], alone, atol=1e-6, rtol=0)


def test_offsets_that_do_not_span_the_rows_are_refused() -> None:
    with pytest.raises(AssertionError, match="span"):
        attention(rows(5), rows(5), rows(5), torch.tensor([0, 4]), torch.tensor([0, 5]))


def test_autocast_lowers_the_precision_of_segments_without_keys_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(rows(5), rows(2), rows(2), torch.tensor([0, 3, 5]), torch.tensor([0, 0, 2]))
    assert out.dtype == torch.bfloat16 and out[:3].eq(0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_kernels_equal_the_cpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = [4, 0, 3, 7, 0, 130], [2, 5, 0, 9, 0, 200]
    offsets = offsets_of(torch.tensor(queries)), offsets_of(torch.tensor(keys))
    query, key, value = rows(sum(queries), 1), rows(sum(keys), 2), rows(sum(keys), 3)
    expected = attention(query, key, value, *offsets)
    expected.sum().backward()
    moved = [x.detach().to("cuda", dtype).requires_grad_() for x in (query, key, value)]
    called = []
    flash = module._flash
    monkeypatch.setattr(module, "_flash", lambda *arguments: called.append(1) or flash(*arguments))
    out = attention(*moved, *(o.cuda() for o in offsets))
    out.sum().backward()
    assert len(called) == (dtype == torch.bfloat16)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.float().cpu(), expected, atol=tolerance, rtol=0)
    for ours, theirs in zip(moved, (query, key, value), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.float().cpu(), theirs.grad, atol=5 * tolerance, rtol=0)
