"""Views: the same protein drawn once more, keyed by its slot, with nothing that the protein itself lacks."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pretrain.batch import HIDDEN, Batch, lengths_of
from pretrain.data.collate import collate, pack
from pretrain.data.draw import draw
from pretrain.data.loader import Loader
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.masking import ViewConfig
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
VIEW = ViewConfig(shortest=0.4, masked=0.2, noise=0.5)


def view_of(batch: Batch) -> Batch:
    assert batch.view is not None and batch.view.view is None
    return batch.view


def test_sequence_structure_and_text_of_a_view(make_protein, make_spec):
    sample = make_protein("A", SEQUENCE, STRUCTURE, FUNCTION, length=60, covered=(20, 50), texts=3)
    spec = make_spec(crop=1000, view=VIEW, tokenize=lambda text: [int(text[-1])])
    spans, texts, noise = [], [], []
    for slot in range(80):
        batch = collate([sample], [slot], 1, 2, spec)
        view = view_of(batch)
        letters, own = view.sequence.letters, batch.sequence.letters
        hidden = letters == HIDDEN
        assert int(hidden.sum()) == 12 and torch.equal(letters[~hidden], own[~hidden]) and not (own == HIDDEN).any()
        assert torch.equal(view.structure.letters, batch.structure.letters)
        assert torch.equal(view.structure.positions, batch.structure.positions)
        assert torch.equal(view.structure.mask, batch.structure.mask)
        moved = (view.structure.coordinates - batch.structure.coordinates)[batch.structure.mask]
        assert view.structure.coordinates[~view.structure.mask].eq(0).all()
        noise.append(moved)
        start, stop = view.window[0].tolist()
        spans.append(min(stop, 60) - start)
        assert batch.lengths[SEQUENCE].tolist() == [60] and view.lengths[SEQUENCE].tolist() == [spans[-1]]
        assert view.lengths[STRUCTURE][0] > 0
        texts.append((int(batch.function.ids[0]), int(view.function.ids[0])))
    assert min(spans) >= 24 and max(spans) > 50 and len(set(spans)) > 15
    assert set(texts) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert torch.cat(noise).std().item() == pytest.approx(0.5, rel=0.02)


def test_a_view_has_no_more_than_its_protein(make_protein, make_spec):
    """One text has no other; images are not drawn twice; what the model does not have is in no view."""
    whole = make_protein("A", *Modality, texts=1, images=3)
    view = view_of(collate([whole, make_protein("B", SEQUENCE)], [0, 1], 1, 0, make_spec(view=VIEW)))
    assert view.lengths[FUNCTION].tolist() == view.lengths[IMAGE].tolist() == [0, 0]
    assert view.lengths[STRUCTURE].gt(0).tolist() == [True, False] and view.lengths[SEQUENCE].gt(0).all()
    view = view_of(collate([whole], [0], 1, 0, make_spec(view=VIEW, modalities=(STRUCTURE, FUNCTION))))
    assert view.lengths[SEQUENCE].tolist() == [0] and len(view.structure.letters)
    assert len(view_of(collate([], [], 1, 0, make_spec(view=VIEW)))) == 0


def test_a_view_is_no_wider_than_the_crop_and_changes_nothing_else(make_protein, make_spec):
    sample = make_protein("A", SEQUENCE, STRUCTURE, FUNCTION, length=200, covered=(50, 190))
    spec = make_spec(sequence_max=1000, crop=30)
    for slot in range(40):
        plain, batch = collate([sample], [slot], 1, 0, spec), collate([sample], [slot], 1, 0, replace(spec, view=VIEW))
        assert view_of(batch).lengths[SEQUENCE].tolist() == [30] and view_of(batch).lengths[STRUCTURE][0] > 0
        assert torch.equal(plain.window, batch.window) and torch.equal(plain.function.ids, batch.function.ids)
        assert torch.equal(plain.structure.coordinates, batch.structure.coordinates)
    still = ViewConfig(shortest=1, masked=0, noise=0)
    batch = collate([sample], [3], 1, 0, make_spec(sequence_max=1000, crop=1000, view=still))
    assert torch.equal(view_of(batch).window, batch.window)
    assert torch.equal(view_of(batch).sequence.letters, batch.sequence.letters)
    assert torch.equal(view_of(batch).structure.coordinates, batch.structure.coordinates)


def test_a_view_belongs_to_slot_and_step_alone(make_protein, make_spec):
    spec = make_spec(crop=20, view=VIEW)
    various = [make_protein(f"P{i}", SEQUENCE, STRUCTURE, FUNCTION, length=40 + i) for i in range(3)]
    together, alone = collate(various, [4, 1, 9], 1, 2, spec), collate(various[1:2], [1], 1, 2, spec)
    bounds = together.structure.offsets.tolist()
    row = slice(bounds[1], bounds[2])
    assert torch.equal(view_of(together).structure.coordinates[row], view_of(alone).structure.coordinates)
    assert torch.equal(view_of(together).window[1:2], view_of(alone).window)
    for other in (collate(various[1:2], [2], 1, 2, spec), collate(various[1:2], [1], 1, 3, spec)):
        assert not torch.equal(view_of(other).structure.coordinates, view_of(alone).structure.coordinates)


@dataclass(frozen=True)
class Held:
    """Stored features that say which item and row they are."""

    modalities = (SEQUENCE, STRUCTURE, FUNCTION)

    def rows(self, modality: Modality, item: int, expected: int) -> NDArray[np.uint16]:
        values = torch.stack([torch.full((expected,), item), torch.arange(expected)], 1).to(torch.bfloat16)
        return values.view(torch.uint16).numpy()


def test_of_stored_features_windows_and_texts_are_drawn(make_protein, make_spec):
    sample = make_protein("A", SEQUENCE, STRUCTURE, FUNCTION, length=60, covered=(20, 50), texts=2)
    spec = make_spec(crop=1000, view=VIEW, tokenize=lambda text: [int(text[-1])] * 3)
    row = draw(sample, 5, 1, 2, spec, Held())  # type: ignore[arg-type]
    batch = pack([row], 1, 2, spec, dict.fromkeys(Held.modalities, 2))
    view = view_of(batch)
    start, stop = view.window[0].tolist()
    assert (start, stop) != (0, 60)
    assert view.stored[SEQUENCE].values[:, 1].tolist() == list(range(start, min(stop, 60)))
    inside = [i for i, place in enumerate(range(20, 50)) if start <= place < stop]
    assert view.stored[STRUCTURE].values[:, 1].tolist() == inside
    items = [each.stored[FUNCTION].values[:, 0].tolist() for each in (batch, view)]
    assert sorted(items) == [[0.0] * 3, [1.0] * 3]
    for modality in Held.modalities:
        assert torch.equal(view.stored[modality].lengths, view.lengths[modality])


@pytest.mark.parametrize("workers", [0, 1])
def test_views_come_through_the_loader(dataset, make_spec, workers):
    spec = make_spec(view=VIEW)
    plan = Plan(dataset, "train", PlanConfig(samples=8), 1, spec)
    step = next(Loader(dataset, plan, spec, 0, 1, 1, workers).steps(Position()))
    (batch,) = step.batches
    assert view_of(batch).keys == batch.keys and torch.equal(view_of(batch).slots, batch.slots)
    assert torch.equal(lengths_of(view_of(batch).sequence.offsets), lengths_of(batch.sequence.offsets))
    assert view_of(batch.to("meta")).slots.is_meta
