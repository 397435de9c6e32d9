"""Mean squared error on frozen features, as a sum over tokens."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


def reconstruction(
    prediction_ND: Tensor,
    target_ND: Tensor,
    rows: Tensor,
    normalize_target: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Σ over the tokens in `rows` (bool [N]) of the squared error averaged over D: a float32 (AMMA, Methodology).

    normalize_target: each target token is first brought to mean 0 and variance 1 over D (He et al. 2022, §3).
    weights: float [N], a factor per token; the caller's count stays the number of tokens, so doubt lowers a loss.
    Without a row the sum is exactly 0 and still hangs on the graph of `prediction_ND`.
    """
    assert prediction_ND.shape == target_ND.shape, f"{tuple(prediction_ND.shape)} against {tuple(target_ND.shape)}"
    with torch.autocast(prediction_ND.device.type, enabled=False):
        prediction, target = prediction_ND[rows].float(), target_ND[rows].float()
        if normalize_target:
            target = layer_norm(target, target.shape[1:])
        error = (prediction - target).square().mean(1)
        return (error if weights is None else error * weights[rows]).sum()
