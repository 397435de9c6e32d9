"""Who is near whom in space: pairs of residues by their Cα, protein by protein, so that no batch mate is near.

On a CPU a tree for each protein; on a GPU every residue held against all of its protein, in blocks, because there that
is done before the host has the coordinates. A residue without a Cα is near nobody.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from pretrain.batch import Structures, lengths_of, owners_of
from pretrain.sample import BACKBONE

ALPHA = BACKBONE.index("CA")
PAIRS = 1 << 22  # that are looked at together; 32 MB for a distance of each

Pairs = tuple[Tensor, Tensor]  # (source, target), int64 [E] each


def nearest(structures: Structures, count: int) -> Pairs:
    """Of every target its nearest `count` others."""
    return near(structures, None, count)[1]


def near(structures: Structures, radius: float | None, count: int) -> tuple[Pairs, Pairs]:
    """(pairs within `radius` Å, none where it is None; pairs of every target and its nearest `count` others)."""
    return (_searched if structures.coordinates.is_cuda else _looked_up)(structures, radius, count)


def _looked_up(structures: Structures, radius: float | None, count: int) -> tuple[Pairs, Pairs]:
    points = structures.coordinates[:, ALPHA].double().numpy()
    has = structures.mask[:, ALPHA].numpy()
    found: tuple[list[NDArray], list[NDArray]] = ([], [])
    for begin, end in pairwise(structures.offsets.tolist()):
        rows = begin + np.flatnonzero(has[begin:end])
        if len(rows) < 2:
            continue
        tree = KDTree(points[rows])
        for pairs, local in zip(found, (_within(tree, radius), _nearest(tree, count)), strict=True):
            pairs.append(rows[local])
    within, nearest = (torch.from_numpy(np.concatenate([np.zeros((2, 0), np.int64), *each], axis=1)) for each in found)
    return (within[0], within[1]), (nearest[0], nearest[1])


def _searched(structures: Structures, radius: float | None, count: int) -> tuple[Pairs, Pairs]:
    rows, device = len(structures.letters), structures.offsets.device
    points, has = structures.coordinates[:, ALPHA].double(), structures.mask[:, ALPHA]
    owners = owners_of(structures.offsets)
    begin, end = structures.offsets[owners], structures.offsets[owners + 1]
    longest = max(1, int(lengths_of(structures.offsets).max())) if rows else 1
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for target in torch.arange(rows, device=device).split(max(1, PAIRS // longest)):
        source = begin[target, None] + torch.arange(longest, device=device)
        there = source < end[target, None]
        source = source.clamp(max=rows - 1)
        there &= has[source] & has[target, None] & (source != target[:, None])
        x, y, z = ((points[source, axis] - points[target, axis, None]).square() for axis in range(3))
        square = (x + y + z).masked_fill(~there, torch.inf)
        nearest = square.topk(min(count, longest), largest=False)
        near = torch.zeros_like(there).scatter(1, nearest.indices, nearest.values.isfinite())
        for pairs, chosen in zip(found, (square <= (-1.0 if radius is None else radius**2), near), strict=True):
            row, column = chosen.nonzero(as_tuple=True)
            pairs.append(torch.stack([source[row, column], target[row]]))
    within, nearest = (torch.cat(each, dim=1) for each in found)
    return (within[0], within[1]), (nearest[0], nearest[1])


def _within(tree: KDTree, radius: float | None) -> NDArray[np.int64]:
    """[2, E] (source, target) of all pairs in the radius, both ways."""
    if radius is None:
        return np.zeros((2, 0), np.int64)
    pairs = tree.query_pairs(radius, output_type="ndarray").T.astype(np.int64)
    return np.concatenate([pairs, pairs[::-1]], axis=1)


def _nearest(tree: KDTree, count: int) -> NDArray[np.int64]:
    """[2, E] (source, target): of every target, its nearest others."""
    found = np.asarray(tree.query(tree.data, k=count + 1)[1])  # itself is among them, but for many duplicates
    targets = np.broadcast_to(np.arange(tree.n)[:, None], found.shape)
    others = (found != targets) & (found < tree.n)  # tree.n stands for "there are no more"
    others &= others.cumsum(axis=1) <= count
    return np.stack([found[others], targets[others]]).astype(np.int64)
