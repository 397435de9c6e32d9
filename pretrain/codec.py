"""A sample as the bytes that it has inside a shard, and back.

A sample becomes one `<key>.safetensors` member (sequence, coordinates, terms, texts) and one `<key>.<i>.<type>` member
per image, still encoded. The safetensors header carries a single metadata key, `sample`, canonical JSON: several keys
come out in another order in every process, one key does not, and so the same protein is the same bytes everywhere.

`decode` checks shapes and runs, which says of an array what `Sample` asks of it. Arrays, letters, terms and texts are
made when they are asked for, because a step draws one structure and one text of a protein; `whole` asks for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pretrain.member import (
    ABSENT,
    About,
    Chain,
    CorruptSample,
    Header,
    Tensors,
    Term,
    Text,
    parse,
    serialize,
    terms_of,
    texts_of,
)
from pretrain.sample import FARTHEST, KEY, LONGEST, STEP, Function, Image, Sample, Structure, letter_codes

T = TypeVar("T")
FORMAT = 1
KNOWN, UNKNOWN = frozenset(each.name for each in fields(About)), About()


def encode(sample: Sample) -> list[tuple[str, bytes]]:
    """The sample's members, name and bytes, in the order they stand in a shard. Equal samples give equal bytes."""
    about: dict[str, object] = {"format": FORMAT, "key": sample.key}
    tensors: dict[str, NDArray[np.generic]] = {}
    if sample.sequence:
        tensors["sequence"] = letter_codes(sample.sequence)
    if sample.structures:
        about["structures"] = [_pack(sample, i, tensors) for i in range(len(sample.structures))]
    if sample.function:
        about["terms"] = [[term.id, term.evidence] for term in sample.function.terms]
        about["texts"] = [[text.text, text.origin] for text in sample.function.texts]
    if sample.images:
        about["images"] = [_caption(image) for image in sample.images]
    if sample.about:
        about["about"] = {name: value for name, value in asdict(sample.about).items() if value}
    members = [(f"{sample.key}.safetensors", serialize(tensors, about))]
    return members + [(f"{sample.key}.{i}.{image.type}", image.data) for i, image in enumerate(sample.images)]


def decode(members: Mapping[str, bytes]) -> Sample:
    """The sample of `encode`'s members. Raises CorruptSample, saying what was wrong, for anything else."""
    for name in members:  # it is the first, unless somebody else has written them
        if name.endswith(".safetensors"):
            break
    else:
        raise CorruptSample(f"no .safetensors member among {sorted(members)}")
    try:
        return _decode(name.removesuffix(".safetensors"), members, *parse(members[name]))
    except CorruptSample:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptSample(f"{name}: {type(error).__name__}: {error}") from error


def whole(sample: Sample) -> Sample:
    """The sample, all of it made and held to its contract. Raises CorruptSample for what `decode` has not looked at."""
    try:
        known = sample.function and replace(sample.function)
        return replace(sample, structures=tuple(replace(each) for each in sample.structures), function=known)
    except CorruptSample:
        raise
    except ValueError as error:
        raise CorruptSample(str(error)) from error


def _decode(key: str, members: Mapping[str, bytes], header: Header, tensors: Tensors) -> Sample:
    if header.format != FORMAT or header.key != key or not KEY.fullmatch(key):
        raise CorruptSample(f"{key}: format {header.format}, key {header.key!r}; expected {FORMAT}, {key!r}")
    sequence = tensors.text("sequence")
    structures = tuple([_unpack(f"{i}.", chain, tensors, sequence) for i, chain in enumerate(header.structures)])
    if (header.terms is ABSENT) != (header.texts is ABSENT):
        raise CorruptSample(f"{key}: header has only one of terms and texts")
    known = (header.terms, header.texts)
    function = None if header.terms is ABSENT else _made(_Function, _json=known)
    images = header.images and tuple(
        [
            Image(data=members[f"{key}.{i}.{each.type}"], **msgspec.structs.asdict(each))
            for i, each in enumerate(header.images)
        ]
    )
    about = UNKNOWN
    if header.about:
        if not header.about.keys() <= KNOWN:
            raise CorruptSample(f"{key}: {', '.join(sorted(header.about.keys() - KNOWN))} is not known about a protein")
        about = _made(About, **header.about)  # the class has the defaults
    if not (sequence or structures or images or any(bytes(each).strip(b"[] \t\r\n") for each in known)):
        raise CorruptSample(f"{key} has no modality")
    return _made(
        Sample, key=key, sequence=sequence, structures=structures, function=function, images=images, about=about
    )


def _caption(image: Image) -> dict[str, object]:
    """An image's JSON entry: everything but its bytes; what is empty is not stored."""
    named = {name: value for name in ("antibody", "gene", "cell_line") if (value := getattr(image, name))}
    return {"id": image.id, "present": list(image.present), "type": image.type, **named}


def _pack(sample: Sample, i: int, tensors: dict[str, NDArray[np.generic]]) -> dict[str, object]:
    """Put structure i's arrays into `tensors`; what a default says already is not stored. Returns its JSON entry."""
    structure, prefix = sample.structures[i], f"{i}."
    steps = np.where(structure.mask[..., None], np.rint(structure.coordinates / STEP), 0)
    wide = np.abs(steps).max(initial=0) > np.iinfo(np.int16).max
    tensors[prefix + "xyz"] = steps.astype("<i4" if wide else "<i2")
    if not structure.mask.all():
        tensors[prefix + "mask"] = structure.mask.astype(np.uint8)
    if sample.sequence is None or structure.mismatch(sample.sequence).any():
        tensors[prefix + "letters"] = letter_codes(structure.letters)
    if structure.confidence is not None:
        tensors[prefix + "confidence"] = np.rint(structure.confidence).clip(0, 100).astype(np.uint8)
    if structure.states is not None:
        tensors[prefix + "states"] = letter_codes(structure.states)
    if structure.pae is not None:
        tensors[prefix + "pae"] = structure.pae
    entry: dict[str, object] = {"id": structure.id, "atoms": list(structure.atoms), "runs": _runs(structure.residue)}
    if structure.resolution is not None:
        entry["resolution"] = round(float(structure.resolution), 2)
    if structure.identity is not None:
        entry["identity"] = round(float(structure.identity), 4)
    return entry


def _unpack(prefix: str, entry: Chain, tensors: Tensors, sequence: str | None) -> Structure:
    """A structure, held to its contract (see `_check`) by runs and shapes."""
    stored, atoms, count, end = tensors.table.get, len(entry.atoms), 0, 0
    for start, run in entry.runs:
        if start < end or run < 1:
            raise CorruptSample(f"structure {entry.id}: not strictly increasing: runs {entry.runs!r:.80}")
        count, end = count + run, start + run
    steps = tensors.table[prefix + "xyz"]
    if not count or steps.shape != (count, atoms, 3):
        raise CorruptSample(f"structure {entry.id}: {steps.shape} steps, {atoms} atoms, runs {entry.runs!r:.80}")
    if end > (LONGEST if sequence is None else len(sequence)):
        raise CorruptSample(f"structure {entry.id}: residue {end - 1} lies beyond the sequence")
    for name in ("letters", "confidence", "states"):
        if (part := stored(prefix + name)) is not None and part.shape != (count,):
            raise CorruptSample(f"structure {entry.id}: {count} residues, {name} {part.shape}")
    for name, wide in (("mask", atoms), ("pae", count)):
        if (part := stored(prefix + name)) is not None and part.shape != (count, wide):
            raise CorruptSample(f"structure {entry.id}: {count} residues, {atoms} atoms, {name} {part.shape}")
    if sequence is None and stored(prefix + "letters") is None:
        raise CorruptSample(f"structure {entry.id} has neither letters nor a sequence")
    structure = _made(
        _Structure,
        id=entry.id,
        atoms=entry.atoms,
        resolution=entry.resolution,
        identity=entry.identity,
        _packed=(tensors, prefix, entry.runs, sequence),
    )
    if steps.dtype == "I32" and not (np.abs(structure.coordinates) < FARTHEST).all():
        raise CorruptSample(f"structure {entry.id}: coordinates beyond {FARTHEST:.1e} Å")
    return structure


_later: Any = cached_property  # to a type checker it could not stand in for a field


class _Structure(Structure):
    """What `_pack` has made of a structure, made back when it is asked for."""

    _packed: tuple[Tensors, str, Sequence[tuple[int, int]], str]

    def _array(self, name: str) -> NDArray | None:
        return self._packed[0].array(self._packed[1] + name)

    def _text(self, name: str) -> str | None:
        return self._packed[0].text(self._packed[1] + name)

    @_later
    def coordinates(self) -> NDArray[np.float32]:
        steps = self._array("xyz")
        assert steps is not None, "its shape has been checked"
        return np.multiply(steps, np.float32(STEP), dtype=np.float32)

    @_later
    def mask(self) -> NDArray[np.bool_]:
        mask = self._array("mask")
        return np.ones(self.coordinates.shape[:2], dtype=bool) if mask is None else mask.astype(bool)

    @_later
    def residue(self) -> NDArray[np.int32]:
        parts = [np.arange(start, start + count, dtype=np.int32) for start, count in self._packed[2]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @_later
    def letters(self) -> str:
        _, _, runs, sequence = self._packed
        letters = self._text("letters")
        return "".join([sequence[start : start + count] for start, count in runs]) if letters is None else letters

    @_later
    def confidence(self) -> NDArray[np.float32] | None:
        confidence = self._array("confidence")
        return None if confidence is None else confidence.astype(np.float32)

    @_later
    def states(self) -> str | None:
        return self._text("states")

    @_later
    def pae(self) -> NDArray[np.uint8] | None:
        return self._array("pae")


class _Function(Function):
    """Terms and texts, made when they are asked for."""

    _json: tuple[msgspec.Raw, msgspec.Raw]

    @_later
    def terms(self) -> tuple[Term, ...]:
        return terms_of(self._json[0])

    @_later
    def texts(self) -> tuple[Text, ...]:
        return texts_of(self._json[1])


def _made(kind: type[T], **values: object) -> T:
    """A frozen record, as it is: for parts that have been checked already."""
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", values)
    return made


def _runs(residue: NDArray[np.int32]) -> list[list[int]]:
    """[start, count] of each unbroken stretch: a chain has few gaps, so this is bytes where a column is kilobytes."""
    breaks = np.flatnonzero(np.diff(residue) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(residue, breaks)]
