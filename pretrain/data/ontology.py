"""The Gene Ontology's terms as numbers: which row of a table a term is, and which rows lie above it. numpy only.

A sample stores its direct terms; what they imply is in the data set's one `ontology.json` (written by
`data_prep.ontology`, whose relations are these: `is_a` and `part_of`, across namespaces). A model that embeds terms
carries the table, so that what is exported of it needs no ontology beside it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.places import Place

FILE, FORMAT = "ontology.json", 1
ID = re.compile(r"GO:(\d{7})")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """V terms in the order of their ids.

    numbers: int64 [V], strictly increasing: the digits of each id. starts: int64 [V + 1], members: int64 [starts[-1]]:
    term v and every term above it are the rows members[starts[v] : starts[v + 1]], in increasing order.
    """

    numbers: NDArray[np.int64]
    starts: NDArray[np.int64]
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @staticmethod
    def read(place: Place) -> "Vocabulary":
        """Of a data set's folder. Raises ValueError where it has no ontology, or one that cannot be used."""
        where = place / FILE
        lacking = "and the model reads GO terms: prepare the data set with an [ontology], or set model.terms=false"
        if not place.exists(FILE):
            raise ValueError(f"{where} is missing, {lacking}")
        try:
            tree = json.loads(place.read(FILE))
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']!r}, this version reads {FORMAT}")
            parents = {id: [*term["is_a"], *term["part_of"]] for id, term in tree["terms"].items()}
            found = Vocabulary.of(parents) if parents else None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}; prepare the data set again") from error
        if found is None:  # prepared without an ontology
            raise ValueError(f"{where} has no term, {lacking}")
        return found

    @staticmethod
    def of(parents: Mapping[str, Iterable[str]]) -> "Vocabulary":
        """parents: term → the terms directly above it; those that are no key lead nowhere, as in a subset of GO.

        Raises ValueError for no term at all, for an id that is none of GO's, and for a term above itself.
        """
        if wrong := [id for id in parents if not ID.fullmatch(id)]:
            raise ValueError(f"{wrong[0]!r} is no id of a GO term (GO: and seven digits)")
        if not parents:
            raise ValueError("there is not one live term")
        names = sorted(parents)
        row = {id: i for i, id in enumerate(names)}
        above = _closure([[row[each] for each in parents[id] if each in row] for id in names], names)
        lengths = [len(each) for each in above]
        return Vocabulary(
            np.array([_number(id) for id in names], np.int64),
            np.cumsum([0, *lengths], dtype=np.int64),
            np.array([each for members in above for each in sorted(members)], np.int64),
        )

    @staticmethod
    def from_tables(tables: Mapping[str, Any]) -> "Vocabulary":
        """Of `tables()`, in whatever type they were kept. Raises ValueError for what cannot be a vocabulary's."""
        numbers, starts, members = (
            np.asarray(tables[name], dtype=np.int64) for name in ("numbers", "starts", "members")
        )
        if (
            starts.shape != (len(numbers) + 1,)
            or (np.diff(numbers) <= 0).any()
            or (np.diff(starts) < 1).any()
            or (starts[0], starts[-1]) != (0, len(members))
            or (members < 0).any()
            or (members >= len(numbers)).any()
        ):
            raise ValueError("the table of GO terms is damaged: its rows do not add up; export the model again")
        return Vocabulary(numbers, starts, members)

    def tables(self) -> dict[str, NDArray[np.int64]]:
        """By name, for whoever keeps them."""
        return {"numbers": self.numbers, "starts": self.starts, "members": self.members}

    @cached_property
    def sha256(self) -> str:
        """Of terms and relations: equal vocabularies have equal ones, whatever the texts of their ontologies."""
        return hashlib.sha256(b"".join(table.astype("<i8").tobytes() for table in self.tables().values())).hexdigest()

    def rows(self, ids: Iterable[str]) -> list[int]:
        """Each known term's row, once, in increasing order. An id that is not in the table is left out."""
        numbers = np.array(sorted({_number(id) for id in ids if ID.fullmatch(id)}), np.int64)
        places = self.numbers.searchsorted(numbers)
        known = self.numbers[np.minimum(places, len(self) - 1)] == numbers
        return places[known].tolist()

    def unknown(self, ids: Iterable[str]) -> list[str]:
        """Those that `rows` leaves out, sorted."""
        return sorted(id for id in set(ids) if not self.rows([id]))


def _number(id: str) -> int:
    return int(id.removeprefix("GO:"))


def _closure(parents: list[list[int]], names: list[str]) -> list[set[int]]:
    """Per term, itself and everything above it. Depth first, without recursion: each is joined once."""
    found: list[set[int] | None] = [None] * len(parents)
    for first in range(len(parents)):
        way, open_ = [first], {first}
        while way:
            last = way[-1]
            missing = [p for p in parents[last] if found[p] is None]
            if not missing:
                found[last] = {last}.union(*(found[p] or () for p in parents[last]))
                open_.discard(way.pop())
            elif missing[0] in open_:
                raise ValueError(f"{names[missing[0]]} is above itself")
            else:
                way.append(missing[0])
                open_.add(missing[0])
    return [each for each in found if each is not None]
