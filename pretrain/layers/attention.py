"""Ragged attention: the one function that every transformer here calls, and the one place that picks a kernel.

Shape legend: N query rows, M key rows, of all proteins end to end; H heads; D head width; B proteins.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

_lengths_on_host = WeakTensorKeyDictionary()  # offsets on a device → their segments' lengths, read from it once


@torch.compiler.disable(recursive=True)  # compiled blocks call it as it is: its loop would be unrolled for each batch
def attention(
    query_NHD: Tensor, key_MHD: Tensor, value_MHD: Tensor, query_offsets: Tensor, key_offsets: Tensor
) -> Tensor:
    """Softmax attention, [N, H, D], in which segment b of the queries sees segment b of the keys and nothing else.

    query_offsets, key_offsets: int64 [B + 1]; never written to afterwards (their lengths are remembered). Segments may
    be empty anywhere. A query whose segment has no keys gets zeros, and the result hangs on the graph of all three
    inputs even when there is not one row, so that every parameter behind them gets a gradient on every rank.

    Kernels: in half precision on CUDA one variable-length flash attention, without split-KV, because the split depends
    on the longest batch mate. Otherwise one fused call per segment; cut with `split`, whose backward is a single
    concatenation, where slicing would write a gradient as large as the whole batch for every segment. Padding to the
    longest with a mask took 3.5 times as long on CPU. Either way a protein's rows do not depend on its batch mates.
    """
    assert len(query_offsets) == len(key_offsets), f"{len(query_offsets)} query and {len(key_offsets)} key offsets"
    assert key_MHD.shape == value_MHD.shape and query_NHD.shape[1:] == key_MHD.shape[1:]
    query_lengths, key_lengths = _lengths(query_offsets), _lengths(key_offsets)
    assert sum(query_lengths) == len(query_NHD) and sum(key_lengths) == len(key_MHD), "offsets do not span the rows"
    if not any(q and k for q, k in zip(query_lengths, key_lengths, strict=True)):
        nothing = query_NHD[:0].sum() + key_MHD[:0].sum() + value_MHD[:0].sum()  # 0 whatever the values, and attached
        return torch.zeros_like(query_NHD) + nothing
    if _flash_serves(query_NHD, key_MHD, value_MHD):
        return _flash(query_NHD, key_MHD, value_MHD, query_offsets, key_offsets, max(query_lengths), max(key_lengths))
    return _by_segment(query_NHD, key_MHD, value_MHD, query_lengths, key_lengths)


def weights(query_NHD: Tensor, key_MHD: Tensor, query_offsets: Tensor, key_offsets: Tensor) -> list[Tensor]:
    """What `attention` mixes values by: per segment [H, n, m], rows of sum 1. For looking at: every score is kept."""
    query_lengths, key_lengths = _lengths(query_offsets), _lengths(key_offsets)
    parts = zip(query_NHD.split(query_lengths), key_MHD.split(key_lengths), strict=True)
    scale = query_NHD.shape[-1] ** -0.5
    return [(torch.einsum("nhd,mhd->hnm", query, key) * scale).softmax(-1) for query, key in parts]


def _by_segment(
    query_NHD: Tensor, key_MHD: Tensor, value_MHD: Tensor, query_lengths: list[int], key_lengths: list[int]
) -> Tensor:
    keys_and_values = zip(key_MHD.split(key_lengths), value_MHD.split(key_lengths), strict=True)
    parts = []
    for query, (key, value) in zip(query_NHD.split(query_lengths), keys_and_values, strict=True):
        if not len(query):
            continue
        if not len(key):
            parts.append(torch.zeros_like(query))
            continue
        query_1HND, key_1HND, value_1HND = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))
        parts.append(scaled_dot_product_attention(query_1HND, key_1HND, value_1HND).squeeze(0).transpose(0, 1))
    dtype = next((part.dtype for part in parts if part.dtype != query_NHD.dtype), query_NHD.dtype)  # autocast's, if any
    return torch.cat([part.to(dtype) for part in parts])


def _flash_serves(query_NHD: Tensor, key_MHD: Tensor, value_MHD: Tensor) -> bool:
    """Whether the variable-length kernel takes these: half precision, head width 8, 16 … 256, Ampere or newer."""
    kinds = {(rows.device.type, rows.dtype) for rows in (query_NHD, key_MHD, value_MHD)}
    if kinds not in ({("cuda", torch.bfloat16)}, {("cuda", torch.float16)}):
        return False
    width = query_NHD.shape[-1]
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(query_NHD.device) >= (8, 0)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    longest: int,
    longest_key: int,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every build of torch

    starts, key_starts = query_offsets.to(torch.int32), key_offsets.to(torch.int32)
    out = varlen_attn(query, key, value, starts, key_starts, longest, longest_key, num_splits=1)
    assert isinstance(out, Tensor)
    return out


def _lengths(offsets: Tensor) -> list[int]:
    """Each segment's length. On a device this waits for it, hence once per offsets tensor and not once per layer."""
    if offsets.device.type == "cpu":
        return offsets.diff().tolist()
    lengths = _lengths_on_host.get(offsets)
    if lengths is None:
        lengths = _lengths_on_host[offsets] = offsets.diff().tolist()
    return lengths
