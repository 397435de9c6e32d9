"""Ragged records against brute force over lists."""

import itertools
import random

import pytest
import torch

from pretrain.batch import (
    Batch,
    Images,
    Sequences,
    Structures,
    Texts,
    Tokens,
    lengths_of,
    offsets_of,
    owners_of,
)
from pretrain.sample import Modality

LENGTHS = [[], [0], [0, 0, 0], [3], [3, 0, 5], [0, 4, 0, 0, 1, 0]]


def tokens(lengths: list[int], seed: int = 0) -> Tokens:
    """Random values; positions strictly increasing within a protein, with gaps, as a structure's are."""
    draw = random.Random(seed)
    positions = [p for length in lengths for p in sorted(draw.sample(range(3 * length + 1), length))]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), 4, generator=generator)
    return Tokens(
        values, offsets_of(torch.tensor(lengths, dtype=torch.int64)), torch.tensor(positions, dtype=torch.int64)
    )


def split(some: Tokens) -> list[tuple[list[list[float]], list[int]]]:
    """The tokens as plain lists, one pair (values, positions) per protein."""
    bounds = some.offsets.tolist()
    spans = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    return [(some.values[span].tolist(), some.positions[span].tolist()) for span in spans]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_lengths_offsets_and_owners_agree(lengths: list[int]) -> None:
    offsets = offsets_of(torch.tensor(lengths, dtype=torch.int64))
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)] and offsets.dtype == torch.int64
    assert lengths_of(offsets).tolist() == lengths
    assert owners_of(offsets).tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_select_keeps_the_rows_and_their_owners(lengths: list[int], seed: int) -> None:
    some = tokens(lengths, seed)
    rows = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) < 0.5
    bounds, picked = some.offsets.tolist(), rows.tolist()
    expected = [
        (
            [v for v, keep in zip(values, picked[start:], strict=False) if keep],
            [p for p, keep in zip(positions, picked[start:], strict=False) if keep],
        )
        for (values, positions), start in zip(split(some), bounds, strict=False)
    ]
    assert split(some.select(rows)) == expected


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_crop_keeps_positions_inside_each_proteins_window(lengths: list[int], seed: int) -> None:
    some, draw = tokens(lengths, seed), random.Random(seed)
    windows = [(start, start + draw.randrange(6)) for start in (draw.randrange(8) for _ in lengths)]
    cropped = some.crop(torch.tensor(windows, dtype=torch.int64).reshape(-1, 2))
    expected = []
    for (values, positions), (start, stop) in zip(split(some), windows, strict=True):
        kept = [i for i, position in enumerate(positions) if start <= position < stop]
        expected.append(([values[i] for i in kept], [positions[i] for i in kept]))
    assert split(cropped) == expected


def test_a_crop_that_cuts_nothing_copies_nothing() -> None:
    some = tokens([3, 0, 5])
    assert some.crop(torch.tensor([[0, 100]] * 3)) is some


def test_gradients_reach_the_selected_rows_only() -> None:
    some = tokens([2, 3])
    values = some.values.requires_grad_()
    rows = torch.tensor([True, False, False, True, True])
    Tokens(values, some.offsets, some.positions).select(rows).values.sum().backward()
    assert values.grad is not None and values.grad[:, 0].tolist() == [1, 0, 0, 1, 1]


def test_selecting_nothing_keeps_the_graph() -> None:
    some = tokens([2, 3])
    values = some.values.requires_grad_()
    Tokens(values, some.offsets, some.positions).select(torch.zeros(5, dtype=torch.bool)).values.sum().backward()
    assert values.grad is not None and not values.grad.any()


def test_a_batch_moves_whole_nested_records_and_mappings_too() -> None:
    """`meta` stands for any other device: every tensor must arrive there, and what is no tensor must stay."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    offsets = zeros(2)
    batch = Batch(
        keys=("a",),
        seed=1,
        step=2,
        slots=zeros(1),
        window=zeros(1, 2),
        lengths=dict.fromkeys(Modality, zeros(1)),
        sequence=Sequences(zeros(0, dtype=torch.uint8), offsets),
        structure=Structures(zeros(0, 4, 3), zeros(0, 4), zeros(0), zeros(0), zeros(0), offsets),
        function=Texts(zeros(0), offsets),
        image=Images(zeros(0, 4, 2, 2), zeros(0, 4), offsets),
        stored={Modality.IMAGE: Tokens(zeros(0, 3, dtype=torch.bfloat16), offsets, zeros(0))},
    )
    moved = batch.to("meta")
    records = (moved, moved.sequence, moved.structure, moved.function, moved.image, moved.stored[Modality.IMAGE])
    found = [value for record in records for value in vars(record).values() if isinstance(value, torch.Tensor)]
    found += list(moved.lengths.values())
    assert len(found) == 22 and all(tensor.device.type == "meta" for tensor in found)
    assert (moved.keys, moved.seed, moved.step, len(moved)) == (("a",), 1, 2, 1)
    assert set(moved.lengths) == set(Modality)
