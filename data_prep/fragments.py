"""The fragments of one long protein's model, F1, F2, …, joined where they overlap.

AlphaFold DB (human proteome, up to version 4) has proteins of more than 2,700 residues as models of 1,400 residues that
begin 200 apart: F1 is 1–1400, F2 is 201–1600. Each is a prediction of its own, in a frame of its own, numbered from 1;
its begin in the protein is in the file, and follows from the fragment's number where it is not.

Two predictions agree in domains rather than in how these lie to each other. So a fragment is superposed on what is
joined already over the largest set of confident residues that fits as one rigid body, and joined only if that is most
of them. Then the chain goes over from the one to the other in a single place: there, of the places where they fit best,
the sum of pLDDT over the overlap is highest. (Taking each residue from the better of the two would break the chain at
every change between them.) A residue keeps the pLDDT and the 3Di state that it has in its fragment; aligned errors
between fragments are unknown, so a joined structure has none.

Fragments that do not fit stay apart: each run that does becomes a structure, `AF-P12345-F1-F4` for F1 to F4, and a
rejection says why it ends there.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pydantic
from numpy.typing import NDArray

from data_prep.records import Rejection, StructureRecord
from pretrain.config import Config

PART = re.compile(r"(?P<model>AF-.+)-F(?P<fragment>\d+)")
VERSION = re.compile(r"_v(\d+)\b")
WINDOW = 30  # confident residues of a first try at superposing: within a domain, wherever this begins
ROUNDS = 20  # of fitting again to those that fit; most fits are settled after three
CLASH = 3.0  # Å between two CA that are no neighbours; cis-prolines have 2.9 to their neighbours
Vectors = NDArray[np.float64]  # [N, 3], Å


class FragmentConfig(Config):
    """step: residues between the begins of fragments, where a file does not say its begin.

    min_overlap: common residues with CA. min_confident: those of them with pLDDT of at least `confident` in both.
    near: Å between the CA of a residue that agrees. min_agreeing: share of the confident ones that must. max_rmsd: Å,
    over those that do, weighted by pLDDT. max_clashing: share of the residues added that lie within 3 Å of others.
    """

    step: int = pydantic.Field(default=200, ge=1)
    min_overlap: int = pydantic.Field(default=30, ge=3)
    confident: float = 70.0
    min_confident: int = pydantic.Field(default=30, ge=3)
    near: float = pydantic.Field(default=4.0, gt=0)
    min_agreeing: float = pydantic.Field(default=0.5, ge=0, le=1)
    max_rmsd: float = pydantic.Field(default=2.0, gt=0)
    max_clashing: float = pydantic.Field(default=0.02, ge=0, le=1)


def assemble(
    records: Iterable[StructureRecord], config: FragmentConfig | None = None
) -> tuple[list[StructureRecord], list[Rejection]]:
    """One protein's structures, those that are fragments of one model joined; whole ones as they are, and in place."""
    config = config or FragmentConfig()
    groups: dict[object, list[StructureRecord]] = {}
    for i, record in enumerate(records):
        part = PART.fullmatch(record.id) if record.fragment else None
        groups.setdefault((part["model"], record.atoms) if part else i, []).append(record)
    kept: list[StructureRecord] = []
    rejected: list[Rejection] = []
    for group in groups.values():
        if {record.fragment for record in group} <= {0, 1}:
            kept += group
        else:
            kept += _model(group, config, rejected)
    return kept, rejected


def _model(group: list[StructureRecord], config: FragmentConfig, rejected: list[Rejection]) -> list[StructureRecord]:
    """The structures that fragments of one model make: one if all meet."""
    parts = _one_of_each(group, rejected)
    placed = sorted((_placed(part, config) for part in parts), key=lambda part: (part.number[0], part.fragment))
    numbers = [part.fragment for part in placed]
    runs: list[list[int]] = []
    joined: list[StructureRecord] = []
    for part in placed:
        result = _join(joined[-1], part, config) if joined else None
        if isinstance(result, StructureRecord):
            joined[-1] = result
            runs[-1].append(part.fragment)
            continue
        gap = bool(runs) and part.fragment - runs[-1][-1] > 1
        if result and not (gap and result.reason == "fragments_do_not_overlap"):  # which is no wonder, and told below
            rejected.append(result)
        if not (result and result.reason == "redundant_fragment"):
            joined.append(part)
            runs.append([part.fragment])
    rejected += _missing(placed, numbers, [run[0] for run in runs[1:]])
    whole = len(runs) == 1 and numbers[0] == 1
    original = {part.fragment: part for part in parts}
    return [
        original[run[0]] if len(run) == 1 else _named(structure, run, whole)
        for structure, run in zip(joined, runs, strict=True)
    ]


def _one_of_each(group: list[StructureRecord], rejected: list[Rejection]) -> list[StructureRecord]:
    """Of several files of one fragment, the newest version's; of these the first by name."""

    def order(record: StructureRecord) -> tuple[int, int, str, str]:
        member = VERSION.search(record.position.rpartition("/")[2])  # of an archive
        version = member or VERSION.search(record.source.rpartition("/")[2])
        return record.fragment, -int(version[1]) if version else 0, record.source, record.position

    found: dict[int, StructureRecord] = {}
    for record in sorted(group, key=order):
        if first := found.get(record.fragment):
            detail = f"{record.id} is in {first.source} too, which is taken"
            rejected.append(Rejection("duplicate_fragment", record.key, record.source, detail, record.position))
        else:
            found[record.fragment] = record
    return list(found.values())


def _placed(record: StructureRecord, config: FragmentConfig) -> StructureRecord:
    """With 0-based positions in the protein for its numbers."""
    if record.shift is not None:
        position = record.number + record.shift
    else:
        begin = (record.fragment - 1) * config.step + 1 if record.begin is None else record.begin
        position = record.number - record.number[0] + begin - 1
    return replace(record, number=position.astype(np.int32))


def _named(structure: StructureRecord, run: list[int], whole: bool) -> StructureRecord:
    model = PART.fullmatch(structure.id)
    assert model
    first, last = int(structure.number[0]), int(structure.number[-1])
    return replace(
        structure,
        id=model["model"] if whole else f"{model['model']}-F{run[0]}-F{run[-1]}",
        begin=first + 1,
        end=last + 1,
        shift=0,
        pae=None,
        fragment=0,
        position=f"F{run[0]} to F{run[-1]}",
    )


def _missing(placed: list[StructureRecord], numbers: list[int], starts: list[int]) -> list[Rejection]:
    """A rejection for each gap in the fragments' numbers. starts: fragments that begin a run of their own."""
    found = []
    for before, part in pairwise([None, *placed]):
        last = before.fragment if before else 0
        if part is None or part.fragment - last <= 1:
            continue
        absent = f"F{last + 1}" if part.fragment - last == 2 else f"F{last + 1} to F{part.fragment - 1}"
        if before is None:
            effect = f"the model begins at residue {part.number[0] + 1}"
        elif part.fragment in starts:
            effect = f"F{last} and F{part.fragment} stay apart"
        else:
            effect = f"F{last} and F{part.fragment} overlap enough to be joined without"
        detail = f"{part.id}: {absent} missing of F1 to F{numbers[-1]}; {effect}"
        found.append(Rejection("missing_fragment", part.key, part.source, detail, part.position))
    return found


def _join(joined: StructureRecord, part: StructureRecord, config: FragmentConfig) -> StructureRecord | Rejection:
    """The chain so far, with the fragment from some place of their overlap on."""
    common, a, b = np.intersect1d(joined.number, part.number, assume_unique=True, return_indices=True)

    def reject(reason: str, detail: str) -> Rejection:
        what = f"{part.id} and what comes before it have {len(common)} residues in common; {detail}"
        return Rejection(reason, part.key, part.source, what, part.position)

    if other := [i for i, j in zip(a, b, strict=True) if joined.letters[i] != part.letters[j]]:
        at = int(joined.number[other[0]])
        return reject("fragment_letters_differ", f"{len(other)} of them differ, the first is residue {at + 1}")
    ca = part.atoms.index("CA") if "CA" in part.atoms else -1
    both = joined.mask[a, ca] & part.mask[b, ca] if ca >= 0 else np.zeros(len(a), dtype=bool)
    if both.sum() < config.min_overlap:
        return reject("fragments_do_not_overlap", f"{both.sum()} with CA, min_overlap is {config.min_overlap}")
    if part.number[-1] <= joined.number[-1]:
        return reject("redundant_fragment", f"it ends at residue {part.number[-1] + 1}, where they have ended already")
    earlier, later = _weights(joined)[a], _weights(part)[b]
    sure = both & (np.minimum(earlier, later) >= config.confident)
    if sure.sum() < config.min_confident:
        detail = f"{sure.sum()} with pLDDT of {config.confident:.0f} in both, min_confident is {config.min_confident}"
        return reject("fragments_do_not_meet", detail)
    fixed, moving = (each.astype(np.float64) for each in (joined.coordinates[a, ca], part.coordinates[b, ca]))
    turn, shift = _superpose(moving[sure], fixed[sure], (earlier + later)[sure], config.near)
    off = np.where(both, np.linalg.norm(moving @ turn + shift - fixed, axis=1), np.inf)
    agreeing = sure & (off < config.near)
    share = agreeing.sum() / sure.sum()
    weights = (earlier + later)[agreeing]
    rmsd = float(np.sqrt((weights * np.square(off[agreeing])).sum() / weights.sum())) if agreeing.any() else np.inf
    seam = _seam(common, off, earlier, later, config.near)
    if share < config.min_agreeing or rmsd > config.max_rmsd or seam is None:
        detail = (
            f"of {sure.sum()} confident ones {share:.2f} lie within {config.near:g} Å (min_agreeing is"
            f" {config.min_agreeing:g}), their RMSD is {rmsd:.2f} Å (max_rmsd is {config.max_rmsd:g})"
        )
        return reject("fragments_disagree", detail)
    moved = np.where(part.mask[..., None], part.coordinates.astype(np.float64) @ turn + shift, 0.0)
    part = replace(part, coordinates=moved.astype(np.float32))
    head, tail, added = joined.number < seam, part.number >= seam, part.number > joined.number[-1]
    before, after = joined.coordinates[head, ca][joined.mask[head, ca]], part.coordinates[added, ca]
    if (clashing := _clashing(before[:-2], after[part.mask[added, ca]]) / added.sum()) > config.max_clashing:
        detail = f"{clashing:.3f} of what it adds lies within {CLASH:g} Å of it (max_clashing is {config.max_clashing})"
        return reject("fragments_clash", detail)
    return _concatenated(joined, head, part, tail)


def _weights(record: StructureRecord) -> NDArray[np.float64]:
    """pLDDT, at least 1; of a model without, as if all were sure."""
    sure = np.full(len(record.letters), 100.0) if record.confidence is None else record.confidence.astype(np.float64)
    return np.maximum(sure, 1.0)


def _superpose(moving: Vectors, fixed: Vectors, weights: NDArray[np.float64], near: float) -> tuple[Vectors, Vectors]:
    """(R, t) of the rigid motion, moving @ R + t, that brings most points near to theirs.

    It is looked for from the fits of stretches of the chain, because that of all points lies between domains that have
    moved against each other and fits none.
    """

    def off(turn: Vectors, shift: Vectors) -> NDArray[np.float64]:
        return np.linalg.norm(moving @ turn + shift - fixed, axis=1)

    starts = range(0, max(len(moving) - WINDOW, 0) + 1, WINDOW // 2)
    tries = [slice(None), *(slice(at, at + WINDOW) for at in starts)]
    fits = [_rigid(moving[some], fixed[some], weights[some]) for some in tries]
    best = max(fits, key=lambda fit: np.count_nonzero(off(*fit) < near))
    close = off(*best) < near
    for _ in range(ROUNDS):
        if close.sum() < 3:
            break
        fit = _rigid(moving[close], fixed[close], weights[close])
        now = off(*fit) < near
        if now.sum() < close.sum():
            break
        settled, best, close = bool((now == close).all()), fit, now
        if settled:
            break
    return best


def _rigid(moving: Vectors, fixed: Vectors, weights: NDArray[np.float64]) -> tuple[Vectors, Vectors]:
    """The motion of least weighted square distance (Kabsch 1976)."""
    weights = weights[:, None] / weights.sum()
    from_, to = (weights * moving).sum(0), (weights * fixed).sum(0)
    u, _, v = np.linalg.svd((weights * (moving - from_)).T @ (fixed - to))
    mirror = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v))])
    turn = u @ mirror @ v
    return turn, to - from_ @ turn


def _seam(
    common: NDArray[np.int32],
    off: NDArray[np.float64],
    earlier: NDArray[np.float64],
    later: NDArray[np.float64],
    near: float,
) -> int | None:
    """The first position that is taken from the later of two: in the best quarter of the places where they meet."""
    apart = np.maximum(off[:-1], off[1:])  # at the step from one common residue to the next
    meet = (np.diff(common) == 1) & (apart < near)
    if not meet.any():
        return None
    meet &= apart <= np.quantile(apart[meet], 0.25)
    gained = np.cumsum(earlier - later)[:-1]  # pLDDT, if all up to here are the earlier one's
    best = np.flatnonzero(meet & (gained >= gained[meet].max()))[-1]
    return int(common[best + 1])


def _clashing(before: NDArray[np.float32], added: NDArray[np.float32]) -> int:
    """How many of the added CA lie too near to one of those before."""
    if not len(before) or not len(added):
        return 0
    box = (before > added.min(0) - CLASH) & (before < added.max(0) + CLASH)
    old, new = before[box.all(1)].astype(np.float64), added.astype(np.float64)
    squared = np.square(new).sum(1)[:, None] + np.square(old).sum(1) - 2.0 * new @ old.T
    return int((squared < CLASH**2).any(1).sum())


def _concatenated(
    head: StructureRecord, some: NDArray[np.bool_], tail: StructureRecord, rest: NDArray[np.bool_]
) -> StructureRecord:
    def letters(a: str, b: str) -> str:
        return "".join(np.concatenate([np.array(list(a))[some], np.array(list(b))[rest]]))

    confidence = None
    if head.confidence is not None and tail.confidence is not None:
        confidence = np.concatenate([head.confidence[some], tail.confidence[rest]])
    return replace(
        head,
        letters=letters(head.letters, tail.letters),
        coordinates=np.concatenate([head.coordinates[some], tail.coordinates[rest]]),
        mask=np.concatenate([head.mask[some], tail.mask[rest]]),
        number=np.concatenate([head.number[some], tail.number[rest]]),
        confidence=confidence,
        states=None if head.states is None or tail.states is None else letters(head.states, tail.states),
    )
