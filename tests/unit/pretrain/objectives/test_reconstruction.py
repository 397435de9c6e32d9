"""The squared error as a sum, against plain loops."""

import pytest
import torch

from pretrain.objectives.reconstruction import reconstruction


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_over_scored_tokens_of_the_mean_over_features(normalize: bool, weighted: bool):
    torch.manual_seed(0)
    prediction, target = torch.randn(6, 4, requires_grad=True), 5 * torch.randn(6, 4) + 2
    rows = torch.tensor([True, False, True, True, False, True])
    weights = torch.rand(6)
    expected = 0.0
    for i in (0, 2, 3, 5):
        truth = target[i]
        if normalize:
            truth = (truth - truth.mean()) / (truth.var(correction=0) + 1e-5) ** 0.5
        error = sum((prediction[i, d].item() - truth[d].item()) ** 2 for d in range(4)) / 4
        expected += error * (weights[i].item() if weighted else 1)
    total = reconstruction(prediction, target, rows, normalize, weights if weighted else None)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert prediction.grad is not None and (prediction.grad.abs().sum(1) > 0).tolist() == rows.tolist()


def test_no_row_gives_an_exact_zero_on_the_graph():
    for count in (0, 3):
        prediction = torch.randn(count, 4, requires_grad=True)
        total = reconstruction(
            prediction, torch.full((count, 4), torch.inf), torch.zeros(count, dtype=torch.bool), True
        )
        total.backward()
        assert total.item() == 0 and prediction.grad is not None and not prediction.grad.any()


def test_half_precision_predictions_are_scored_in_float32():
    prediction = torch.full((300, 8), 1.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = reconstruction(prediction, torch.zeros(300, 8), torch.ones(300, dtype=torch.bool))
    assert total.dtype == torch.float32 and total.item() == 300
