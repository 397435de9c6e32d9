"""What a step costs in floating-point operations, as arithmetic on lengths, and what devices can do.

The convention is that of published model FLOP utilisation: matrix products only, two operations a multiply-add, the
attention's two among them; embeddings, norms, activations and softmax are left out. A backward pass costs twice its
forward pass, or once where the input is a frozen feature that needs no gradient. What activation checkpointing repeats
is not counted: it is no progress. Frozen encoders are not counted either, nor is the comparison of embeddings.

Every module here counts itself in a method beside its `forward`; this file has what they share.
"""

from typing import Literal

import torch
from torch import Tensor, nn

TRAINED = 3  # forward and backward over forward
HOPPER = {"bf16": 989e12, "tf32": 494.5e12, "fp32": 67e12}
PEAK = {"H100": HOPPER, "H200": HOPPER, "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}}
# dense, as the maker states it for the SXM boards


def linear(module: nn.Linear, rows: Tensor) -> int:
    """Forward over all `rows`, int64 [B] per protein."""
    return 2 * int(rows.sum()) * module.in_features * module.out_features


def attended(queries: Tensor, keys: Tensor, width: int) -> int:
    """Forward of Q·Kᵀ and of weights·V over all heads. queries, keys: int64 [B], rows of each segment."""
    return 4 * int((queries * keys).sum()) * width


def peak(device: torch.device, precision: Literal["fp32", "bf16"] = "bf16") -> float | None:
    """FLOP/s of the kind of device in a precision; None for a CPU and for what the table lacks: then there is no
    utilisation.

    fp32 is TF32 where torch has been told that matrix products may use it, and plain fp32, without tensor cores, as
    torch is by default.
    """
    if device.type != "cuda":
        return None
    name, kind = torch.cuda.get_device_name(device), str(precision)
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        kind = "tf32"
    return next((value[kind] for board, value in PEAK.items() if board in name), None)
