"""All hostile cases of a kind."""

from collections.abc import Iterator

from tests.runs.hostile import archives, binary, chains, entries, pictures, tables
from tests.runs.hostile.files import Case, anything, cuts, flips
from tests.runs.hostile.kinds import Kind

SPECIAL = {**entries.CASES, **tables.CASES, **chains.CASES, **binary.CASES, **archives.CASES, **pictures.CASES}


def named(kind: Kind) -> Iterator[Case]:
    """Those that somebody thought of."""
    if not kind.again:
        yield from anything(kind)
    if kind.name in SPECIAL:
        yield from SPECIAL[kind.name]()


def drawn(kind: Kind) -> Iterator[Case]:
    """Those that chance has made."""
    count = 40 if kind.real else 12
    yield from cuts(kind, count)
    yield from flips(kind, count)


def cases(kind: Kind) -> Iterator[Case]:
    yield from named(kind)
    yield from drawn(kind)
