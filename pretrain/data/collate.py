"""Samples → a `Batch`: what each protein contributes is drawn, cut to the encoders' limits, and laid end to end.

Every draw is keyed by (seed, step, slot, purpose), so a protein of a step contributes the same on whatever rank and in
whatever micro-batch it lands. Two kinds of cutting happen, and they differ on purpose:

- An encoder's maximum is deterministic: the first `sequence_max` residues of the protein are all that exists for this
  model, and structure residues beyond them are left out with them; so features stored ahead equal those made live.
  The trade-off: the far end of a protein longer than that is never seen. `Plan.truncated` counts such proteins.
- The crop is drawn, per step, as a window of residue coordinates. Encoders do not know of it; fusion sees its inside.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from pretrain.batch import Batch, Images, Sequences, Structures, Texts, offsets_of
from pretrain.masking import Purpose, generator
from pretrain.sample import BACKBONE, CHANNELS, CorruptSample, Image, Modality, Sample, Structure, Text

Rng = Callable[[Purpose], np.random.Generator]  # the slot's generators
WHOLE = 1 << 31  # the end of a window that leaves nothing out
MAX_PIXELS = 1 << 24  # of one stored image; a PNG of a few kilobytes can claim any size


@dataclass(frozen=True)
class InputSpec:
    """What a model's encoders take: the limits that decide how many tokens a protein has.

    sequence_max: residues that the sequence encoder sees, the first ones. structure_max: the same for the structure
    encoder, in structure residues; None for no limit. tokenize: a text's word-piece ids without BOS and EOS; it must be
    picklable to reach loader workers that are not forked. text_max: word pieces kept. image_size: pixels a side.
    image_patches: tokens of one image. crop: width of the window of residues that fusion sees. max_images: of one
    protein in one step. modalities: those the model has; any other is treated as absent.
    """

    sequence_max: int
    structure_max: int | None
    tokenize: Callable[[str], list[int]] | None
    text_max: int
    image_size: int
    image_patches: int
    crop: int
    max_images: int
    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError(f"a model needs at least one modality of {list(map(str, Modality))}")
        if Modality.FUNCTION in self.modalities and self.tokenize is None:
            raise ValueError("function is among the model's modalities, but there is no tokenizer for its texts")
        limits = (self.sequence_max, self.structure_max or 1, self.text_max, self.crop, self.max_images)
        if min(limits) < 1:
            raise ValueError(f"limits of an encoder's input must be positive: {self}")


@dataclass(frozen=True, eq=False)
class Row:
    """What one protein contributes to its step: everything drawn, cut and decoded. Absent is None or empty."""

    key: str
    slot: int
    window: tuple[int, int]
    sequence: NDArray[np.uint8] | None
    structure: Structure | None
    ids: list[int]
    images: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]


def collate(samples: Sequence[Sample], slots: Sequence[int], seed: int, step: int, spec: InputSpec) -> Batch:
    """The micro-batch of `samples`, whose places in step `step` are `slots`. No samples give a batch of zero rows."""
    rows = [draw(sample, slot, seed, step, spec) for sample, slot in zip(samples, slots, strict=True)]
    return pack(rows, seed, step, spec)


def draw(sample: Sample, slot: int, seed: int, step: int, spec: InputSpec) -> Row:
    """One structure, one text, up to `max_images` images and a window, for the modalities that the model has.

    Raises CorruptSample for an image that is none and a text that cannot be tokenized.
    """

    def rng(purpose: Purpose) -> np.random.Generator:
        return generator(seed, step, slot, purpose)

    has = spec.modalities
    sequence = structure = None
    if sample.sequence and Modality.SEQUENCE in has:
        sequence = np.frombuffer(sample.sequence.encode("ascii"), dtype=np.uint8)[: spec.sequence_max]
    if sample.structures and Modality.STRUCTURE in has:
        structure = _structure(sample.structures, spec.sequence_max if sequence is not None else WHOLE, spec, rng)
    ids: list[int] = []
    if sample.function and sample.function.texts and Modality.FUNCTION in has:
        ids = _ids(sample.function.texts, spec, rng)
    images = list(sample.images) if Modality.IMAGE in has else []
    if len(images) > spec.max_images:
        chosen = rng(Purpose.IMAGE).choice(len(images), spec.max_images, replace=False)
        images = [images[i] for i in sorted(chosen)]
    pixels = [_pixels(image, spec.image_size) for image in images]
    return Row(sample.key, slot, _window(sequence, structure, spec.crop, rng), sequence, structure, ids, pixels)


def _ids(texts: tuple[Text, ...], spec: InputSpec, rng: Rng) -> list[int]:
    """The word pieces of one of the texts."""
    assert spec.tokenize is not None, "InputSpec checks this"
    text = texts[rng(Purpose.TEXT).integers(len(texts)) if len(texts) > 1 else 0].text
    try:
        return spec.tokenize(text)[: spec.text_max]
    except Exception as error:  # what a tokenizer raises for a text that is no Unicode is its own affair
        raise CorruptSample(f"text {text[:40]!r} cannot be tokenized: {type(error).__name__}: {error}") from error


def _structure(structures: tuple[Structure, ...], end: int, spec: InputSpec, rng: Rng) -> Structure | None:
    """One of the structures that begin before residue `end`, cut there and to `structure_max`; None if none does."""
    met = [structure for structure in structures if structure.residue[0] < end]
    if not met:
        return None
    chosen = met[rng(Purpose.STRUCTURE).integers(len(met)) if len(met) > 1 else 0]
    count = int(np.searchsorted(chosen.residue, end))
    count = min(count, spec.structure_max or count)
    if count == len(chosen):
        return chosen
    return replace(
        chosen,
        coordinates=chosen.coordinates[:count],
        mask=chosen.mask[:count],
        residue=chosen.residue[:count],
        letters=chosen.letters[:count],
        confidence=None if chosen.confidence is None else chosen.confidence[:count],
    )


def _window(sequence: NDArray[np.uint8] | None, structure: Structure | None, crop: int, rng: Rng) -> tuple[int, int]:
    """[start, stop) of the residues that fusion sees: `crop` wide, or everything where that fits.

    With a structure, one of its residues is drawn first and then a window around it, so that the structure is always
    met, and windows that meet more of it are likelier. Without one, every window is equally likely. Without a sequence
    the coordinates are the structure's own, from its first residue to its last.
    """
    first, stop = 0, 0 if sequence is None else len(sequence)
    if sequence is None and structure is not None:
        first, stop = int(structure.residue[0]), int(structure.residue[-1]) + 1
    if stop - first <= crop:
        return 0, WHOLE
    random, low, high = rng(Purpose.WINDOW), first, stop - crop
    if structure is not None:
        anchor = int(structure.residue[random.integers(len(structure))])
        low, high = max(low, anchor - crop + 1), min(high, anchor)
    start = int(random.integers(low, high + 1))
    return start, start + crop


def _pixels(image: Image, size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(float32 [4, size, size] in 0..1, present bool [4]). Bands are resized one by one: alpha is a stain here."""
    try:
        with Pillow.open(io.BytesIO(image.data), formats=("PNG",)) as png:
            if png.width * png.height > MAX_PIXELS:
                raise CorruptSample(f"{png.width} × {png.height} pixels; {MAX_PIXELS} are allowed")
            if png.mode not in ("L", "LA", "RGB", "RGBA"):
                raise CorruptSample(f"mode {png.mode}; one to four bands of 8 bits are expected")
            planes = png.split()
    except CorruptSample as error:
        raise CorruptSample(f"image {image.id}: {error}") from error
    except Exception as error:  # a damaged PNG makes Pillow raise OSError, SyntaxError, zlib.error, struct.error, ...
        raise CorruptSample(f"image {image.id} cannot be read as PNG: {type(error).__name__}: {error}") from error
    present = np.array([name in image.present for name in CHANNELS]) & (np.arange(len(CHANNELS)) < len(planes))
    pixels = np.zeros((len(CHANNELS), size, size), dtype=np.float32)
    for i in np.flatnonzero(present):
        plane = planes[i]
        if plane.size != (size, size):
            plane = plane.resize((size, size), Pillow.Resampling.BILINEAR)
        pixels[i] = np.asarray(plane, dtype=np.float32) / 255
    return pixels, present


def pack(rows: Sequence[Row], seed: int, step: int, spec: InputSpec) -> Batch:
    """The rows end to end. `lengths` are the tokens that remain of each once encoders and window are done with it."""
    lengths = torch.tensor([_lengths(row, spec) for row in rows], dtype=torch.int64).reshape(len(rows), len(Modality))
    pixels = [pixels for row in rows for pixels, _ in row.images]
    return Batch(
        keys=tuple(row.key for row in rows),
        seed=seed,
        step=step,
        slots=torch.tensor([row.slot for row in rows], dtype=torch.int64),
        window=torch.tensor([row.window for row in rows], dtype=torch.int64).reshape(len(rows), 2),
        lengths={modality: lengths[:, i].contiguous() for i, modality in enumerate(Modality)},
        sequence=Sequences(
            _joined((row.sequence for row in rows if row.sequence is not None), (), np.uint8),
            _offsets(0 if row.sequence is None else len(row.sequence) for row in rows),
        ),
        structure=_structures([row.structure for row in rows]),
        function=Texts(
            torch.tensor([piece for row in rows for piece in row.ids], dtype=torch.int64),
            _offsets(len(row.ids) for row in rows),
        ),
        image=Images(
            _joined((plane[None] for plane in pixels), (len(CHANNELS), spec.image_size, spec.image_size), np.float32),
            _joined((present[None] for row in rows for _, present in row.images), (len(CHANNELS),), np.bool_),
            _offsets(len(row.images) for row in rows),
        ),
    )


def _lengths(row: Row, spec: InputSpec) -> tuple[int, ...]:
    """Tokens of each modality, in `Modality`'s order."""
    start, stop = row.window
    sequence = 0 if row.sequence is None else min(stop, len(row.sequence)) - start
    first, last = (0, 0) if row.structure is None else np.searchsorted(row.structure.residue, row.window).tolist()
    return sequence, last - first, len(row.ids), len(row.images) * spec.image_patches


def _structures(drawn: list[Structure | None]) -> Structures:
    """Each chain's atoms in the four places of `BACKBONE`; a place it does not store is masked."""
    offsets = _offsets(0 if structure is None else len(structure) for structure in drawn)
    chains = [structure for structure in drawn if structure is not None]
    coordinates = np.zeros((int(offsets[-1]), len(BACKBONE), 3), dtype=np.float32)
    mask = np.zeros((int(offsets[-1]), len(BACKBONE)), dtype=np.bool_)
    begin = 0
    for chain in chains:
        end = begin + len(chain)
        if chain.atoms == BACKBONE[: len(chain.atoms)]:  # the usual order: one copy, where the loop makes several
            coordinates[begin:end, : len(chain.atoms)] = chain.coordinates
            mask[begin:end, : len(chain.atoms)] = chain.mask
        else:
            columns = [chain.atoms.index(atom) for atom in BACKBONE if atom in chain.atoms]
            places = [place for place, atom in enumerate(BACKBONE) if atom in chain.atoms]
            coordinates[begin:end, places] = chain.coordinates[:, columns]
            mask[begin:end, places] = chain.mask[:, columns]
        begin = end
    full = (np.full(len(chain), 100, np.float32) if chain.confidence is None else chain.confidence for chain in chains)
    return Structures(
        coordinates=torch.from_numpy(coordinates),
        mask=torch.from_numpy(mask),
        letters=_joined((np.frombuffer(chain.letters.encode("ascii"), np.uint8) for chain in chains), (), np.uint8),
        positions=_joined((chain.residue for chain in chains), (), np.int64),
        confidence=_joined(full, (), np.float32),
        offsets=offsets,
    )


def _joined(arrays: Iterable[NDArray], shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
    """The arrays end to end along the first axis as one tensor; zero rows of `shape` if there are none."""
    return torch.from_numpy(np.concatenate([np.zeros((0, *shape), kind), *arrays], dtype=kind))


def _offsets(lengths: Iterable[int]) -> Tensor:
    return offsets_of(torch.tensor(list(lengths), dtype=torch.int64))
