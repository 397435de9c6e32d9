"""3Di states of a chain: a letter per residue for how it meets its nearest one (van Kempen et al. 2024, Foldseek).

Ten descriptors of a residue and of the one nearest to it in space go through a small network and to the nearest of
twenty centroids. The network is mini3di's (a port of Foldseek's), read from the installed package. The geometry is done
here, on arrays: mini3di's own takes 3 to 5 times as long, holds several L × L matrices at once, and runs the network in
float32, where a near tie may depend on the processor. Here all is float64, so equal coordinates give equal letters.

Nearness is between virtual centres, whose direction comes from CB. Where atoms have "CB", it is used where it is there;
otherwise, and for glycine, it is placed by N, CA and C, as Foldseek does it. With CB the letters are Foldseek's own, to
the last one; with CB placed, 3 % of an AlphaFold model's differ and 5 % of an experimental chain's.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

CENTRE = 2.0  # times the distance CA–CB: how far the virtual centre is from CA
BOND = 1.5336  # Å, CA–CB of a CB that is placed
CELLS = 1 << 17  # distances held at once: 1 MB
Vectors = NDArray[np.float64]  # [3, L]


def states(coordinates: NDArray[np.float32], mask: NDArray[np.bool_], atoms: tuple[str, ...]) -> str:
    """L letters of the 3Di alphabet. coordinates: [L, A, 3], Å. mask: [L, A]. atoms: A names, N, CA and C among them.

    `D` (mini3di's letter for it) stands where there is no state: at both ends, and where the residue, the one it meets,
    or a neighbour in the chain of either lacks N, CA or C. Residues are neighbours as they are given: as in Foldseek, a
    gap in the chain is none. Raises ValueError without N, CA or C.
    """
    if missing := {"N", "CA", "C"} - set(atoms):
        raise ValueError(f"3Di states need N, CA and C; {sorted(missing)} are not among the atoms {atoms}")
    alphabet, nothing, _, _ = _network()
    slots = [atoms.index(name) for name in ("N", "CA", "C")]
    whole = np.logical_and(mask[:, slots].all(1), np.isfinite(coordinates[:, slots]).all((1, 2)))
    found = np.full(len(mask), nothing, dtype=np.uint8)
    meets = whole.copy()
    meets[:1] = meets[-1:] = False
    if meets.sum() > 1:
        n, ca, c = (np.where(whole, coordinates[:, slot].T, 0.0).astype(np.float64) for slot in slots)
        cb = _beta(n, ca, c)
        if "CB" in atoms:
            slot = atoms.index("CB")
            cb = np.where(mask[:, slot], coordinates[:, slot].T, cb)
        here = np.flatnonzero(meets)
        there = here[_nearest(_centre(n, ca, cb)[:, here])]
        kept = np.logical_and.reduce([whole[at + step] for at in (here, there) for step in (-1, 1)])
        here, there = here[kept], there[kept]
        found[here] = _encode(_descriptors(ca, here, there))
    return alphabet[found].tobytes().decode("ascii")


@cache
def _network() -> tuple[NDArray[np.bytes_], int, list[tuple[NDArray, NDArray, bool]], NDArray[np.float64]]:
    """mini3di's alphabet, its letter for no state, its layers (weights, biases, whether rectified), and centroids."""
    import mini3di
    from mini3di.encoder import ALPHABET

    encoder = mini3di.Encoder()
    *dense, last = (vars(layer) for layer in encoder.vae_encoder.layers)
    layers = [
        (np.asarray(layer["weights"], float), np.asarray(layer["biases"], float), layer["activation"])
        for layer in dense
    ]
    return ALPHABET.astype("S1"), encoder._INVALID_STATE, layers, np.asarray(last["centroids"], float)


def _encode(descriptors: NDArray[np.float64]) -> NDArray[np.intp]:
    """descriptors: [K, 10] → K indices of the alphabet."""
    _, _, layers, centroids = _network()
    values = descriptors
    for weights, biases, rectified in layers:
        values = np.einsum("ij,jk->ik", values, weights) + biases
        if rectified:
            values = np.maximum(values, 0.0)
    return (np.square(centroids).sum(1) - 2.0 * np.einsum("ik,ck->ic", values, centroids)).argmin(1)


def _descriptors(ca: Vectors, here: NDArray[np.intp], there: NDArray[np.intp]) -> NDArray[np.float64]:
    """Angles of the chain at both residues and between them, their distance, and their steps apart in the chain."""
    along = _unit(ca[:, 1:] - ca[:, :-1])
    before, after, before_there, after_there = (along[:, at] for at in (here - 1, here, there - 1, there))
    apart = ca[:, there] - ca[:, here]
    across, distance, steps = _unit(apart), np.sqrt(_dot(apart, apart)), (there - here).astype(np.float64)
    pairs = [
        (before, after),
        (before_there, after_there),
        (before, across),
        (before_there, across),
        (before, after_there),
        (after, before_there),
        (before, before_there),
    ]
    cosines = [_dot(a, b) for a, b in pairs]
    return np.stack([*cosines, distance, steps.clip(-4, 4), np.copysign(np.log(np.abs(steps) + 1.0), steps)], axis=1)


def _nearest(points: Vectors) -> NDArray[np.intp]:
    """Of each of K > 1 points, the index of the nearest other; in blocks, so that titin is no harm."""
    points = points - points.mean(1, keepdims=True)
    squared, count = _dot(points, points), points.shape[1]
    found = np.empty(count, dtype=np.intp)
    step = max(CELLS // count, 1)
    for begin in range(0, count, step):
        end = min(begin + step, count)
        distance = np.einsum("di,dj->ij", -2.0 * points[:, begin:end], points)  # BLAS would start threads for this
        distance += squared
        distance[np.arange(end - begin), np.arange(begin, end)] = np.inf
        found[begin:end] = distance.argmin(1)
    return found


def _centre(n: Vectors, ca: Vectors, cb: Vectors) -> Vectors:
    """In the plane of N, CA and CB, at a right angle to CA–CB, on the side that N is not on."""
    beta = cb - ca
    return ca - CENTRE * _cross(_unit(_cross(beta, n - ca)), beta)


def _beta(n: Vectors, ca: Vectors, c: Vectors) -> Vectors:
    """CB at the corner of a tetrahedron that N and C leave free."""
    along, other = _unit(c - ca), _unit(n - ca)
    third = along / 3.0
    up = other + third
    side = _unit(_cross(along, up))
    return ca + BOND * (-np.sqrt(8.0) / 6.0 * (_unit(up) + np.sqrt(3.0) * side) - third)


def _cross(a: Vectors, b: Vectors) -> Vectors:
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _dot(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(a: Vectors) -> Vectors:
    """Of length one; nothing stays nothing."""
    length = np.sqrt(_dot(a, a))
    return a / np.where(length > 0, length, 1.0)
