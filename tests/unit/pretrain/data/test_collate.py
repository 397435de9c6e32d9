import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from pretrain.batch import Batch, lengths_of
from pretrain.data.collate import collate
from pretrain.data.draw import MAX_PIXELS, WHOLE
from pretrain.sample import CHANNELS, CorruptSample, Image, Modality, Sample, Structure

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality


def rows(batch: Batch, part: str, tensor: str, i: int) -> torch.Tensor:
    held = getattr(batch, part)
    return getattr(held, tensor)[held.offsets[i] : held.offsets[i + 1]]


def same(a: Batch, i: int, b: Batch, j: int) -> bool:
    """Whether protein i of one batch is protein j of the other, in every tensor."""
    parts = {
        "sequence": ["letters"],
        "structure": ["coordinates", "mask", "letters", "positions", "confidence"],
        "function": ["ids"],
        "image": ["pixels", "present"],
    }
    return (
        a.keys[i] == b.keys[j]
        and torch.equal(a.window[i], b.window[j])
        and all(a.lengths[modality][i] == b.lengths[modality][j] for modality in Modality)
        and all(torch.equal(rows(a, part, name, i), rows(b, part, name, j)) for part in parts for name in parts[part])
    )


@pytest.fixture
def various(make_protein) -> list[Sample]:
    return [
        make_protein("A", *Modality, length=200, structures=4, texts=5, images=6),
        make_protein("B", SEQUENCE, length=20),
        make_protein("C", FUNCTION, texts=3),
        make_protein("D", STRUCTURE, length=150),
        make_protein("E", IMAGE, images=1),
        make_protein("F", SEQUENCE, FUNCTION, length=120, texts=0),
    ]


def test_nothing_is_padded_and_absent_is_empty(various, make_spec):
    batch = collate(various, range(6), 1, 2, make_spec())
    assert len(batch) == 6 and batch.keys == tuple("ABCDEF") and batch.slots.tolist() == list(range(6))
    assert (batch.seed, batch.step) == (1, 2)
    assert lengths_of(batch.sequence.offsets).tolist() == [64, 20, 0, 0, 0, 64]
    assert lengths_of(batch.structure.offsets).tolist() == [14, 0, 0, 113, 0, 0]
    assert lengths_of(batch.function.offsets).tolist() == [5, 0, 5, 0, 0, 0]
    assert lengths_of(batch.image.offsets).tolist() == [2, 0, 0, 0, 1, 0]
    assert batch.image.pixels.shape == (3, 4, 8, 8) and batch.image.present.all()
    assert batch.sequence.letters.dtype == torch.uint8 and batch.structure.positions.dtype == torch.int64
    assert bytes(rows(batch, "sequence", "letters", 1).tolist()).decode() == various[1].sequence


@pytest.mark.parametrize("crop", [10, 48, 1000])
def test_lengths_are_what_fusion_will_see(various, make_spec, crop):
    for step in range(20):
        batch = collate(various, range(6), 1, step, make_spec(crop=crop))
        for i, (start, stop) in enumerate(batch.window.tolist()):
            letters = len(rows(batch, "sequence", "letters", i))
            positions = rows(batch, "structure", "positions", i)
            inside = (positions >= start) & (positions < stop)
            assert batch.lengths[SEQUENCE][i] == len(range(start, min(stop, letters)))
            assert batch.lengths[STRUCTURE][i] == inside.sum()
            assert batch.lengths[FUNCTION][i] == len(rows(batch, "function", "ids", i))
            assert batch.lengths[IMAGE][i] == 4 * len(rows(batch, "image", "pixels", i))
            assert (start, stop) == (0, WHOLE) or stop - start == crop
        if crop == 1000:
            assert (batch.window == torch.tensor([0, WHOLE])).all()


def test_no_samples_make_a_batch_of_no_rows(make_spec):
    batch = collate([], [], 1, 2, make_spec())
    assert len(batch) == 0 and batch.window.shape == (0, 2) and batch.slots.shape == (0,)
    assert batch.sequence.offsets.tolist() == batch.image.offsets.tolist() == [0]
    assert batch.structure.coordinates.shape == (0, 4, 3) and batch.image.pixels.shape == (0, 4, 8, 8)
    assert batch.image.present.shape == (0, 4) and batch.structure.mask.dtype == torch.bool
    assert batch.function.ids.dtype == torch.int64 and batch.sequence.letters.dtype == torch.uint8
    assert all(batch.lengths[modality].shape == (0,) for modality in Modality)


def test_draws_belong_to_slot_and_step_alone(various, make_spec):
    spec = make_spec(crop=20)
    whole = collate(various, [5, 9, 2, 7, 1, 4], 1, 2, spec)
    order = [3, 0, 5, 1, 4, 2]
    moved = collate([various[i] for i in order], [[5, 9, 2, 7, 1, 4][i] for i in order], 1, 2, spec)
    assert all(same(whole, i, moved, j) for j, i in enumerate(order))
    assert same(whole, 0, collate(various[:1], [5], 1, 2, spec), 0)
    others = [collate(various[:1], [slot], 1, step, spec) for slot in range(4) for step in range(5)]
    assert len({int(batch.window[0, 0]) for batch in others}) > 5
    assert len({rows(batch, "image", "pixels", 0).numpy().tobytes() for batch in others}) > 5
    assert len({rows(batch, "structure", "coordinates", 0).numpy().tobytes() for batch in others}) == 4
    assert not all(same(collate(various[:1], [5], seed, 2, spec), 0, whole, 0) for seed in range(2, 8))


def test_one_of_the_texts_is_drawn(make_protein, make_spec):
    sample = make_protein("A", FUNCTION, texts=4)
    spec = make_spec(tokenize=lambda text: [int(text[-1]), 9, 9], text_max=2)
    drawn = [collate([sample], [slot], 1, 0, spec).function.ids.tolist() for slot in range(60)]
    assert {ids[0] for ids in drawn} == {0, 1, 2, 3} and {tuple(ids[1:]) for ids in drawn} == {(9,)}


def test_a_crop_meets_the_structure(make_protein, make_spec):
    sample = make_protein("A", SEQUENCE, STRUCTURE, length=400, covered=(300, 310))
    spec = make_spec(sequence_max=1000, crop=25)
    batches = [collate([sample], [slot], 1, 0, spec) for slot in range(100)]
    assert all(batch.lengths[STRUCTURE][0] > 0 and batch.lengths[SEQUENCE][0] == 25 for batch in batches)
    starts = {int(batch.window[0, 0]) for batch in batches}
    assert min(starts) < 290 and max(starts) > 300  # it varies around the structure


def test_a_crop_of_a_structure_without_sequence_runs_over_its_positions(make_protein, make_spec):
    sample = make_protein("A", STRUCTURE, length=400, covered=(200, 400))
    for slot in range(50):
        start, stop = collate([sample], [slot], 1, 0, make_spec(crop=30)).window[0].tolist()
        assert start >= 200 and stop <= 400
    whole = collate([make_protein("B", STRUCTURE, length=400, covered=(380, 400))], [0], 1, 0, make_spec(crop=30))
    assert whole.window.tolist() == [[0, WHOLE]] and whole.lengths[STRUCTURE].tolist() == [20]


def test_crops_without_structure_reach_every_residue(make_protein, make_spec):
    sample = make_protein("A", SEQUENCE, length=30)
    seen = {collate([sample], [slot], 1, 0, make_spec(crop=25)).window[0, 0].item() for slot in range(100)}
    assert seen == set(range(6))


def test_the_encoders_limit_cuts_sequence_and_structure_alike(make_protein, make_spec):
    sample = make_protein("A", SEQUENCE, STRUCTURE, length=200, covered=(50, 120))
    batch = collate([sample], [0], 1, 0, make_spec(sequence_max=64, crop=1000))
    assert batch.lengths[SEQUENCE].tolist() == [64] and batch.structure.positions.tolist() == list(range(50, 64))
    assert len(batch.structure.letters) == len(batch.structure.coordinates) == len(batch.structure.confidence) == 14
    batch = collate([sample], [0], 1, 0, make_spec(sequence_max=64, structure_max=5, crop=1000))
    assert batch.structure.positions.tolist() == [50, 51, 52, 53, 54]
    beyond = make_protein("B", SEQUENCE, STRUCTURE, length=200, covered=(100, 120))
    batch = collate([beyond], [0], 1, 0, make_spec(sequence_max=64, crop=30))
    assert batch.lengths[STRUCTURE].tolist() == [0] and batch.lengths[SEQUENCE].tolist() == [30]


def test_a_structure_that_the_encoder_reaches_is_preferred(make_protein, make_spec):
    near = make_protein("A", SEQUENCE, STRUCTURE, length=200, covered=(10, 30))
    far = make_protein("A", SEQUENCE, STRUCTURE, length=200, covered=(150, 180))
    both = dataclasses.replace(near, structures=far.structures + near.structures)
    for slot in range(20):
        batch = collate([both], [slot], 1, 0, make_spec(sequence_max=64))
        assert batch.structure.positions.tolist() == list(range(10, 30))


def test_modalities_that_the_model_lacks_are_absent(various, make_spec):
    batch = collate(various, range(6), 1, 2, make_spec(modalities=(STRUCTURE, FUNCTION)))
    assert len(batch.sequence.letters) == len(batch.image.pixels) == 0
    assert batch.lengths[SEQUENCE].sum() == batch.lengths[IMAGE].sum() == 0 and batch.lengths[FUNCTION].sum() == 10
    assert lengths_of(batch.structure.offsets).tolist() == [150, 0, 0, 113, 0, 0]  # no sequence encoder, no limit of it


def test_atoms_stand_in_their_places(make_spec):
    xyz = np.arange(12, dtype=np.float32).reshape(2, 2, 3) + 1
    mask = np.array([[True, True], [False, True]])
    structure = Structure("s", np.where(mask[..., None], xyz, 0), mask, np.array([3, 5], np.int32), "AG", ("O", "CA"))
    batch = collate([Sample("S", structures=(structure,))], [0], 1, 0, make_spec())
    assert batch.structure.mask.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert torch.equal(batch.structure.coordinates[0, 3], torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(batch.structure.coordinates[0, 1], torch.tensor([4.0, 5.0, 6.0]))
    assert batch.structure.coordinates[~batch.structure.mask].eq(0).all()
    assert batch.structure.confidence.tolist() == [100, 100] and batch.structure.positions.tolist() == [3, 5]
    assert bytes(batch.structure.letters.tolist()) == b"AG"


def _image(pixels: np.ndarray, present: tuple[str, ...] = CHANNELS) -> Sample:
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return Sample("I", images=(Image("i", out.getvalue(), present),))


def test_bands_beyond_present_are_zero(make_spec):
    pixels = np.full((8, 8, 4), 255, np.uint8)
    batch = collate([_image(pixels, ("protein", "er"))], [0], 1, 0, make_spec())
    assert batch.image.present.tolist() == [[True, False, False, True]]
    assert batch.image.pixels[0, [0, 3]].eq(1).all() and batch.image.pixels[0, [1, 2]].eq(0).all()
    batch = collate([_image(pixels[..., 0])], [0], 1, 0, make_spec())
    assert batch.image.present.tolist() == [[True, False, False, False]]


def test_resizing_treats_the_fourth_band_as_any_other(make_spec):
    pixels = np.full((16, 24, 4), 102, np.uint8)
    pixels[..., 3] = 0  # as alpha, it would blacken the others
    batch = collate([_image(pixels)], [0], 1, 0, make_spec())
    assert batch.image.pixels.shape == (1, 4, 8, 8)
    assert torch.allclose(batch.image.pixels[0, :3], torch.tensor(0.4)) and batch.image.pixels[0, 3].eq(0).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a PNG", "cannot be read as PNG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "cannot be read as PNG"),
        (_image(np.zeros((40, 40), np.uint8)).images[0].data[:-30], "cannot be read as PNG"),
        (_image(np.zeros((4, 4), np.uint16)).images[0].data, "mode I;16"),
        (_image(np.zeros((1, MAX_PIXELS + 1), np.uint8)).images[0].data, "pixels; 16777216 are allowed"),
    ],
)
def test_what_is_no_image_is_a_corrupt_sample(data, message, make_spec):
    with pytest.raises(CorruptSample, match=f"image broken.*{message}"):
        collate([Sample("I", images=(Image("broken", data),))], [0], 1, 0, make_spec())


def test_a_text_that_cannot_be_tokenized_is_a_corrupt_sample(make_protein, make_spec):
    with pytest.raises(CorruptSample, match=r"cannot be tokenized: TypeError"):
        collate([make_protein("A", FUNCTION)], [0], 1, 0, make_spec(tokenize=lambda text: text + 1))


@pytest.mark.parametrize("wrong", [{"modalities": ()}, {"tokenize": None}, {"crop": 0}, {"structure_max": -1}])
def test_a_specification_that_cannot_be(wrong, make_spec):
    with pytest.raises(ValueError):
        make_spec(**wrong)
