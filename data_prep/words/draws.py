"""Draws that come out alike in every version of Python.

Of the `random` module, only the sequence of `random()` for a seed is promised to stay; `choice`, `sample` and `shuffle`
may change with a version, and have. Descriptions are part of a data set's bytes, so theirs are made of `random()` here.
"""

from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A sequence of draws that is named by a text: the same name, the same draws."""

    def __init__(self, name: str) -> None:
        self.random = Random(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")).random

    def below(self, bound: int) -> int:
        return int(self.random() * bound)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different ones, or all if there are fewer, in random order."""
        rest, found = list(items), []
        while rest and len(found) < count:
            at = self.below(len(rest))
            rest[at], rest[-1] = rest[-1], rest[at]
            found.append(rest.pop())
        return found
