"""One protein, any subset of modalities, and the bytes it has inside a shard. Imports numpy and msgspec only.

A sample becomes one `<key>.safetensors` member (sequence, coordinates, terms, texts) and one `<key>.<i>.<type>` member
per image, still encoded. The safetensors header carries a single metadata key, `sample`, canonical JSON: several keys
come out in another order in every process, one key does not, and so the same protein is the same bytes everywhere.

`decode` checks types, shapes and runs, which says of an array what `Sample` asks of it; arrays are made when asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import IntFlag, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pretrain.member import About, Chain, CorruptSample, Header, Term, Text, parse, serialize
from pretrain.member import canonical as canonical

T = TypeVar("T")
FORMAT = 1
KEY = re.compile(r"[A-Za-z0-9_-]+")
MAX_KEY = 80  # characters of a key in a data set; a tar header has 100 for a member's name
BACKBONE = ("N", "CA", "C", "O")
CHANNELS = ("protein", "nucleus", "microtubules", "er")  # the planes of an image, in the order of its PNG's bands
STEP = 0.01  # Å; coordinates are stored in these
LONGEST = 1 << 31  # residues; positions are of 32 bits
KNOWN = frozenset(each.name for each in fields(About))
FARTHEST = STEP * np.iinfo(np.int32).max  # Å; what the widest stored type holds


class Modality(StrEnum):
    """What fusion models join. The order is that of every table and of every folder name."""

    SEQUENCE = "sequence"
    STRUCTURE = "structure"
    FUNCTION = "function"
    IMAGE = "image"


class Facet(IntFlag):
    """What a sample has, in the detail the index stores: function splits into terms and text."""

    SEQUENCE = 1
    STRUCTURE = 2
    TERMS = 4
    TEXT = 8
    IMAGE = 16


@dataclass(frozen=True, eq=False)
class Structure:
    """One chain's backbone, in the numbering of its protein's full sequence.

    coordinates: float32 [L, A, 3], Å, about the centroid of the present atoms; 0 where an atom is missing.
    mask: bool [L, A], True where the atom is present.
    residue: int32 [L], 0-based position in the full sequence, strictly increasing. Without a sequence: 0..L-1 by the
        source's own numbering, gaps kept.
    letters: the chain's own residues, L one-letter codes (`X` unknown).
    confidence: float32 [L], pLDDT 0–100, or None for an experiment. resolution: Å, or None.
    identity: share of the L residues equal to the sequence at `residue`, or None where there is no sequence.
    states: L letters of the 3Di alphabet (van Kempen et al. 2024), or None.
    pae: uint8 [L, L], predicted aligned error in Å (row: the residue aligned on), or None.
    """

    id: str
    coordinates: NDArray[np.float32]
    mask: NDArray[np.bool_]
    residue: NDArray[np.int32]
    letters: str
    atoms: tuple[str, ...] = BACKBONE[:3]
    confidence: NDArray[np.float32] | None = None
    resolution: float | None = None
    identity: float | None = None
    states: str | None = None
    pae: NDArray[np.uint8] | None = None

    if not TYPE_CHECKING:  # to a type checker, any misspelt name would be an array

        def __getattr__(self, name: str) -> NDArray:
            """Coordinates, mask and residues of a structure that was read: a step draws one structure, not all."""
            if name not in ("coordinates", "mask", "residue") or "_packed" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self.__dict__.update(_arrays(*self.__dict__["_packed"]))
            return self.__dict__[name]

    def __len__(self) -> int:
        return len(self.letters)

    def mismatch(self, sequence: str) -> NDArray[np.bool_]:
        """bool [L]: where the chain's residue differs from the sequence's (a mutant, an expression tag, a variant)."""
        return _letters(sequence)[self.residue] != _letters(self.letters)


@dataclass(frozen=True)
class Function:
    """What is known of a protein's function: terms, texts, or both; one at least is present."""

    terms: tuple[Term, ...] = ()
    texts: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Image:
    """A microscope image, still encoded: an 8-bit PNG. Its bands are the leading `CHANNELS`; `present` are real.

    antibody, gene, cell_line: as the source names them, or empty. Images of one antibody or gene share a split.
    """

    id: str
    data: bytes = field(repr=False)
    present: tuple[str, ...] = CHANNELS
    type: str = "png"
    antibody: str = ""
    gene: str = ""
    cell_line: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """One protein. Any field may be absent, one at least is present; absence is a missing field, never a filler."""

    key: str
    sequence: str | None = None
    structures: tuple[Structure, ...] = ()
    function: Function | None = None
    images: tuple[Image, ...] = ()
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        self._named()
        for structure in self.structures:
            _check(self, structure)

    def _named(self) -> None:
        if not KEY.fullmatch(self.key):
            raise ValueError(f"sample key {self.key!r} must match {KEY.pattern} (webdataset splits names at dots)")
        if not any(self._held):
            raise ValueError(f"sample {self.key} has no modality; one at least must be present")

    @property
    def _held(self) -> tuple[object, ...]:
        """In the order of the bits of `Facet`."""
        known = self.function
        return self.sequence, self.structures, known and known.terms, known and known.texts, self.images

    @cached_property
    def facets(self) -> Facet:
        return Facet(sum(1 << bit for bit, value in enumerate(self._held) if value))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return modalities(self.facets)


def modalities(facets: Facet) -> tuple[Modality, ...]:
    """The modalities that a set of facets amounts to, in `Modality`'s order."""
    of = {
        Modality.SEQUENCE: Facet.SEQUENCE,
        Modality.STRUCTURE: Facet.STRUCTURE,
        Modality.FUNCTION: Facet.TERMS | Facet.TEXT,
        Modality.IMAGE: Facet.IMAGE,
    }
    return tuple(modality for modality, facet in of.items() if facets & facet)


def group_name(subset: tuple[Modality, ...]) -> str:
    """The folder of samples with exactly this subset: `sequence_structure_function`."""
    return "_".join(subset)


def encode(sample: Sample) -> list[tuple[str, bytes]]:
    """The sample's members, name and bytes, in the order they stand in a shard. Equal samples give equal bytes."""
    about: dict[str, object] = {"format": FORMAT, "key": sample.key}
    tensors: dict[str, NDArray[np.generic]] = {}
    if sample.sequence:
        tensors["sequence"] = _letters(sample.sequence)
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
    name = next((name for name in members if name.endswith(".safetensors")), None)
    if name is None:
        raise CorruptSample(f"no .safetensors member among {sorted(members)}")
    try:
        return _decode(name.removesuffix(".safetensors"), members, *parse(members[name]))
    except CorruptSample:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptSample(f"{name}: {type(error).__name__}: {error}") from error


def _decode(key: str, members: Mapping[str, bytes], header: Header, tensors: dict[str, NDArray]) -> Sample:
    if header.format != FORMAT or header.key != key:
        raise CorruptSample(f"{key}: format {header.format}, key {header.key!r}; expected {FORMAT}, {key!r}")
    sequence = _text(tensors.get("sequence"))
    structures = tuple([_unpack(i, chain, tensors, sequence) for i, chain in enumerate(header.structures)])
    if (header.terms is None) != (header.texts is None):
        raise CorruptSample(f"{key}: header has only one of terms and texts")
    function = None if header.terms is None else Function(header.terms, header.texts or ())
    pictures = (
        (members[f"{key}.{i}.{each.type}"], msgspec.structs.asdict(each)) for i, each in enumerate(header.images)
    )
    images = tuple([Image(data=data, **entry) for data, entry in pictures])
    if not header.about.keys() <= KNOWN:
        raise CorruptSample(f"{key}: {', '.join(sorted(header.about.keys() - KNOWN))} is not known about a protein")
    about = _made(About, **header.about)  # the class has the defaults
    parts = {"sequence": sequence, "structures": structures, "function": function, "images": images}
    sample = _made(Sample, key=key, about=about, **parts)
    sample._named()
    return sample


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
        tensors[prefix + "letters"] = _letters(structure.letters)
    if structure.confidence is not None:
        tensors[prefix + "confidence"] = np.rint(structure.confidence).clip(0, 100).astype(np.uint8)
    if structure.states is not None:
        tensors[prefix + "states"] = _letters(structure.states)
    if structure.pae is not None:
        tensors[prefix + "pae"] = structure.pae
    entry: dict[str, object] = {"id": structure.id, "atoms": list(structure.atoms), "runs": _runs(structure.residue)}
    if structure.resolution is not None:
        entry["resolution"] = round(float(structure.resolution), 2)
    if structure.identity is not None:
        entry["identity"] = round(float(structure.identity), 4)
    return entry


def _unpack(i: int, entry: Chain, tensors: dict[str, NDArray], sequence: str | None) -> Structure:
    """Structure i, held to its contract (see `_check`) by runs, types and shapes."""
    steps, atoms, count, end = tensors[f"{i}.xyz"], len(entry.atoms), 0, 0
    for start, run in entry.runs:
        if start < end or run < 1:
            raise CorruptSample(f"structure {entry.id}: not strictly increasing: runs {entry.runs!r:.80}")
        count, end = count + run, start + run
    if not count or steps.shape != (count, atoms, 3):
        raise CorruptSample(f"structure {entry.id}: {steps.shape} steps, {atoms} atoms, runs {entry.runs!r:.80}")
    if end > (LONGEST if sequence is None else len(sequence)):
        raise CorruptSample(f"structure {entry.id}: residue {end - 1} lies beyond the sequence")
    shapes, found = {"mask": (count, atoms), "pae": (count, count)}, {}
    for name in ("mask", "letters", "confidence", "states", "pae"):
        found[name] = tensor = tensors.get(f"{i}.{name}")
        if tensor is not None and tensor.shape != shapes.get(name, (count,)):
            raise CorruptSample(f"structure {entry.id}: {count} residues, {atoms} atoms, {name} {tensor.shape}")
    if (letters := _text(found["letters"])) is None:
        if sequence is None:
            raise CorruptSample(f"structure {entry.id} has neither letters nor a sequence")
        letters = "".join([sequence[start : start + run] for start, run in entry.runs])
    structure = _made(
        Structure,
        id=entry.id,
        letters=letters,
        atoms=entry.atoms,
        confidence=None if found["confidence"] is None else found["confidence"].astype(np.float32),
        resolution=entry.resolution,
        identity=entry.identity,
        states=_text(found["states"]),
        pae=found["pae"],
        _packed=(steps, found["mask"], entry.runs),
    )
    if steps.itemsize > 2 and not (np.abs(structure.coordinates) < FARTHEST).all():
        raise CorruptSample(f"structure {entry.id}: coordinates beyond {FARTHEST:.1e} Å")
    return structure


def _made(kind: type[T], **values: object) -> T:
    """A frozen record, as it is: for parts that have been checked already."""
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made


def _runs(residue: NDArray[np.int32]) -> list[list[int]]:
    """[start, count] of each unbroken stretch: a chain has few gaps, so this is bytes where a column is kilobytes."""
    breaks = np.flatnonzero(np.diff(residue) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(residue, breaks)]


def _arrays(steps: NDArray, mask: NDArray | None, runs: Sequence[tuple[int, int]]) -> dict[str, NDArray]:
    """What `_pack` has made of a structure, made back."""
    parts = [np.arange(start, start + count, dtype=np.int32) for start, count in runs]
    return {
        "coordinates": np.multiply(steps, np.float32(STEP), dtype=np.float32),
        "mask": np.ones(steps.shape[:2], dtype=bool) if mask is None else mask.astype(bool),
        "residue": parts[0] if len(parts) == 1 else np.concatenate(parts),
    }


def _check(sample: Sample, structure: Structure) -> None:
    """Hold a structure to its contract; broken coordinates must not reach a shard."""
    length, atoms = len(structure), len(structure.atoms)
    where = f"sample {sample.key}, structure {structure.id}"
    if not length or structure.coordinates.shape != (length, atoms, 3) or structure.mask.shape != (length, atoms):
        raise ValueError(
            f"{where}: {length} letters, coordinates {structure.coordinates.shape}, mask {structure.mask.shape}"
        )
    if len(structure.residue) != length or structure.residue[0] < 0 or (np.diff(structure.residue) <= 0).any():
        raise ValueError(f"{where}: residue positions must be {length} strictly increasing numbers from 0 up")
    if sample.sequence is not None and structure.residue[-1] >= len(sample.sequence):
        raise ValueError(f"{where}: residue {structure.residue[-1]} lies beyond the sequence's {len(sample.sequence)}")
    if structure.confidence is not None and structure.confidence.shape != (length,):
        raise ValueError(f"{where}: {length} residues, confidence of shape {structure.confidence.shape}")
    if structure.states is not None and len(structure.states) != length:
        raise ValueError(f"{where}: {length} residues, {len(structure.states)} 3Di states")
    if structure.pae is not None and structure.pae.shape != (length, length):
        raise ValueError(f"{where}: {length} residues, aligned errors of shape {structure.pae.shape}")
    if not (np.abs(structure.coordinates) < FARTHEST).all():  # NaN neither
        raise ValueError(f"{where}: coordinates are not finite, or beyond {FARTHEST:.1e} Å")


def _text(tensor: NDArray | None) -> str | None:
    """The letters that `_letters` has made bytes of. Raises ValueError where they are none."""
    if tensor is not None and tensor.itemsize != 1:
        raise ValueError(f"letters of type {tensor.dtype}")
    return None if tensor is None else tensor.tobytes().decode("ascii")


def _letters(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
