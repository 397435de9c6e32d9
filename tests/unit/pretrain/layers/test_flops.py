"""What the modules count against what torch sees: FlopCounterMode over attention written out as matrix products."""

from typing import Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.batch import offsets_of
from pretrain.layers import flops
from pretrain.layers.transformer import CrossBlock, Transformer


def counted(run) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("lengths", [[5, 0, 40, 17], [0, 0], []])
def test_a_transformer_counts_its_matrix_products(lengths: list[int]):
    model, counts = Transformer(24, 3, 4, 2.5), torch.tensor(lengths, dtype=torch.int64)
    rows = torch.randn(sum(lengths), 24, requires_grad=True)
    forward = counted(lambda: model(rows, offsets_of(counts)))
    assert model.flops(counts) == forward and (forward > 0) == (sum(lengths) > 0)
    both = counted(lambda: model(rows, offsets_of(counts)).sum().backward())
    assert both == flops.TRAINED * forward


def test_a_cross_block_counts_rows_and_context():
    block, counts, context = CrossBlock(16, 2, 10), torch.tensor([3, 0, 9, 4]), torch.tensor([7, 5, 0, 1])
    rows, read = torch.randn(16, 16, requires_grad=True), torch.randn(13, 10, requires_grad=True)
    both = counted(lambda: block(rows, read, offsets_of(counts), offsets_of(context)).sum().backward())
    assert flops.TRAINED * block.flops(counts, context) == both


def test_a_device_without_a_stated_peak_has_no_utilisation(monkeypatch: pytest.MonkeyPatch):
    assert flops.peak(torch.device("cpu")) is None
    for name, value in (("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Quadro", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert flops.peak(torch.device("cuda")) == value


@pytest.mark.parametrize(
    ("products", "precision", "h100", "a100"),
    [
        ("highest", "bf16", 989e12, 312e12),
        ("high", "bf16", 989e12, 312e12),
        ("highest", "fp32", 67e12, 19.5e12),  # torch's default: no tensor cores
        ("high", "fp32", 494.5e12, 156e12),
    ],
)
def test_the_peak_is_that_of_the_precision_in_use(
    monkeypatch: pytest.MonkeyPatch, products: str, precision: Literal["fp32", "bf16"], h100: float, a100: float
):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: products)
    for name, value in (("NVIDIA H100 80GB HBM3", h100), ("NVIDIA A100-SXM4-40GB", a100)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert flops.peak(torch.device("cuda"), precision) == value
    assert flops.peak(torch.device("cpu"), precision) is None
