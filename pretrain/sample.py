"""One protein and any subset of modalities: what a sample may hold, and is held to. Imports numpy and msgspec only."""

import re
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pretrain.member import About, Term, Text
from pretrain.member import CorruptSample as CorruptSample
from pretrain.member import canonical as canonical

KEY = re.compile(r"[A-Za-z0-9_-]+")
MAX_KEY = 80  # characters of a key in a data set; a tar header has 100 for a member's name
BACKBONE = ("N", "CA", "C", "O")
CHANNELS = ("protein", "nucleus", "microtubules", "er")  # the planes of an image, in the order of its PNG's bands
STEP = 0.01  # Å; coordinates are stored in these
LONGEST = 1 << 31  # residues; positions are of 32 bits
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

    def __len__(self) -> int:
        return len(self.letters)

    def mismatch(self, sequence: str) -> NDArray[np.bool_]:
        """bool [L]: where the chain's residue differs from the sequence's (a mutant, an expression tag, a variant)."""
        return letter_codes(sequence)[self.residue] != letter_codes(self.letters)


@dataclass(frozen=True)
class Function:
    """What is known of a protein's function: terms, texts, or both; one at least is present."""

    terms: tuple[Term, ...] = ()
    texts: tuple[Text, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and (self.terms, self.texts) == (other.terms, other.texts)


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
        if not KEY.fullmatch(self.key):
            raise ValueError(f"sample key {self.key!r} must match {KEY.pattern} (webdataset splits names at dots)")
        if not any(self._held):
            raise ValueError(f"sample {self.key} has no modality; one at least must be present")
        for structure in self.structures:
            _check(self, structure)

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


def letter_codes(text: str) -> NDArray[np.uint8]:
    """ASCII codes."""
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
