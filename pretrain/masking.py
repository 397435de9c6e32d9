"""Every random draw of training, keyed by (seed, step, slot, purpose) and by nothing else."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the format of a run: append, never renumber."""

    STRUCTURE = 1
    TEXT = 2
    IMAGE = 3
    WINDOW = 4
    DROPOUT = 5
    BUDGET = 6
    KEEP = 7


def generator(seed: int, step: int, slot: int, purpose: Purpose) -> np.random.Generator:
    """A counter-based generator (Philox): the same draw for the same protein of the same step on any rank, in any order."""
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, purpose, slot, step]))
