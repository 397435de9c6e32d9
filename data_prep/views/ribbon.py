"""A chain's CA trace → a ribbon: a swept cross-section, wide and flat in helices and strands, round elsewhere.

The direction of a ribbon's width follows from three neighbouring CA atoms (the binormal of the trace: along the axis of
a helix, in the plane of a sheet), helices and strands from distances and torsions along the trace, much as P-SEA has
them (Labesse et al., CABIOS 13:291, 1997). So a backbone without side chains, and without O, is enough.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pretrain.sample import Structure

COIL, HELIX, STRAND = 0, 1, 2
FACES = 16  # sides of a cross-section
HALF = {COIL: (0.34, 0.34), HELIX: (1.45, 0.28), STRAND: (1.15, 0.26)}  # Å: half width and half thickness
HEAD = 1.9  # Å: half width of an arrow's head
BROKEN = 4.5  # Å between two CA atoms, above which there is no bond between their residues
PIECES = 60_000  # faces of a picture; a longer chain gets fewer steps per residue

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ribbon:
    """corners: float [Q, 4, 3], Å, in the picture's axes: x right, y up, z to the viewer. normals: float [Q, 3].

    residue: int [Q], of the structure's residues. rims: float [E, 2, 3], edges between a face that is seen and one that
    is not. rim_residue: int [E]. gaps: float [G, 2, 3], from the end of a stretch to the beginning of the next.
    """

    corners: Floats
    normals: Floats
    residue: NDArray[np.int64]
    rims: Floats
    rim_residue: NDArray[np.int64]
    gaps: Floats


def ribbon(structure: Structure) -> Ribbon:
    """Turned so that its longest axes lie in the picture. Raises ValueError for a structure with fewer than two CA."""
    at = structure.atoms.index("CA")
    seen = np.flatnonzero(structure.mask[:, at])
    if len(seen) < 2:
        raise ValueError(f"structure {structure.id} has {len(seen)} CA atoms; nothing to draw")
    trace = turned(structure.coordinates[seen, at].astype(np.float64))
    bonded = (np.diff(structure.residue[seen]) == 1) & (np.linalg.norm(np.diff(trace, axis=0), axis=1) < BROKEN)
    kinds = secondary(trace, bonded)
    starts = np.flatnonzero(np.concatenate([[True], ~bonded]))
    steps = int(np.clip(PIECES / FACES / len(seen), 2, 9))
    parts = [
        _sweep(trace[begin:end], kinds[begin:end], seen[begin:end], steps)
        for begin, end in zip(starts, [*starts[1:], len(seen)], strict=True)
    ]
    gaps = np.stack([trace[starts[1:] - 1], trace[starts[1:]]], axis=1)
    corners, normals, residue, rims, rim_residue = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Ribbon(corners, normals, residue, rims, rim_residue, gaps)


def turned(trace: Floats) -> Floats:
    """Centred, the longest principal axis along x, the second along y; never mirrored. float [N, 3] in and out."""
    centred = trace - trace.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.vstack([axes, np.eye(3)])[:3] if len(axes) < 3 else axes
    for axis in axes[:2]:  # the sign is free: the beginning of the chain goes to the left, and down
        if (centred[: len(centred) // 2 + 1] @ axis).sum() > 0:
            axis *= -1
    axes[2] = np.cross(axes[0], axes[1])
    return centred @ axes.T


def secondary(trace: Floats, bonded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """COIL, HELIX or STRAND of each residue. bonded: bool [N - 1], whether a residue is bonded to the next."""
    n = len(trace)
    kinds = np.full(n, COIL)
    if n < 5:
        return kinds
    whole = bonded[:-2] & bonded[1:-1] & bonded[2:]  # windows of four residues, [N - 3]
    far = np.linalg.norm(trace[3:] - trace[:-3], axis=1)
    turn = _torsions(trace)
    helix = whole & (far > 4.6) & (far < 6.4) & (np.abs(turn - 50) < 25)
    strand = whole & (far > 8.8) & (np.abs(turn) > 115)
    kinds[_spread(helix, n, 5)] = HELIX
    candidates = np.flatnonzero(_spread(strand, n, 4) & (kinds == COIL))
    if len(candidates):  # an extended stretch is a strand if another one runs beside it
        pairs = candidates[KDTree(trace[candidates]).query_pairs(6.0, output_type="ndarray")]
        paired = np.zeros(n, dtype=bool)
        paired[pairs[np.abs(pairs[:, 0] - pairs[:, 1]) > 3].reshape(-1)] = True
        for run in np.split(candidates, np.flatnonzero(np.diff(candidates) != 1) + 1):
            inside = run[paired[run]]
            if len(inside) >= 2 and len(run) >= 3:
                kinds[run[(run >= inside[0] - 1) & (run <= inside[-1] + 1)]] = STRAND
    return kinds


def _torsions(trace: Floats) -> Floats:
    """Degrees, of each four consecutive CA atoms: [N - 3]."""
    bonds = np.diff(trace, axis=0)
    first, second = np.cross(bonds[:-2], bonds[1:-1]), np.cross(bonds[1:-1], bonds[2:])
    axis = _unit(bonds[1:-1])
    return np.degrees(np.arctan2((np.cross(first, second) * axis).sum(1), (first * second).sum(1)))


def _spread(windows: NDArray[np.bool_], n: int, least: int) -> NDArray[np.bool_]:
    """Residues in windows of four that hold, in stretches of `least` at least."""
    inside = np.zeros(n, dtype=bool)
    for shift in range(4):
        inside[shift : shift + len(windows)] |= windows
    run = 0
    for i in range(n + 1):
        if i < n and inside[i]:
            run += 1
            continue
        if run < least:
            inside[i - run : i] = False
        run = 0
    return inside


def _sweep(
    trace: Floats, kinds: NDArray[np.int64], residues: NDArray[np.int64], steps: int
) -> tuple[Floats, Floats, NDArray[np.int64], Floats, NDArray[np.int64]]:
    """One unbroken stretch: its faces' corners, normals and residues; its rims and theirs."""
    if len(trace) == 1:
        trace = np.vstack([trace, trace + np.array([0.4, 0.0, 0.0])])
        kinds, residues = np.repeat(kinds, 2), np.repeat(residues, 2)
    wide, flat = _profile(kinds)
    path = _smooth(trace, kinds)
    position = np.linspace(0, len(trace) - 1, (len(trace) - 1) * steps + 1)
    line = _spline(path, position)
    tangent = _unit(np.gradient(line, axis=0))
    across = _interpolate(_across(trace, kinds), position)
    across -= (across * tangent).sum(1, keepdims=True) * tangent
    straight = np.linalg.norm(across, axis=1) < 1e-3  # of three atoms in a line, any direction will do
    across[straight] = np.cross(tangent[straight], [0.31, 0.9, 0.3])
    across = _unit(across)
    up = np.cross(tangent, across)
    half_width, half_height = np.interp(position, *wide), np.interp(position, *flat)
    angle = np.arange(FACES) * 2 * np.pi / FACES
    ring = (
        across[:, None] * (half_width[:, None] * np.cos(angle))[..., None]
        + up[:, None] * (half_height[:, None] * np.sin(angle))[..., None]
    )
    points = line[:, None] + ring  # [P, FACES, 3]
    nexts = np.roll(points, -1, axis=1)
    corners = np.stack([points[:-1], points[1:], nexts[1:], nexts[:-1]], axis=2)  # [P - 1, FACES, 4, 3]
    normals = _unit(np.cross(corners[:, :, 2] - corners[:, :, 0], corners[:, :, 3] - corners[:, :, 1]))
    outward = (corners.mean(axis=2) - (line[:-1] + line[1:])[:, None] / 2) * normals
    normals *= np.where(outward.sum(-1, keepdims=True) < 0, -1, 1)
    owner = residues[np.rint(position[:-1]).astype(int)]
    facing = normals[..., 2] > 0
    owners = np.broadcast_to(owner[:, None], facing.shape)
    along = facing != np.roll(facing, 1, axis=1)  # the line between faces j - 1 and j is that of ring point j
    around = facing[1:] != facing[:-1]
    rims = np.concatenate(
        [np.stack([points[:-1], points[1:]], axis=2)[along], np.stack([points[1:-1], nexts[1:-1]], axis=2)[around]]
    )
    return corners[facing], normals[facing], owners[facing], rims, np.concatenate([owners[along], owners[1:][around]])


def _profile(kinds: NDArray[np.int64]) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(positions, half widths) and (positions, half thicknesses) along a stretch; a strand ends in an arrow's head."""
    at = np.arange(len(kinds), dtype=float)
    width = np.array([HALF[kind][0] for kind in kinds.tolist()])
    height = np.array([HALF[kind][1] for kind in kinds.tolist()])
    more: list[tuple[float, float]] = []
    ends = np.flatnonzero((kinds == STRAND) & (np.append(kinds[1:], COIL) != STRAND))
    for end in ends:
        if end >= 2 and kinds[end - 2] == STRAND:
            more += [(end - 1.3, HALF[STRAND][0]), (end - 1.28, HEAD)]
            width[end - 1 : end + 1] = [HEAD * 0.72, HALF[COIL][0] * 0.8]
    pairs = sorted([*zip(at.tolist(), width.tolist(), strict=True), *more])
    return (np.array([p for p, _ in pairs]), np.array([w for _, w in pairs])), (at, height)


def _smooth(trace: Floats, kinds: NDArray[np.int64]) -> Floats:
    """Strands lose their pleat, coils a little of their corners."""
    for _ in range(2):
        mean = trace.copy()
        mean[1:-1] = (trace[:-2] + 2 * trace[1:-1] + trace[2:]) / 4
        share = np.where(kinds == STRAND, 1.0, np.where(kinds == COIL, 0.35, 0.0))[:, None]
        trace = trace * (1 - share) + mean * share
    return trace


def _across(trace: Floats, kinds: NDArray[np.int64]) -> Floats:
    """Unit vectors along the ribbon's width, without jumps: [N, 3]."""
    if len(trace) < 3:
        return np.tile([0.0, 1.0, 0.0], (len(trace), 1))
    bend = 2 * trace[1:-1] - trace[:-2] - trace[2:]
    width = _unit(np.cross(trace[2:] - trace[:-2], bend))
    width = np.vstack([width[:1], width, width[-1:]])
    for i in range(1, len(width)):
        if width[i] @ width[i - 1] < 0:
            width[i] *= -1
    for _ in range(2):
        width[1:-1] = (width[:-2] + 2 * width[1:-1] + width[2:]) / 4
    return _unit(width)


def _spline(points: Floats, position: Floats) -> Floats:
    """Catmull-Rom through points 0, 1, …, at fractional positions."""
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    low = np.minimum(position.astype(int), len(points) - 2)
    t = (position - low)[:, None]
    a, b, c, d = (padded[low + shift] for shift in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def _interpolate(vectors: Floats, position: Floats) -> Floats:
    at = np.arange(len(vectors))
    return np.stack([np.interp(position, at, vectors[:, axis]) for axis in range(3)], axis=1)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
