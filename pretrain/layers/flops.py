"""What a step costs in floating-point operations, as arithmetic on lengths, and what devices can do.

The convention is that of published model FLOP utilisation: matrix products only, two operations a multiply-add, the
attention's two among them; embeddings, norms, activations and softmax are left out. A backward pass costs twice its
forward pass, or once where the input is a frozen feature that needs no gradient. What activation checkpointing repeats
is not counted: it is no progress. Frozen encoders are not counted either, nor is the comparison of embeddings.

Every module here counts itself in a method beside its `forward`; this file has what they share.
"""

import torch
from torch import Tensor, nn

TRAINED = 3  # forward and backward over forward
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, as the maker states it for the SXM boards


def linear(module: nn.Linear, rows: Tensor) -> int:
    """Forward over all `rows`, int64 [B] per protein."""
    return 2 * int(rows.sum()) * module.in_features * module.out_features


def attended(queries: Tensor, keys: Tensor, width: int) -> int:
    """Forward of Q·Kᵀ and of weights·V over all heads. queries, keys: int64 [B], rows of each segment."""
    return 4 * int((queries * keys).sum()) * width


def peak(device: torch.device) -> float | None:
    """bf16 FLOP/s of the kind of device; None for a CPU and for what the table lacks: then there is no utilisation."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for kind, value in PEAK.items() if kind in name), None)
