"""Attention-based multiple-instance pooling (Ilse, Tomczak & Welling 2018): many rows of a protein → one.

A protein's bag may be of any size, the empty one included, and its order does not matter.
"""

import torch
from torch import Tensor, nn

from pretrain.batch import owners_of
from pretrain.layers import flops


class GatedPooling(nn.Module):
    """z = Σ a_k h_k, a = softmax over the bag of wᵀ(tanh(V h_k) ⊙ sigm(U h_k)) (eq. 7 and 9). hidden: rows of U, V."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.sides = nn.Linear(width, 2 * hidden, bias=False)  # V, then U
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """[B, D] of bags end to end, int64 offsets [B + 1]; 0 for an empty bag."""
        share = self.shares(rows_ND, offsets).to(rows_ND.dtype)
        pooled = rows_ND.new_zeros(len(offsets) - 1, rows_ND.shape[1])
        return pooled.index_add(0, owners_of(offsets), share.unsqueeze(1) * rows_ND)

    def shares(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """[N], each row's weight in its bag, float32 at least: what an image or a term counts for."""
        told, gate = self.sides(rows_ND).chunk(2, dim=1)
        score = self.score(told.tanh() * gate.sigmoid()).squeeze(1)
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        owners, bags = owners_of(offsets), len(offsets) - 1
        top = score.new_full((bags,), -torch.inf).scatter_reduce(0, owners, score.detach(), "amax")
        weight = (score - top[owners]).exp()
        return weight / weight.new_zeros(bags).index_add(0, owners, weight)[owners]

    def flops(self, lengths: Tensor) -> int:
        """Forward over bags of int64 lengths [B]."""
        return flops.linear(self.sides, lengths) + flops.linear(self.score, lengths)
