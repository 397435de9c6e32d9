"""What hangs together: sets of things joined by pairs, for hundreds of millions of things.

A thing is a number. Its set is named by the smallest number in it, so that neither the order of the pairs nor their
direction changes anything. Pairs come in blocks and are forgotten: memory is 8 bytes per thing, and some per pair of
one block. (scipy's `connected_components` wants all pairs at once, as a matrix of floats and its transpose.)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def alone(count: int) -> Numbers:
    """`root`, int64 [count]: each thing by itself. `root[i] <= i`, and a set's smallest member is its own root."""
    return np.arange(count, dtype=np.int64)


def join(root: Numbers, a: NDArray[Any], b: NDArray[Any]) -> None:
    """Put a[i] and b[i] into one set, for every i. Changes `root`."""
    while len(a):
        a, b = find(root, a), find(root, b)
        apart = a != b
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))  # a root goes below a smaller one: never a circle


def find(root: Numbers, of: NDArray[Any]) -> Numbers:
    """The sets' names; the ways to them are made shorter on the way."""
    at = root[of]
    while not np.array_equal(up := root[at], at):
        root[of] = at = up
    return at


def settle(root: Numbers, block: int = 1 << 22) -> None:
    """Make `root` name every thing's set directly. From small to large: what lies before a block has its name."""
    for begin in range(0, len(root), block):
        part = root[begin : begin + block]
        part[:] = find(root, np.arange(begin, begin + len(part)))


def pairs(marks: NDArray[np.uint64], numbers: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(a, b) that join the numbers which have the same mark; `marks` and `numbers` belong together."""
    order = np.argsort(marks, kind="stable")
    same = np.flatnonzero(marks[order[1:]] == marks[order[:-1]])
    return numbers[order[same]], numbers[order[same + 1]]
