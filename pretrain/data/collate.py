"""Samples → a `Batch`: what each protein contributes (`pretrain.data.draw`), laid end to end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batch import Batch, Images, Labels, Sequences, Structures, Terms, Texts, Tokens, offsets_of
from pretrain.data.draw import InputSpec, Row, draw
from pretrain.sample import BACKBONE, CHANNELS, Modality, Sample, Structure, letter_codes


def collate(samples: Sequence[Sample], slots: Sequence[int], seed: int, step: int, spec: InputSpec) -> Batch:
    """The micro-batch of `samples`, whose places in step `step` are `slots`. No samples give a batch of zero rows."""
    rows = [draw(sample, slot, seed, step, spec) for sample, slot in zip(samples, slots, strict=True)]
    return pack(rows, seed, step, spec)


def pack(
    rows: Sequence[Row], seed: int, step: int, spec: InputSpec, stored: Mapping[Modality, int] | None = None
) -> Batch:
    """The rows end to end. `lengths` are the tokens that remain of each once encoders and window are done with it.

    stored: modality → width of its stored features; the batch has tokens of each, zero rows of them at least.
    """
    lengths = torch.tensor([_lengths(row, spec) for row in rows], dtype=torch.int64).reshape(len(rows), len(Modality))
    pixels = [pixels for row in rows for pixels, _ in row.images]
    views = [row.view for row in rows if row.view is not None]
    assert len(views) == (len(rows) if spec.view else 0), "a view of every protein, or of none"
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
            torch.from_numpy(np.array([piece for row in rows for piece in row.ids], dtype=np.int64)),
            _offsets(len(row.ids) for row in rows),
        ),
        image=Images(
            _joined((plane[None] for plane in pixels), (len(CHANNELS), spec.image_size, spec.image_size), np.float32),
            _joined((present[None] for row in rows for _, present in row.images), (len(CHANNELS),), np.bool_),
            _offsets(len(row.images) for row in rows),
        ),
        stored={modality: _tokens(rows, modality, width, spec) for modality, width in (stored or {}).items()},
        labels=Labels(
            _joined((row.label for row in rows if row.label is not None), (), np.float32),
            _offsets(0 if row.label is None else len(row.label) for row in rows),
            torch.tensor([row.label is not None for row in rows], dtype=torch.bool),
        ),
        view=pack(views, seed, step, replace(spec, view=None), stored) if spec.view else None,
        terms=None if spec.terms is None else _terms(rows),
    )


def _terms(rows: Sequence[Row]) -> Terms:
    ids = torch.tensor([each for row in rows for each in row.terms], dtype=torch.int64)
    return Terms(ids, _offsets(len(row.terms) for row in rows))


def _tokens(rows: Sequence[Row], modality: Modality, width: int, spec: InputSpec) -> Tokens:
    """A modality's stored features. Positions are those that its encoder gives."""
    held = [row for row in rows if modality in row.stored]
    values = _joined((row.stored[modality] for row in held), (width,), np.uint16).view(torch.bfloat16)
    places = _joined((_positions(row, modality, spec) for row in held), (), np.int64)
    return Tokens(values, _offsets(len(row.stored.get(modality, ())) for row in rows), places)


def _positions(row: Row, modality: Modality, spec: InputSpec) -> NDArray[np.integer]:
    count = len(row.stored[modality])
    match modality:
        case Modality.SEQUENCE:
            return row.window[0] + np.arange(count)
        case Modality.STRUCTURE:
            assert row.structure is not None
            return row.structure.residue[slice(*np.searchsorted(row.structure.residue, row.window))]
        case Modality.FUNCTION:
            return np.arange(count)
        case Modality.IMAGE:
            return np.arange(count) % spec.image_patches
    assert_never(modality)


def _lengths(row: Row, spec: InputSpec) -> tuple[int, ...]:
    """Tokens of each modality, in `Modality`'s order."""
    start, stop = row.window
    sequence = 0 if row.sequence is None else min(stop, len(row.sequence)) - start
    first, last = (0, 0) if row.structure is None else row.structure.residue.searchsorted(row.window).tolist()
    image = len(row.stored.get(Modality.IMAGE, ())) or len(row.images) * spec.image_patches
    return sequence, last - first, len(row.ids), image


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
        states=_joined((_states(chain) for chain in chains), (), np.uint8),
    )


def _states(chain: Structure) -> NDArray[np.uint8]:
    return np.zeros(len(chain), np.uint8) if chain.states is None else letter_codes(chain.states)


def _joined(arrays: Iterable[NDArray], shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
    """The arrays end to end along the first axis as one tensor; zero rows of `shape` if there are none."""
    return torch.from_numpy(np.concatenate([np.zeros((0, *shape), kind), *arrays], dtype=kind))


def _offsets(lengths: Iterable[int]) -> Tensor:
    return offsets_of(torch.tensor(list(lengths), dtype=torch.int64))
