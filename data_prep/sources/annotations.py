"""Lines of Gene Ontology annotations → records: what GAF and GPAD share.

Annotations are direct ones. A line that says NOT denies a function: it is no annotation, and is listed among the
rejected, each one; and it is handed to the join, which drops what it contradicts, whatever source says that. What
denies less than a protein's function is only listed: what is denied of one isoform (others may have it), of one partner
(by IPI: NOT `protein binding` is of the protein that `With` names), or within an annotation extension.

What is left out by the million (other databases and organisms, evidence that is not wanted) is counted: one rejection
per kind and slice of a file, with its `count`. Qualifiers other than NOT (`contributes_to`, `acts_upstream_of`, …) are
passed over, also beside NOT. Ids are resolved later, against the whole ontology.

Lines of one protein that follow each other become one record; a file need not be sorted, for the join brings together
what belongs together. Files are read line by line, plain ones in byte ranges: `goa_uniprot_all.gaf` needs no more
memory than `goa_yeast.gaf`.
"""

import re
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple

from data_prep.records import AnnotationRecord, Items, Rejection
from data_prep.sources import gene_products
from data_prep.sources.evidence import Evidence, keeps
from data_prep.sources.files import Files, SourceError, Stream
from data_prep.sources.gene_products import Products, protein
from pretrain.places import Place

PARTNER = "IPI"  # evidence of an interaction: what is stated is stated of the partner that is named with it
MOST_TERMS = 10_000  # in one record
MOST_KINDS = 1_000  # counted apart in one slice
MOST_LISTED = 1_000  # unparsable lines of one slice that are listed one by one
MAX_LINE = 4 << 20  # bytes; as a list of empty columns that takes 32 MiB
MARK_OF_ORDER = "\xef\xbb\xbf"  # UTF-8's, read as Latin-1: what is wanted of a line is ASCII
FORMATS = {"gaf": "gaf", "gpa": "gpad", "gpad": "gpad", "gpi": "gpi"}  # `!gpa-version: 1.1` → our name
DAY = re.compile(r"\d{4}-\d\d-\d\d")


class Line(NamedTuple):
    """An annotation as a file has it. form: isoform or chain, `DATABASE:ID`. denied: the qualifier, if it has NOT.

    extended: of what is denied, whether an annotation extension narrows it.
    """

    database: str
    id: str
    form: str
    denied: str
    term: str
    evidence: str
    taxon: str
    extended: bool = False


class Tally:
    """What is left out by the line, counted by reason and kind, with the position of the first of each."""

    def __init__(self, source: str, each: str = "line") -> None:
        self.source, self.each = source, each
        self.found: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, reason: str, kind: str, at: int | str) -> None:
        """at: the line's offset, or its position in words."""
        kind = kind[:40]
        if (reason, kind) not in self.found and len(self.found) >= MOST_KINDS:
            kind = "other kinds"
        count, first = self.found.get((reason, kind), (0, f"byte {at}" if isinstance(at, int) else at))
        self.found[reason, kind] = count + 1, first

    def rejections(self) -> Iterator[Rejection]:
        for (reason, kind), (count, first) in sorted(self.found.items()):
            told = f"{count} {self.each}{'s' if count > 1 or not kind else ''}{kind and f' of {kind}'}"
            yield Rejection(reason, "", self.source, told, first, count)


class AnnotationFiles(Files):
    """What GAF and GPAD share.

    database: whose ids are the proteins' accessions. gpi: a GPI file under the same root, for ids of other databases
    (a gene's annotations go to all of its accessions). taxa: NCBI ids of the wanted organisms, all if empty.
    evidence: the wanted codes, or groups of them (experimental, phylogenetic, computational, author, curator,
    electronic), all if empty. isoforms: an annotation of an isoform is its protein's ("protein", as GAF sees it), or
    its own, under an accession like P12345-2 ("own"). A chain's is always its protein's.
    """

    MARK: ClassVar[bytes] = b"\n"
    FORMAT: ClassVar[str]

    database: str = "UniProtKB"
    gpi: str = ""
    taxa: tuple[int, ...] = ()
    evidence: Evidence = ()
    isoforms: Literal["protein", "own"] = "protein"

    def companions(self, root: Place, home: Place) -> list[tuple[Place, str]]:
        return [(root, name) for name in (self.gpi, getattr(self, "eco", "")) if name]

    def reader(self, stream: Stream) -> Callable[[list[str]], Line | None]:
        """What reads a line's columns; it gives None for what is no line of this format."""
        raise NotImplementedError

    def parse(self, stream: Stream) -> Items:
        products = gene_products.companion(stream, self.gpi, self.database, self.taxa)
        if products and stream.begin == 0:
            yield products.seen
        tally = Tally(stream.name)
        try:
            yield from self._records(stream, products, tally)
        except SourceError:
            yield from tally.rejections()
            raise
        yield from tally.rejections()

    def _records(self, stream: Stream, products: Products | None, tally: Tally) -> Items:
        owner, last = 2 if self.isoforms == "protein" else 3, None  # of a line's columns, those that say whose it is
        keys: tuple[str, ...] = ()
        why, begun = "", 0
        terms: dict[tuple[str, str], int] = {}
        for at, line in self._lines(stream, tally):
            if isinstance(line, Rejection):
                yield line
                continue
            if line[:owner] != last or len(terms) >= MOST_TERMS:
                if terms:
                    yield from (given(key, stream.name, terms, f"byte {begun}") for key in keys)
                last, terms, begun = line[:owner], {}, at
                keys, why = self._owners(line, products)
            if not keys:
                tally.add(why, line.database if why != "other_taxon" else "organisms that are not wanted", at)
            elif line.denied:
                told = f"{line.denied} {line.term}"
                yield from (Rejection("negated_annotation", key, stream.name, told, f"byte {at}") for key in keys)
                if self._denies(line, products, keys):
                    denied = (line.term,)
                    yield from (AnnotationRecord(key, stream.name, (), f"byte {at}", denied) for key in keys)
            elif not keeps(line.evidence, self.evidence):
                tally.add("evidence_filtered", line.evidence, at)
            else:
                terms.setdefault((line.term, line.evidence), at - begun)
        if terms:
            yield from (given(key, stream.name, terms, f"byte {begun}") for key in keys)

    def _denies(self, line: Line, products: Products | None, keys: tuple[str, ...]) -> bool:
        """Whether what a line denies is denied of the whole protein, and not of a form of it, or of a partner."""
        own = f"{line.database}:{line.id}"
        if line.form in ("", own) and line.database != self.database:
            known = products and products.known.get(own)
            whole = not (known and known.parent)
        else:
            whole = (line.form or own) in {f"{self.database}:{key}" for key in keys}
        return whole and line.evidence != PARTNER and not line.extended

    def _lines(self, stream: Stream, tally: Tally) -> Iterator[tuple[int, Line | Rejection]]:
        """(offset, line) of each annotation, and a rejection for what is none."""
        header: dict[str, str] = {}
        read = self.reader(stream)
        unparsable = 0
        for at, raw in stream.pieces(b"\n", MAX_LINE):
            if not raw:
                continue
            written = raw.decode("latin-1").rstrip("\r")
            if not at:
                written = written.removeprefix(MARK_OF_ORDER)
            if written.startswith("!"):
                stream.release = self._header(stream.name, header, written)
            elif line := read(written.split("\t")):
                yield at, line
            elif written.strip():
                position, seen = f"byte {at}", f"{written.count(chr(9)) + 1} columns, {written[:60]!r}"
                problem = f"{stream.name}, {position}: not an annotation of {self.FORMAT.upper()} ({seen})"
                if self.on_error == "stop":
                    raise SourceError("unparsable_line", f"{problem}; is the file whole?", position)
                unparsable += 1
                if unparsable > MOST_LISTED:
                    tally.add("unparsable_line", "", at)
                else:
                    yield at, Rejection("unparsable_line", "", stream.name, problem, position)

    def _header(self, name: str, header: dict[str, str], line: str) -> str:
        """The release, as far as the header has told by this line. Raises SourceError for another format's header."""
        key, _, value = line[1:].partition(":")
        key, value = key.strip().lower(), value.strip()[:120]
        if len(header) < 100:
            header.setdefault(key, value)
        if key.endswith("-version") and (format := FORMATS.get(key.removesuffix("-version"))):
            if format != self.FORMAT:
                raise SourceError("wrong_format", f"{name}: a {format.upper()} file; its kind is {format!r}")
            if value[:1] not in ("1", "2"):
                raise SourceError("wrong_format", f"{name}: {format.upper()} {value}; versions 1 and 2 can be read")
        return _release(header)

    def _owners(self, line: Line, products: Products | None) -> tuple[tuple[str, ...], str]:
        """The accessions that a line is about, or why there are none."""
        own = f"{line.database}:{line.id}"
        if self.taxa:
            known = line.taxon.partition("|")[0].removeprefix("taxon:")
            parent = f"{line.database}:{protein(line.id)}"
            members = (products and products.members) or ()
            if (known not in map(str, self.taxa)) if known else (own not in members and parent not in members):
                return (), "other_taxon"
        if self.isoforms == "own":
            for form in (line.form, own):
                if form.startswith(f"{self.database}:"):
                    return (form.removeprefix(f"{self.database}:").partition(":")[0],), ""
        if products:
            found = products.accessions(own, self.database)
            return tuple(dict.fromkeys(protein(id) for id in found)), "no_accession"
        return ((protein(line.id),) if line.database == self.database else ()), "other_database"


def given(key: str, source: str, terms: dict[tuple[str, str], int], position: str) -> AnnotationRecord:
    """A record of (term, evidence) → how far its line stands behind the first one's."""
    steps = tuple(terms.values())
    return AnnotationRecord(key, source, tuple(terms), position, steps=steps if any(steps) else ())


def _release(header: dict[str, str]) -> str:
    """`2016-10-03, GO 2016-10-01`: the day a file was made and GO's release, as far as its header says."""
    made = header.get("date-generated") or header.get("generated") or header.get("date", "")
    go = header.get("go-version", "")
    parts = [found[0] if (found := DAY.search(part)) else part for part in (made, go)]
    return ", ".join(filter(None, (parts[0], parts[1] and f"GO {parts[1]}")))
