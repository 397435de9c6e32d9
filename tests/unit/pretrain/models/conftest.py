"""Small random proteins as a model meets them: features, and the batch that announced them."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from pretrain.batch import Batch, Features, Images, Sequences, Structures, Texts, Tokens, offsets_of
from pretrain.sample import Modality

WIDTHS = dict(zip(Modality, (10, 12, 6, 8), strict=True))
Proteins = Callable[..., tuple[Features, Batch]]


def make(
    lengths: Mapping[Modality, Sequence[int]], slots: Sequence[int] | None = None, seed: int = 3
) -> tuple[Features, Batch]:
    """Proteins with these token counts. A protein's features depend on its slot alone, so that batches can be cut."""
    proteins = len(next(iter(lengths.values())))
    slots = list(range(proteins)) if slots is None else list(slots)
    counts = {m: torch.tensor(list(lengths.get(m, [0] * proteins)), dtype=torch.int64) for m in Modality}
    features: Features = {}
    for order, m in enumerate(Modality):
        rows, positions = [torch.zeros(0, WIDTHS[m])], [torch.zeros(0, dtype=torch.int64)]
        for slot, count in zip(slots, counts[m].tolist(), strict=True):
            draw = torch.Generator().manual_seed(1000 * order + slot)
            rows.append(torch.randn(count, WIDTHS[m], generator=draw))
            positions.append(torch.randperm(3 * count, generator=draw)[:count].sort().values)
        features[m] = Tokens(torch.cat(rows), offsets_of(counts[m]), torch.cat(positions))
    return features, _batch(features, counts, slots, seed)


def _batch(features: Features, counts: dict[Modality, torch.Tensor], slots: list[int], seed: int) -> Batch:
    """Structures have two residues more than tokens, one before and one after the window: cropping is not a no-op."""
    structure = features[Modality.STRUCTURE]
    parts = structure.positions.split(structure.lengths.tolist())
    padded = [torch.cat([torch.tensor([-1]), part, torch.tensor([999])]) if len(part) else part for part in parts]
    residues = torch.cat([torch.zeros(0, dtype=torch.int64), *padded])
    n = len(residues)
    none = torch.zeros(len(slots) + 1, dtype=torch.int64)
    return Batch(
        keys=tuple(f"P{slot}" for slot in slots),
        seed=seed,
        step=5,
        slots=torch.tensor(slots, dtype=torch.int64),
        window=torch.tensor([[0, 999]]).repeat(len(slots), 1),
        lengths=counts,
        sequence=Sequences(torch.zeros(0, dtype=torch.uint8), none),
        structure=Structures(
            coordinates=torch.zeros(n, 4, 3),
            mask=torch.zeros(n, 4, dtype=torch.bool),
            letters=torch.zeros(n, dtype=torch.uint8),
            positions=residues,
            confidence=(residues * 7 % 101).float(),
            offsets=offsets_of(torch.tensor([len(part) for part in padded], dtype=torch.int64)),
        ),
        function=Texts(torch.zeros(0, dtype=torch.int64), none),
        image=Images(torch.zeros(0, 4, 2, 2), torch.zeros(0, 4, dtype=torch.bool), none),
    )


@pytest.fixture
def proteins() -> Proteins:
    return make


@pytest.fixture
def widths() -> dict[Modality, int]:
    return dict(WIDTHS)
