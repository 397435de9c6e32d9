"""A chain's residues placed in its protein's sequence.

The chain is aligned globally with its stated range of the sequence, and with the whole of it where no range is stated
or the range does not fit (other releases and isoforms number differently). Free ends of the sequence cost nothing: most
chains are a part of their protein. Residues that align to nothing (tags, fusions) are left out of the structure.

Three ways, cheapest first: an exact substring; no gap but those that the chain's own numbers show, taken when nothing
with gaps can score better; Biopython's aligner. The second also places unobserved loops right, which letters cannot.
The first two take time in proportion to the sequence and find two thirds and a quarter of experimental chains, and all
models of the same sequence; the third, in proportion to chain times sequence, takes most of the time for all that: a
quarter of a millisecond per chain of the PDB. It is not asked where its table would be too large (titin's half against
titin); such a chain is placed by its numbers, or not at all.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

MATCH, MISMATCH, OPEN, EXTEND = 2.0, -1.0, -10.0, -0.1
SURE = int(-OPEN / (MATCH - MISMATCH))  # so few mismatches are cheaper than any gap that could avoid them
CELLS = 10**8  # of the aligner's table, two bytes each
SEED = 12  # residues of an unbroken stretch, enough to be found in one place only


@dataclass(frozen=True, eq=False)
class Placement:
    """kept: int [K], indices of the chain's residues that have a place. residue: int [K], their 0-based places.

    identity: share of the K residues that equal the sequence. aligned: K over the chain's length.
    """

    kept: NDArray[np.intp]
    residue: NDArray[np.int32]
    identity: float
    aligned: float


def place(
    letters: str,
    number: NDArray[np.int32],
    sequence: str,
    begin: int | None,
    end: int | None,
    shift: int | None,
    identity: float,
    aligned: float,
) -> Placement:
    """The best placement of a chain; one of less `identity` and `aligned` than these only if there is none better.

    begin, end: stated range, 1-based inclusive. shift: stated difference between position and residue number.
    """
    start, stop = (begin or 1) - 1, end or len(sequence)
    if not 0 <= start < stop <= len(sequence):
        start, stop = 0, len(sequence)
    exact = _exact(letters, number, sequence, start, stop)
    if exact is not None:
        return exact
    numbered = _numbered(letters, number, sequence, start, shift)
    if round((1 - numbered.identity) * len(letters)) <= SURE or len(letters) * len(sequence) > CELLS:
        return numbered
    placement = _gapped(letters, sequence, start, stop)
    if (start, stop) != (0, len(sequence)) and (placement.identity < identity or placement.aligned < aligned):
        whole = _gapped(letters, sequence, 0, len(sequence))
        placement = max(placement, whole, key=lambda p: p.identity * p.aligned)
    return placement


def _exact(letters: str, number: NDArray[np.int32], sequence: str, start: int, stop: int) -> Placement | None:
    """The chain as an unbroken piece of the sequence, in the stated range if it is there too."""
    if number[-1] - number[0] + 1 != len(number):
        return None  # a gap in the numbers: the letters may only happen to join
    at = sequence.find(letters, start, stop)
    at = sequence.find(letters) if at < 0 else at
    return None if at < 0 else _at(np.arange(at, at + len(letters)), letters, sequence)


def _numbered(letters: str, number: NDArray[np.int32], sequence: str, start: int, shift: int | None) -> Placement:
    """The chain at its own numbers plus the likeliest constant: the first that is sure, or the best."""
    shifts = [shift, start - int(number[0]), -1]
    breaks = np.flatnonzero(np.diff(number) != 1) + 1
    longest = max(np.split(np.arange(len(number)), breaks), key=len)
    middle = longest[len(longest) // 2 :][:SEED]
    if len(middle) == SEED and (at := sequence.find(letters[middle[0] : middle[-1] + 1])) >= 0:
        shifts.append(at - int(number[middle[0]]))
    best = Placement(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.int32), 0.0, 0.0)
    for candidate in dict.fromkeys(s for s in shifts if s is not None):
        residue = number + candidate
        if residue[0] >= 0 and residue[-1] < len(sequence):
            best = max(best, _at(residue, letters, sequence), key=lambda placement: placement.identity)
            if round((1 - best.identity) * len(letters)) <= SURE:
                break
    return best


def _gapped(letters: str, sequence: str, start: int, stop: int) -> Placement:
    """Global alignment with affine gaps against sequence[start:stop]."""
    target, query = _aligner().align(sequence[start:stop], letters)[0].aligned
    residue = np.concatenate([np.arange(a, b) for a, b in target]) if len(target) else np.zeros(0, dtype=np.int64)
    kept = np.concatenate([np.arange(a, b) for a, b in query]) if len(query) else np.zeros(0, dtype=np.int64)
    same = _codes(letters)[kept] == _codes(sequence)[residue + start]
    return Placement(
        kept, (residue + start).astype(np.int32), float(same.mean()) if len(same) else 0.0, len(kept) / len(letters)
    )


def _at(residue: NDArray[np.integer], letters: str, sequence: str) -> Placement:
    same = _codes(letters) == _codes(sequence)[residue]
    return Placement(np.arange(len(letters)), residue.astype(np.int32), float(same.mean()), 1.0)


def _codes(letters: str) -> NDArray[np.uint8]:
    return np.frombuffer(letters.encode("ascii", "replace"), dtype=np.uint8)


@cache
def _aligner():
    from Bio.Align import PairwiseAligner

    aligner = PairwiseAligner(mode="global", match_score=MATCH, mismatch_score=MISMATCH)
    aligner.open_gap_score, aligner.extend_gap_score = OPEN, EXTEND
    aligner.end_deletion_score = 0.0  # sequence beyond the chain
    aligner.end_insertion_score = EXTEND  # chain beyond the sequence: a tag
    return aligner
