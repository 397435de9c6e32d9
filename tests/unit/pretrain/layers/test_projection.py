"""Into the model's width and out of it."""

from typing import Any, cast

import torch

from pretrain.batch import Tokens, offsets_of
from pretrain.layers.projection import Head, Projection, Temperature, mean, on_sphere
from pretrain.layers.transformer import sinusoid


def test_a_projection_adds_position_and_mark():
    torch.manual_seed(0)
    projection = Projection(5, 8)
    values, positions = torch.randn(3, 5), torch.tensor([4, 0, 900])
    expected = (
        values @ projection.linear.weight.T + projection.linear.bias + sinusoid(positions, 8) + projection.mark.vector
    )
    torch.testing.assert_close(projection(values, positions), expected)
    half = projection.bfloat16()(values, positions)  # features stay float32 whatever the parameters are
    assert half.dtype == torch.bfloat16


def test_a_temperature_starts_where_it_is_told():
    temperature = Temperature(0.07)
    torch.testing.assert_close(temperature(), torch.tensor([0.07]))
    temperature().sum().backward()
    assert temperature.log.grad is not None and abs(temperature.log.grad.item() - 0.06) < 1e-6


def test_the_mean_is_over_all_parts_and_zero_without_tokens():
    def tokens(lengths: list[int], start: float) -> Tokens:
        rows = torch.arange(sum(lengths), dtype=torch.float32).unsqueeze(1) + start
        return Tokens(
            rows.bfloat16(),
            offsets_of(torch.tensor(lengths, dtype=torch.int64)),
            torch.zeros(sum(lengths), dtype=torch.int64),
        )

    means = mean([tokens([2, 0, 1], 0), tokens([0, 0, 2], 10)])
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, torch.tensor([[0.5], [0.0], [(2 + 10 + 11) / 3]]))
    assert mean([tokens([], 0)]).shape == (0, 1)


def test_a_temperature_is_never_colder_than_it_may_be():
    temperature = Temperature(0.07)
    torch.testing.assert_close(temperature(), torch.tensor([0.07]))
    temperature.log.data.fill_(-20.0)
    cold = temperature()
    assert 0.01 <= cold.item() < 0.0101
    cold.backward()
    assert temperature.log.grad is not None and temperature.log.grad.item() > 0  # and it can warm up again


def test_a_head_has_two_layers_and_gives_rows_of_length_one():
    torch.manual_seed(0)
    values, head = torch.randn(3, 6), Head(6, 10, 4)
    _, up, _, down = cast(list[Any], list(head))
    normed = (values - values.mean(1, keepdim=True)) / (values.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    inside = normed @ up.weight.T + up.bias
    inside = inside * 0.5 * (1 + torch.erf(inside / 2**0.5))
    torch.testing.assert_close(head(values), inside @ down.weight.T + down.bias)
    rows = on_sphere(head.bfloat16()(values))
    assert rows.dtype == torch.float32 and head(values[:0]).shape == (0, 4)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert not on_sphere(torch.zeros(2, 4)).any()
    assert head.flops(torch.tensor([2, 1])) == 2 * 3 * (2 * 6 * 10 + 3 * 10 * 4)
    assert head.flops(torch.tensor([3]), trained=True) == 3 * 2 * 3 * (6 * 10 + 10 * 4)
