"""What a protein contributes to a step: drawn, cut to the encoders' limits, decoded.

Every draw is keyed by (seed, step, slot, purpose), so a protein of a step contributes the same on whatever rank and in
whatever micro-batch it lands. Two kinds of cutting happen, and they differ on purpose:

- An encoder's maximum is deterministic: the first `sequence_max` residues of the protein are all that exists for this
  model, and structure residues beyond them are left out with them; so features stored ahead equal those made live.
  The trade-off: the far end of a protein longer than that is never seen. `Plan.truncated` counts such proteins.
- The crop is drawn, per step, as a window of residue coordinates. Encoders do not know of it; fusion sees its inside.

A model that compares proteins with themselves has a view of each (`InputSpec.view`): the same structure in another
window and with noise on its coordinates, the sequence in that window with residues that are not told, and another of
its texts. Of what is stored, windows and texts can be drawn, but no mask and no noise: the encoder has seen the whole.

Where features are stored (`pretrain.data.stored`), the same draws are made, and rows of the drawn items are read in
place of what an encoder would make. `items`, `size` and `alone` say what an item is, for whoever stores them.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from pretrain.batch import HIDDEN
from pretrain.data.ontology import Vocabulary
from pretrain.data.stored import Held
from pretrain.masking import Purpose, ViewConfig, generator, keep
from pretrain.sample import CHANNELS, CorruptSample, Image, Modality, Sample, Structure

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
    protein in one step. modalities: those the model has; any other is treated as absent. view: how each protein is
    drawn once more, None where it is not. terms: the GO terms that the model reads beside texts, None for none; a
    protein with terms and no text has no word pieces then, and terms.
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
    view: ViewConfig | None = None
    terms: Vocabulary | None = None

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError("no encoder is configured for any modality of the model: give `encoders.<modality>`")
        if Modality.FUNCTION in self.modalities and self.tokenize is None:
            raise ValueError("function is among the model's modalities, but there is no tokenizer for its texts")
        limits = (self.sequence_max, self.structure_max or 1, self.text_max, self.crop, self.max_images)
        if min(limits) < 1:
            raise ValueError(f"limits of an encoder's input must be positive: {self}")


@dataclass(frozen=True, eq=False)
class Row:
    """What one protein contributes to its step: everything drawn, cut and decoded. Absent is None or empty.

    stored: modality → [n, D], bfloat16 as its bits, cropped to the window already. Of a modality that is stored the
    images are not decoded; sequence, structure and word pieces are there all the same, as models and scores ask for
    them. label: as `pretrain.data.labels` has it. view: the same protein drawn once more. terms: rows of
    `InputSpec.terms`, of the direct ones.
    """

    key: str
    slot: int
    window: tuple[int, int]
    sequence: NDArray[np.uint8] | None
    structure: Structure | None
    ids: list[int]
    images: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]
    stored: Mapping[Modality, NDArray[np.uint16]] = field(default_factory=dict)
    label: NDArray[np.float32] | None = None
    view: "Row | None" = None
    terms: list[int] = field(default_factory=list)


def draw(sample: Sample, slot: int, seed: int, step: int, spec: InputSpec, held: Held | None = None) -> Row:
    """One structure, one text, up to `max_images` images and a window, for the modalities that the model has; and where
    the model asks for it, a view of them.

    held: the sample's stored features. Raises CorruptSample for an image that is none, a text that cannot be tokenized,
    and features that are damaged or not the sample's.
    """

    def rng(purpose: Purpose) -> np.random.Generator:
        return generator(seed, step, slot, purpose)

    sequence, end = _sequence(sample, spec)
    chosen = {modality: _chosen(sample, modality, end, spec, rng) for modality in spec.modalities}
    structure = next((_cut(sample.structures[i], end, spec) for i in chosen.get(Modality.STRUCTURE, ())), None)
    texts = [_text(sample, i, spec) for i in chosen.get(Modality.FUNCTION, ())]
    window = _window(sequence, structure, spec.crop, rng)
    row = Row(sample.key, slot, window, sequence, structure, texts[0] if texts else [], [], terms=_terms(sample, spec))
    if held is None or Modality.IMAGE not in held.modalities:
        row = replace(row, images=[_pixels(sample.images[i], spec.image_size) for i in chosen.get(Modality.IMAGE, ())])
    row = _with_stored(row, chosen, spec, held)
    return row if spec.view is None else replace(row, view=_view(row, sample, chosen, spec.view, spec, held, rng))


def _with_stored(row: Row, chosen: Mapping[Modality, list[int]], spec: InputSpec, held: Held | None) -> Row:
    if held is None:
        return row
    stored = [modality for modality in spec.modalities if modality in held.modalities and chosen[modality]]
    return replace(row, stored={m: _stored(held, m, chosen[m], row, spec) for m in stored})


def _view(
    row: Row,
    sample: Sample,
    chosen: Mapping[Modality, list[int]],
    how: ViewConfig,
    spec: InputSpec,
    held: Held | None,
    rng: Rng,
) -> Row:
    """The row's protein once more: no function where it has one text only, and no images."""
    sequence, structure, taken = row.sequence, row.structure, {**chosen, Modality.IMAGE: []}
    window = _window(sequence, structure, spec.crop, rng, Purpose.VIEW_WINDOW, how.shortest)
    if sequence is not None and how.masked:
        hidden = keep(len(sequence), round(how.masked * len(sequence)), rng(Purpose.VIEW_HIDE))
        sequence = np.where(hidden, np.uint8(HIDDEN), sequence)
    if structure is not None and how.noise:
        noise = rng(Purpose.VIEW_NOISE).standard_normal(structure.coordinates.shape, dtype=np.float32)
        moved = structure.coordinates + how.noise * noise * structure.mask[..., None]
        structure = replace(structure, coordinates=moved.astype(np.float32))
    if text := taken.get(Modality.FUNCTION):
        others = [i for i in range(items(sample, Modality.FUNCTION)) if i != text[0]]
        taken[Modality.FUNCTION] = [others[_one_of(len(others), rng, Purpose.VIEW_TEXT)]] if others else []
    ids = [_text(sample, i, spec) for i in taken.get(Modality.FUNCTION, ())]
    view = Row(row.key, row.slot, window, sequence, structure, ids[0] if ids else [], [])
    return _with_stored(view, taken, spec, held)


def items(sample: Sample, modality: Modality) -> int:
    """How many of this modality a step can draw from: the sequence, the structures, the texts, the images."""
    match modality:
        case Modality.SEQUENCE:
            return 1 if sample.sequence else 0
        case Modality.STRUCTURE:
            return len(sample.structures)
        case Modality.FUNCTION:
            return len(sample.function.texts) if sample.function else 0
        case Modality.IMAGE:
            return len(sample.images)
    assert_never(modality)


def sees(sample: Sample, spec: InputSpec) -> bool:
    """Whether the protein has anything that the model takes."""
    return any(items(sample, modality) for modality in spec.modalities) or bool(_terms(sample, spec))


def size(sample: Sample, modality: Modality, item: int, spec: InputSpec) -> int:
    """Rows that the encoder makes of this item. 0 for a structure that begins beyond what is seen of its sequence: none
    draws it. Raises CorruptSample as `draw` does, but for an image, which is not decoded."""
    sequence, end = _sequence(sample, spec)
    match modality:
        case Modality.SEQUENCE:
            return 0 if sequence is None else len(sequence)
        case Modality.STRUCTURE:
            structure = sample.structures[item]
            return len(_cut(structure, end, spec)) if structure.residue[0] < end else 0
        case Modality.FUNCTION:
            return len(_text(sample, item, spec))
        case Modality.IMAGE:
            return spec.image_patches
    assert_never(modality)


def alone(sample: Sample, modality: Modality, item: int, spec: InputSpec) -> Row:
    """The row with this item and nothing else, whole. Packed, it is what an encoder takes to make its features."""
    sequence, end = _sequence(sample, spec)
    row = Row(sample.key, 0, (0, WHOLE), None, None, [], [])
    match modality:
        case Modality.SEQUENCE:
            return replace(row, sequence=sequence)
        case Modality.STRUCTURE:
            return replace(row, structure=_cut(sample.structures[item], end, spec))
        case Modality.FUNCTION:
            return replace(row, ids=_text(sample, item, spec))
        case Modality.IMAGE:
            return replace(row, images=[_pixels(sample.images[item], spec.image_size)])
    assert_never(modality)


def _sequence(sample: Sample, spec: InputSpec) -> tuple[NDArray[np.uint8] | None, int]:
    """(what the sequence encoder sees, the residue at which the protein ends for this model)."""
    if not sample.sequence or Modality.SEQUENCE not in spec.modalities:
        return None, WHOLE
    return np.frombuffer(sample.sequence.encode("ascii"), dtype=np.uint8)[: spec.sequence_max], spec.sequence_max


def _chosen(sample: Sample, modality: Modality, end: int, spec: InputSpec, rng: Rng) -> list[int]:
    """The items drawn: one structure of those that begin before residue `end`, one text, up to `max_images` images."""
    match modality:
        case Modality.SEQUENCE:
            return [0] if sample.sequence else []
        case Modality.STRUCTURE:
            met = [i for i, structure in enumerate(sample.structures) if structure.residue[0] < end]
            return [met[_one_of(len(met), rng, Purpose.STRUCTURE)]] if met else []
        case Modality.FUNCTION:
            texts = sample.function.texts if sample.function else ()
            return [_one_of(len(texts), rng, Purpose.TEXT)] if texts else []
        case Modality.IMAGE:
            if len(sample.images) <= spec.max_images:
                return list(range(len(sample.images)))
            return sorted(rng(Purpose.IMAGE).choice(len(sample.images), spec.max_images, replace=False).tolist())
    assert_never(modality)


def _one_of(count: int, rng: Rng, purpose: Purpose) -> int:
    return int(rng(purpose).integers(count)) if count > 1 else 0


def _terms(sample: Sample, spec: InputSpec) -> list[int]:
    if spec.terms is None or sample.function is None or Modality.FUNCTION not in spec.modalities:
        return []
    return spec.terms.rows(term.id for term in sample.function.terms)


def _text(sample: Sample, i: int, spec: InputSpec) -> list[int]:
    """The word pieces of text i."""
    assert spec.tokenize is not None and sample.function is not None, "InputSpec checks this"
    text = sample.function.texts[i].text
    try:
        return spec.tokenize(text)[: spec.text_max]
    except Exception as error:  # what a tokenizer raises for a text that is no Unicode is its own affair
        raise CorruptSample(f"text {text[:40]!r} cannot be tokenized: {type(error).__name__}: {error}") from error


def _cut(structure: Structure, end: int, spec: InputSpec) -> Structure:
    """The structure's residues before `end`, the first `structure_max` of them."""
    count = int(np.searchsorted(structure.residue, end))
    count = min(count, spec.structure_max or count)
    if count == len(structure):
        return structure
    return replace(
        structure,
        coordinates=structure.coordinates[:count],
        mask=structure.mask[:count],
        residue=structure.residue[:count],
        letters=structure.letters[:count],
        confidence=None if structure.confidence is None else structure.confidence[:count],
        states=None if structure.states is None else structure.states[:count],
        pae=None if structure.pae is None else structure.pae[:count, :count],
    )


def _stored(held: Held, modality: Modality, chosen: list[int], row: Row, spec: InputSpec) -> NDArray[np.uint16]:
    """Rows of the chosen items, of which the window keeps what `_lengths` says."""
    match modality:
        case Modality.SEQUENCE:
            assert row.sequence is not None
            return held.rows(modality, 0, len(row.sequence))[slice(*row.window)]
        case Modality.STRUCTURE:
            assert row.structure is not None
            first, last = np.searchsorted(row.structure.residue, row.window).tolist()
            return held.rows(modality, chosen[0], len(row.structure))[first:last]
        case Modality.FUNCTION:
            return held.rows(modality, chosen[0], len(row.ids))
        case Modality.IMAGE:
            return np.concatenate([held.rows(modality, item, spec.image_patches) for item in chosen])
    assert_never(modality)


def _window(
    sequence: NDArray[np.uint8] | None,
    structure: Structure | None,
    crop: int,
    rng: Rng,
    purpose: Purpose = Purpose.WINDOW,
    shortest: float = 1.0,
) -> tuple[int, int]:
    """[start, stop) of the residues that fusion sees: `crop` wide, or everything where that fits; where `shortest` is
    below 1 no wider than a share of the residues that is drawn first, from there up to 1.

    With a structure, one of its residues is drawn first and then a window around it, so that the structure is always
    met, and windows that meet more of it are likelier. Without one, every window is equally likely. Without a sequence
    the coordinates are the structure's own, from its first residue to its last.
    """
    first, stop = 0, 0 if sequence is None else len(sequence)
    if sequence is None and structure is not None:
        first, stop = int(structure.residue[0]), int(structure.residue[-1]) + 1
    random = rng(purpose) if shortest < 1 or stop - first > crop else None
    if random is not None and shortest < 1:
        crop = min(crop, max(1, round(random.uniform(shortest, 1) * (stop - first))))
    if random is None or stop - first <= crop:
        return 0, WHOLE
    low, high = first, stop - crop
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
