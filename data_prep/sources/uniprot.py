"""UniProt: entries as flat file or XML, FASTA of any origin, and tables as uniprot.org exports them.

An entry is known by its primary accession. Secondary ones are handed on with it: they belonged to entries that were
merged into it, and other sources still use them.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    Items,
    Record,
    Rejection,
    SequenceRecord,
    TextRecord,
)
from data_prep.sources.annotations import Tally
from data_prep.sources.evidence import UNRECORDED, Evidence, keeps
from data_prep.sources.files import Files, SourceError, Stream, text
from data_prep.sources.uniprotkb import element, flat
from data_prep.sources.uniprotkb import xml as markup
from data_prep.sources.uniprotkb.entry import TAXON, outer, scientific, taxon, verify
from data_prep.sources.uniprotkb.records import ENSEMBL, ensembl, isoforms, records, texts
from pretrain.places import Place
from pretrain.sample import About

HEADER = re.compile(r"(?:AFDB:)?AF-(?P<model>[A-Z0-9]+(?:-\d+)?)-F\d+|(?:sp|tr)\|(?P<uniprot>[^|\s]+)\|?|(?P<bare>\S+)")
FIELD = re.compile(r" [A-Z]{2}=")  # ` OS=…`, ` OX=…`, ` GN=…` in a header of UniProt
FRAGMENT = re.compile(r" \(Fragments?\)$")
RELEASE = re.compile(rb"Release (\d{4}_\d\d)")
GO = re.compile(r"GO:\d{7}")
BLANKS = b" \t\n\r\v\f"
MAX_HEADER = 64 << 10  # bytes
MAX_FASTA = 16 << 20  # bytes of one entry; the longest protein known has 45,000 residues


class Uniprot(Files):
    """`kind = "uniprot"`: UniProtKB entries, flat file or XML as their content says, `.gz` or not.

    scan: accession, sequence and GO alone, of flat files many times faster. isoforms: the other sequences that an entry
    describes too, under accessions like P12345-2. evidence: the wanted evidence codes of GO terms, or groups of them
    (experimental, phylogenetic, computational, author, curator, electronic), all if empty. With `on_error = "reject"`
    an entry that cannot be parsed, or whose sequence is not what it states, is listed and the next one read.
    """

    MARK: ClassVar[bytes] = flat.MARK

    kind: Literal["uniprot"] = "uniprot"
    scan: bool = False
    isoforms: bool = False
    evidence: Evidence = ()

    def cuttable(self, root: Place, name: str) -> bool:
        return root.read(name, 0, 5) == b"ID   "

    def parse(self, stream: Stream) -> Items:
        in_xml = stream.begin == 0 and _is_xml(stream)
        form = markup if in_xml else flat
        stream.release = stream.release or _release(stream)
        left_out = Tally(stream.name)
        for at, piece in form.pieces(stream):
            position = f"byte {at}"
            try:
                found = list(self._records(piece, in_xml, stream.name, position))
            except (ValueError, LookupError) as error:
                reason = error.reason if isinstance(error, SourceError) else "unparsable_entry"
                key = form.accession(piece)
                if self.on_error == "stop":
                    said = f"{stream.name}: entry {key or '?'} at {position}: {error}"
                    raise SourceError(reason, said, position) from error
                yield Rejection(reason, key, stream.name, str(error), position)
                continue
            for item in found:
                if self.evidence and isinstance(item, AnnotationRecord):
                    item = self._wanted(item, left_out)
                if not isinstance(item, AnnotationRecord) or item.terms:
                    yield item
        yield from left_out.rejections()

    def _records(self, piece: bytes, xml: bool, name: str, position: str) -> Iterator[Record | Rejection]:
        if self.scan and not xml:
            key, sequence, terms = flat.scan(piece)
            yield SequenceRecord(key, name, sequence, position)
            if terms:
                yield AnnotationRecord(key, name, terms, position)
            return
        entry = element.parse(piece) if xml else flat.parse(piece)
        for record in records(entry, name, position):
            if not self.scan or isinstance(record, SequenceRecord | AnnotationRecord):
                yield record
        if self.isoforms:
            yield from isoforms(entry, name, position)

    def _wanted(self, record: AnnotationRecord, left_out: Tally) -> AnnotationRecord:
        for _, code in record.terms:
            if not keeps(code, self.evidence):
                left_out.add("evidence_filtered", code, record.position)
        return replace(record, terms=tuple(term for term in record.terms if keeps(term[1], self.evidence)))


class Fasta(Files):
    """`kind = "fasta"`: headers `>sp|ACC|NAME … OS=… OX=…`, `>AF-ACC-F1` or `>ACC`, `.gz` or not."""

    MARK: ClassVar[bytes] = b"\n>"

    kind: Literal["fasta"] = "fasta"

    def parse(self, stream: Stream) -> Items:
        if stream.begin == 0:
            begun = stream.opening().lstrip(b"\xef\xbb\xbf \t\r\n")
            if not begun.startswith(b">"):
                seen = text(begun[:20])
                raise SourceError("unparsable_entry", f"{stream.name}: FASTA begins with '>', this with {seen!r}")
        stream.release = stream.release or _release(stream)
        for at, piece in stream.pieces(self.MARK, MAX_FASTA):
            if at == 0:
                piece = piece.lstrip(b"\xef\xbb\xbf \t\r\n").removeprefix(b">")
                if not piece:
                    continue
            header, _, body = piece.partition(b"\n")
            position = f"byte {max(at - 1, 0)}"  # of its `>`
            if reason := _refused(header):
                said = f"a header of {len(header)} bytes, {header[:40]!r}…; one line of {MAX_HEADER} is allowed"
                if self.on_error == "stop":
                    raise SourceError(reason, f"{stream.name}, {position}: {said}", position)
                yield Rejection(reason, accession(text(header[:200])), stream.name, said, position)
                continue
            title = text(header).strip()
            key = accession(title)
            sequence = text(body.translate(None, BLANKS)).rstrip("*").upper()
            yield SequenceRecord(key, stream.name, sequence, position)
            if title.startswith(("sp|", "tr|")) and (known := _titled(title)):
                yield EntryRecord(key, stream.name, known, (), position)


def _refused(header: bytes) -> str:
    """Why a header is none, or nothing; one with a carriage return in it has the whole entry in its line."""
    if len(header) > MAX_HEADER:
        return "overlong_header"
    return "unparsable_entry" if b"\r" in header.rstrip(b"\r") else ""


def accession(header: str) -> str:
    """The accession in a FASTA header (without `>`): of an AlphaFold model, a UniProt entry, or the first word."""
    match = HEADER.match(header.strip())
    return next(group for group in match.groups() if group) if match else ""


def _titled(title: str) -> About:
    """What a header of UniProt says: `sp|P12345|TEST_HUMAN Test protein (Fragment) OS=Homo sapiens OX=9606 GN=TST`."""
    said = title.partition(" ")[2]
    name, fields = FIELD.split(said, maxsplit=1)[0], dict(zip(FIELD.findall(said), FIELD.split(said)[1:], strict=True))
    number = fields.get(" OX=", "").strip()
    return About(
        name=FRAGMENT.sub("", name.strip()),
        organism=scientific(fields.get(" OS=", "").strip()),
        taxon=taxon(number) if TAXON.fullmatch(number) else 0,
        fragment=bool(FRAGMENT.search(name.strip())),
    )


class UniprotTable(Files):
    """`kind = "uniprot_table"`: a TSV that uniprot.org has exported, `.gz` or not, under its own column names.

    `Entry`, and whatever there is of COLUMNS. It has no evidence for GO terms. Of Ensembl it names transcripts
    (`ENST00000269305.9 [P04637-1];…`), so that genes are known only where a column has them.
    """

    COLUMNS: ClassVar[dict[str, str]] = {
        "key": "Entry",
        "names": "Protein names",
        "organism": "Organism",
        "taxon": "Organism (ID)",
        "sequence": "Sequence",
        "length": "Length",
        "checksum": "Checksum",
        "fragment": "Fragment",
        "terms": "Gene Ontology IDs",
        "named_terms": "Gene Ontology (GO)",
        "ec": "EC number",
        "pdb": "PDB",
        **{division: division for division in ENSEMBL},
        "FUNCTION": "Function [CC]",
        "SUBCELLULAR LOCATION": "Subcellular location [CC]",
        "CATALYTIC ACTIVITY": "Catalytic activity",
    }

    kind: Literal["uniprot_table"] = "uniprot_table"

    def parse(self, stream: Stream) -> Items:
        stream.release = stream.release or _release(stream)
        for line in self.rows(stream, self.COLUMNS, self.COLUMNS.keys() - {"key"}):
            if isinstance(line, Rejection):
                yield line
                continue
            position, row = line
            key, sequence = row["key"], row["sequence"]
            try:
                if sequence:
                    verify(sequence.encode(), int(row["length"].replace(",", "") or len(sequence)), row["checksum"])
            except ValueError as error:
                reason = error.reason if isinstance(error, SourceError) else "unparsable_line"
                if self.on_error == "stop":
                    raise SourceError(reason, f"{stream.name}: entry {key} at {position}: {error}", position) from error
                yield Rejection(reason, key, stream.name, str(error), position)
                continue
            found = list(_tabled(key, row, stream.name, position))
            yield from found or [
                Rejection("empty_entry", key, stream.name, "a row of nothing but its accession", position)
            ]


def _tabled(key: str, row: dict[str, str], name: str, position: str) -> Iterator[Record]:
    """The records of one row."""
    if row["sequence"]:
        yield SequenceRecord(key, name, row["sequence"], position)
    title, groups = outer(row["names"])
    genes, others = ensembl([id] for division in ENSEMBL for id in row[division].split(";"))
    known = About(
        name=title,
        organism=scientific(row["organism"]),
        taxon=taxon(row["taxon"]) if TAXON.fullmatch(row["taxon"]) else 0,
        fragment=bool(row["fragment"]) or any(group in ("Fragment", "Fragments") for group in groups),
        ec=tuple(part for part in re.split(r"[;\s]+", row["ec"]) if part),
        genes=genes,
        ensembl=others,
        pdb=tuple(part for part in re.split(r"[;\s]+", row["pdb"]) if part),
    )
    if known:
        yield EntryRecord(key, name, known, (), position)
    if terms := dict.fromkeys(GO.findall(row["terms"]) + GO.findall(row["named_terms"])):
        yield AnnotationRecord(key, name, tuple((term, UNRECORDED) for term in terms), position)
    for topic in ("FUNCTION", "SUBCELLULAR LOCATION", "CATALYTIC ACTIVITY"):
        for said in texts(tuple(part for part in re.split(rf"(?:^|;) *(?={topic}: )", row[topic]) if part)):
            yield TextRecord(key, name, said, position)


def _is_xml(stream: Stream) -> bool:
    """Whether entries are XML. Raises SourceError if they are neither that nor a flat file."""
    opening = stream.opening()
    begun = opening.lstrip(b"\xef\xbb\xbf \t\r\n")
    if begun.startswith(b"ID   "):
        return False
    if begun.startswith((b"<", b"\xff\xfe", b"\xfe\xff")) or opening[:4].replace(b"\0", b"")[:1] == b"<":
        return True
    raise SourceError(
        "unparsable_entry",
        f"{stream.name}: a UniProt flat file begins with 'ID   ', XML with '<', this with {opening[:20]!r}",
    )


def _release(stream: Stream) -> str:
    """What `reldate.txt` in the file's folder says, as it comes with every release; nothing where there is none."""
    if stream.place is None or stream.begin:
        return ""
    beside = str(PurePosixPath(stream.name).with_name("reldate.txt"))
    try:
        found = RELEASE.search(stream.place.read(beside, 0, 4096))
    except OSError:
        return ""
    return found[1].decode() if found else ""
