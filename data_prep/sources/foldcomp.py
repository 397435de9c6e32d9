"""Foldcomp databases: AlphaFold DB whole in 1.1 TB, or a proteome in megabytes (https://foldcomp.foldseek.com).

A database is a file of entries end to end, an `.index` of lines `key, offset, length`, and a `.lookup` of lines `key,
name, set`. A task reads the entries of a range of the index's bytes, in the order in which they lie in the data, and
looks their names up; without a lookup file the entry's own title is its name. A name like `AF-P12345-F1-model_v4` gives
accession and fragment, and so the residues' place in the protein. What Foldcomp leaves out (versions, sequence ranges)
no record has; coordinates differ from the model's by 0.1 Å, pLDDT by 0.2.

A damaged entry is rejected. A damaged index, or data that end before it says so, stop the run: the rest would be lost.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pydantic

from data_prep.records import Items, Rejection
from data_prep.sources.coordinates import fcz
from data_prep.sources.coordinates.chains import MODEL, Wanted, records
from data_prep.sources.coordinates.references import Facts, Segment
from data_prep.sources.coordinates.residues import Chain
from data_prep.sources.files import Slice, SourceError, Stream, find
from data_prep.sources.structures import Structures
from pretrain.places import Place

LINE = re.compile(rb"(\d{1,10})[ \t]+(\d{1,18})[ \t]+(\d{1,10})\s*")
BYTES = 24  # of a line of the index, about: what makes `entries` a range of bytes
BLOCK = 8 << 20  # bytes of neighbouring entries read at once
APART = 1 << 16  # bytes between entries that are rather read than asked for anew
LONGEST = 16 << 20  # bytes of an entry; one of 65,535 residues, as many as its header can say, has 2 MB
PROBE = 1 << 12  # bytes of the lookup read to see where it is; a line has 30
STEP = 200  # residues between the begins of a long model's fragments
ENDING = re.compile(r"\.(?:gz|cif|mmcif|pdb|ent|fcz|bcif)$")
Entry = tuple[int, int, int]  # key, offset, length


class Damaged(ValueError):
    """A database that cannot be read to its end; never a rejection."""


class Foldcomp(Structures):
    """`kind = "foldcomp"`. files: databases, with or without `.index`. entries: per task, about.

    predicted: B-factors are pLDDT, as in every database that is published. The rest is as of structures; `members`,
    `pae` and `max_megabytes` mean nothing here.
    """

    kind: Literal["foldcomp"] = "foldcomp"  # pyright: ignore[reportIncompatibleVariableOverride]
    entries: int = pydantic.Field(default=4096, ge=1)
    predicted: bool = True

    def slices(self, root: Place) -> list[Slice]:
        """Ranges of each database's index. Raises ValueError without the package, and for a file without an index."""
        fcz.library()
        names = [name for name in find(root, self.patterns) if not name.endswith((".lookup", ".dbtype", ".source"))]
        found = []
        for name in dict.fromkeys(name.removesuffix(".index") for name in names):
            for needed in (name, f"{name}.index"):
                if not root.exists(needed):
                    raise ValueError(f"{root}: no {needed}; a Foldcomp database is both files, fetch it too")
            index = f"{name}.index"
            size, step = root.stat(index).bytes, self.entries * BYTES
            if not size:
                raise ValueError(f"{root}: {index} is empty; fetch the database again, or leave it out")
            found += [Slice((index,), at, min(at + step, size)) for at in range(0, size, step)]
        return found

    def parse(self, stream: Stream) -> Items:
        """stream: the index. Raises Damaged."""
        assert stream.place is not None
        place, name, first = stream.place, stream.name.removesuffix(".index"), stream.begin == 0
        entries = _entries(stream, name, place.stat(name).bytes)
        lookup = f"{name}.lookup" if place.exists(f"{name}.lookup") else ""
        names = _names(place, lookup, entries) if lookup and entries else {}
        for (key, _, _), data in _read(place, name, entries):
            position = f"entry {key}"
            try:
                if lookup and key not in names:
                    raise SourceError("unnamed_entry", f"{lookup} has no key {key}; fetch it again")
                for item in self._entry(names.get(key), data):
                    yield self._finished(replace(item, source=name, position=position))
            except SourceError as error:
                problem = f"{name}, {position}, {names.get(key, 'without a name')}: {error}"
                if self.on_error == "stop":
                    raise SourceError(error.reason, problem, position) from error
                yield Rejection(error.reason, names.get(key, f"{name}#{key}"), name, problem, position)
        for file in (name, lookup) if first else ():
            if file:
                with Stream.open(place, file) as whole:
                    yield whole.seen()

    def _entry(self, name: str | None, data: bytes) -> Items:
        title, chain = fcz.chain(data)
        name = name or title
        while name != (name := ENDING.sub("", name)):
            pass
        wanted = Wanted(self.atoms, self.min_residues, self.states, whole=self.manifest is not None)
        yield from records(name, [chain], _facts(name, chain, self.predicted), wanted)


def _facts(name: str, chain: Chain, predicted: bool) -> Facts:
    """A fragment's range follows from its number; it is what AlphaFold DB's own files say."""
    model = MODEL.search(name)
    if not model:
        return Facts(name, predicted, label=False)
    begin = (int(model["fragment"]) - 1) * STEP + 1
    first, last = int(chain.number[0]), int(chain.number[-1])
    segment = Segment(model["accession"], begin, begin + last - first, first, last)
    return Facts(name, predicted, chains={chain.name: [segment]}, label=False)


def _entries(stream: Stream, name: str, size: int) -> list[Entry]:
    """The entries of a range of the index, in the order of the data. size: of the data. Raises Damaged."""
    found = []
    for at, line in stream.pieces(b"\n"):
        match = LINE.fullmatch(line)
        key, offset, length = (int(number) for number in match.groups()) if match else (0, 0, LONGEST + 1)
        if length > LONGEST:
            raise Damaged(f"{stream.name}: {line!r:.60} at byte {at} is not key, offset, length; fetch it again")
        if offset + length > size:
            raise Damaged(
                f"{name}: entry {key} lies at bytes {offset} to {offset + length} of {size}; the database is cut short,"
                " or the index is another's: fetch it again"
            )
        found.append((key, offset, length))
    return sorted(found, key=lambda entry: entry[1:])


def _read(root: Place, name: str, entries: list[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Each entry's bytes; neighbours are read together."""
    begin = 0
    while begin < len(entries):
        end, start, stop = begin, entries[begin][1], entries[begin][1]
        while end < len(entries) and entries[end][1] - stop <= APART:
            last = sum(entries[end][1:])
            if end > begin and last - start > BLOCK:
                break
            end, stop = end + 1, max(stop, last)
        block = root.read(name, start, stop - start)
        for entry in entries[begin:end]:
            _, offset, length = entry
            yield entry, block[offset - start : offset - start + length]
        begin = end


def _names(root: Place, name: str, entries: list[Entry]) -> dict[int, str]:
    """What the lookup calls these entries. It is in the order of keys: where to begin is found by halves."""
    wanted = {key for key, _, _ in entries}
    first, last = min(wanted), max(wanted)
    low, high = 0, root.stat(name).bytes
    while high - low > PROBE:
        middle = (low + high) // 2
        lines = root.read(name, middle, PROBE).split(b"\n", 2)
        key = lines[1].partition(b"\t")[0] if len(lines) == 3 else b""
        if not key.isdigit():
            raise Damaged(f"{name}: no line of key and name after byte {middle}; fetch it again")
        low, high = (middle, high) if int(key) < first else (low, middle)
    found: dict[int, str] = {}
    with Stream.open(root, name, low) as stream:
        for _, line in stream.pieces(b"\n"):
            key, _, rest = line.partition(b"\t")
            if not key.isdigit() or int(key) > last:
                break
            if int(key) in wanted:
                found[int(key)] = rest.partition(b"\t")[0].decode("utf-8", "replace")
    return found
