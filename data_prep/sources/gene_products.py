"""GPI files: which protein an id of a model organism's database stands for, its taxon, and what a form is a form of.

GPI 1.1, 1.2 and 2.x. A gene of several UniProt accessions stands for all of them. What is kept is what a look-up needs:
of the annotations' own database only forms (isoforms, chains) that name their parent, so that the GPI file of all of
UniProt costs as little as that of one organism.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from data_prep.records import FileSeen
from data_prep.sources.files import SourceError, Stream
from pretrain.places import Place

MOST = 2_000_000  # objects that are remembered, about 0.6 GB; the largest model organism has some 100,000
MOST_SAID = 100  # lines of a header that are remembered
MAX_LINE = 4 << 20  # bytes
TAXON = re.compile(r"[0-9]{1,10}")
FORM = re.compile(r"(?P<protein>[A-Z0-9]+)(?:-\d+)?(?::PRO_\d+)?")
DEPTH = 4  # a chain of an isoform of a protein of a gene
NONE = -1
COLUMNS = {  # of database, id, taxon, parent, the gene that encodes it, cross-references
    "1.1": (NONE, 0, 5, 6, NONE, 7),
    "1.2": (0, 1, 6, 7, NONE, 8),
    "2": (NONE, 0, 5, 7, 6, 9),
}


def protein(id: str) -> str:
    """`P12345` of `P12345-2` and of `P12345:PRO_0000012345`; any other id as it is."""
    return match["protein"] if (match := FORM.fullmatch(id)) else id


@dataclass(frozen=True)
class Product:
    """accessions: UniProt's. parent: `DATABASE:ID` of what this is a form of."""

    accessions: tuple[str, ...]
    parent: str


@dataclass(frozen=True)
class Products:
    """What a GPI file says. members: the objects of the wanted taxa; None where all are wanted."""

    seen: FileSeen
    known: dict[str, Product] = field(default_factory=dict)
    members: frozenset[str] | None = None

    def accessions(self, name: str, database: str) -> tuple[str, ...]:
        """The accessions that `DATABASE:ID` stands for; none if the file does not say."""
        for _ in range(DEPTH):
            found = self.known.get(name)
            if found and found.accessions:
                return found.accessions
            if not found or not found.parent:
                return (name.partition(":")[2],) if name.startswith(f"{database}:") else ()
            name = found.parent
        return ()


def companion(stream: Stream, name: str, database: str, taxa: tuple[int, ...]) -> Products | None:
    """What the GPI file beside a file of annotations says; None without one."""
    return read(*beside(stream, name, "gpi"), database, taxa) if name else None


def beside(stream: Stream, name: str, option: str) -> tuple[Place, str, str]:
    """(place, name, version) of a file that a source names. Raises ValueError for one that is not there."""
    assert stream.place is not None, "a stream without a place has no companions"
    try:
        return stream.place, name, stream.place.stat(name).version
    except FileNotFoundError:
        raise ValueError(f"{option}: no file {name!r} under {stream.place}; correct the source's `{option}`") from None


@lru_cache(maxsize=2)  # a worker reads many slices of one source
def read(root: Place, name: str, version: str, database: str, taxa: tuple[int, ...]) -> Products:
    """version: of the file, which may change between two calls. taxa: of the wanted objects, empty for all."""
    known: dict[str, Product] = {}
    members: set[str] = set()
    header: dict[str, str] = {}
    with Stream.open(root, name) as stream:
        stream.opening()
        for at, line in stream.pieces(b"\n", MAX_LINE):
            text = line.decode("utf-8", "replace").rstrip("\r")
            if text.startswith("!"):
                key, _, value = text[1:].partition(":")
                if len(header) < MOST_SAID:
                    header.setdefault(key.strip().lower(), value.strip()[:120])
            elif text.strip():
                own, taxon, product = _row(text.split("\t"), header, name, at, database)
                if taxa and taxon in taxa:
                    members.add(own)
                if product.accessions or product.parent:
                    known[own] = product
                if len(known) + len(members) > MOST:
                    raise SourceError("too_large", f"{name}: over {MOST} objects; take the file of one organism")
        stream.release = header.get("gpi-version", "") and f"GPI {header['gpi-version']}"
        return Products(stream.seen(), known, frozenset(members) if taxa else None)


def _row(fields: list[str], header: dict[str, str], name: str, at: int, database: str) -> tuple[str, int, Product]:
    """(`DATABASE:ID`, taxon, what it stands for) of a line."""
    version = header.get("gpi-version", "2.0" if ":" in fields[0] else "1.2")
    layout = COLUMNS.get(version) or COLUMNS.get(version.partition(".")[0])
    if layout is None or len(fields) <= layout[2]:
        problem = f"not a line of GPI {version} ({len(fields)} columns, {fields[0][:60]!r})"
        raise SourceError("unparsable_line", f"{name}, byte {at}: {problem}", f"byte {at}")
    prefix, id, taxon, parent, gene, xrefs = (fields[i] if 0 <= i < len(fields) else "" for i in layout)
    if version == "1.1":
        prefix = header.get("namespace", database)
    own = f"{prefix}:{id}" if prefix else id
    ids = [xref.removeprefix("UniProtKB:") for xref in xrefs.split("|") if xref.startswith("UniProtKB:")]
    number = taxon.partition(":")[2].partition("|")[0]
    found = () if own.startswith(f"{database}:") else tuple(dict.fromkeys(protein(id) for id in ids))
    return own, int(number) if TAXON.fullmatch(number) else 0, Product(found, (parent or gene).partition("|")[0])
