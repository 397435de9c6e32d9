"""UniProtKB flat-file entries: the whole `Entry`, or accession, sequence and GO alone.

Both work on the bytes before an entry's `//`. A whole entry is cut where the line code changes, and each block is split
by its own line prefix in C, not line by line in Python. Raises SourceError or ValueError for what is no entry.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.sources.evidence import normal
from data_prep.sources.files import SourceError, Stream, text
from data_prep.sources.uniprotkb.entry import Dated, Entry, Later, verify
from data_prep.sources.uniprotkb.features import parse as parse_features
from data_prep.sources.uniprotkb.references import CITED
from data_prep.sources.uniprotkb.references import parse as parse_references

MARK = b"\n//"  # what ends an entry, whatever the file's line ends are
LIMIT = 8 << 20  # bytes of an entry; the longest of UniProt has 0.5 MB
CODES = ("ID", "AC", "DT", "DE", "GN", "OS", "OG", "OC", "OX", "OH", "RN", "CC", "DR", "PE", "KW", "FT")
LINES = {code: "R[NPCXGATL]" if code == "RN" else code for code in CODES}  # those of references stay together
USUAL = re.compile("".join(rf"(?:({line}   .*(?:\n{line}   .*)*+)(?:\n|\Z))?+" for line in LINES.values()) + r"\Z")
NEXT = {code: re.compile(rf"\n(?!{line}   )") for code, line in LINES.items()}  # where a block of one code ends
NEXT |= dict.fromkeys(CITED, NEXT["RN"]) | {"**": re.compile(r"\n(?!\*\*)")}  # internal remarks, in old files
SCANNED = re.compile(rb"\n(?:DR   GO; (.*)|SQ   SEQUENCE   )")  # lines on GO; and, in the same pass, a second SQ line
TERM = re.compile(rb"([^;]*)(?:; .*; (.*))?")  # id, evidence
KEY = re.compile(rb"^AC +([A-Z0-9]+)", re.MULTILINE)
BLANKS = re.compile(rb"(?<![ \t\r])[ \t\r]++$", re.MULTILINE)
USUAL_TAXON = re.compile(r"OX   NCBI_TaxID=(\d+)(?: \{.*\})?;")
USUAL_DATES = re.compile(
    r"DT   (\S+), integrated into [^ \n]*\nDT   (\S+), sequence version (\d+)\.\nDT   (\S+), entry version (\d+)\."
)
OLD_DATE = re.compile(r"(\S+) .*\brel\. ?([\d.]*), *(created|last sequence|last annotation)", re.IGNORECASE)
EVENTS = {
    "integrated into": "created",
    "sequence version": "sequence_update",
    "entry version": "annotation_update",
    "created": "created",
    "last sequence": "sequence_update",
    "last annotation": "annotation_update",
}


class Scanned(NamedTuple):
    """terms: (GO id, evidence code)."""

    accession: str
    sequence: str
    terms: tuple[tuple[str, str], ...]


def pieces(stream: Stream) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes of an entry without its `//`). Raises SourceError for an entry that does not end."""
    for at, piece in stream.pieces(MARK, LIMIT):
        entry = piece.lstrip(b"\xef\xbb\xbf\r\n ")
        at += len(piece) - len(entry)
        if b"\r" in entry or b" \n" in entry[:400]:  # what leaves blanks at line ends leaves them at the first ones too
            entry = BLANKS.sub(b"", entry)
        if not stream.marked and entry.strip():
            raise SourceError(
                "truncated_entry",
                f"{stream.name}: the file ends inside entry {accession(entry) or '?'} at byte {at}; fetch it again",
                f"byte {at}",
            )
        if entry:
            yield at, entry


def accession(piece: bytes) -> str:
    """The primary accession, or nothing: for messages about what could not be parsed."""
    found = KEY.search(piece, 0, 10_000)
    return found[1].decode() if found else ""


def scan(piece: bytes) -> Scanned:
    """Accession, sequence and GO, the sequence verified."""
    _, sequence, end = _sequence(piece)
    if not piece.startswith(b"ID   ") or (begin := piece.find(b"\nAC   ")) < 0:
        raise ValueError("no ID and AC line at its beginning")
    lines = SCANNED.findall(piece, 0, end)
    if b"" in lines:
        raise ValueError(
            "two SQ lines, so that the `//` between two entries is missing, or a line on GO without a term"
        )
    key = piece[begin + 6 : piece.index(b"\n", begin + 6)].partition(b";")[0].decode("ascii")
    terms = dict.fromkeys(map(TERMS.__getitem__, lines))
    return Scanned(key, sequence.decode("ascii"), tuple(terms))


class _Terms(dict[bytes, tuple[str, str]]):
    """What a line on GO says. The same lines come again and again: looking one up is four times as fast as reading."""

    def __missing__(self, line: bytes) -> tuple[str, str]:
        found = TERM.match(line)
        assert found
        said = found[1].decode("ascii"), normal((found[2] or b"").decode("latin-1"))
        if len(self) < 1 << 16:
            self[line] = said
        return said


TERMS = _Terms()


def parse(piece: bytes) -> Entry:
    """The entry, its sequence verified."""
    seqinfo, sequence, end = _sequence(piece)
    lines = _blocks(text(piece[:end]))
    if not lines["ID"] or not lines["AC"]:
        raise ValueError(f"no {'AC' if lines['ID'] else 'ID'} line")
    name, data_class, molecule, length = _id(lines["ID"])
    hosts = [line.removeprefix("NCBI_TaxID=").rstrip(".").partition(";") for line in _values(lines, "OH")]
    return Entry.of(
        entry_name=name,
        data_class=data_class,
        accessions=tuple(" ".join(_values(lines, "AC")).rstrip(";").split("; ")),
        sequence=sequence.decode("ascii"),
        seqinfo=seqinfo,
        sequence_length=length,
        molecule_type=molecule,
        description=" ".join(map(str.strip, _values(lines, "DE"))),
        gene_name=_genes(lines["GN"]),
        organism=" ".join(_values(lines, "OS")),
        organelle="\n".join(_values(lines, "OG")),
        organism_classification=_list(lines, "OC"),
        taxonomy_id=_taxa(lines),
        host_organism=tuple(organism.strip() for _, _, organism in hosts),
        host_taxonomy_id=tuple(taxon.strip() for taxon, _, _ in hosts),
        references=Later(parse_references, lines["RN"]),
        comments=_comments(lines["CC"]),
        cross_references=tuple([tuple(line.rstrip(".").split("; ")) for line in _values(lines, "DR")]),
        keywords=tuple([word.partition("{")[0].rstrip() for word in _list(lines, "KW")]),
        features=Later(parse_features, lines["FT"]),
        protein_existence=int(lines["PE"][5:].partition(":")[0]) if lines["PE"] else "",
        **_dates(lines),
    )


def _sequence(piece: bytes) -> tuple[tuple[int, int, str], bytes, int]:
    """Length, weight and checksum as stated; the sequence, which they are true of; where its SQ line begins."""
    begin = piece.rfind(b"\nSQ   ")
    end = piece.find(b"\n", begin + 1)
    columns = piece[begin + 6 : end].split() if begin >= 0 <= end else []
    if len(columns) != 7 or columns[0] != b"SEQUENCE":
        raise ValueError(f"no SQ line with length, weight and checksum before its end, but {piece[-60:]!r}")
    seqinfo = int(columns[1]), int(columns[3]), columns[5].decode("ascii")
    sequence = piece[end:].translate(None, b" \n")
    if not sequence.isalpha() and sequence:
        raise ValueError("letters alone are expected in its sequence")
    verify(sequence, seqinfo[0], seqinfo[2] if columns[6] == b"CRC64;" else "")
    return seqinfo, sequence, begin


def _blocks(header: str) -> dict[str, str]:
    """Line code → all lines of that code, still with their prefixes, or nothing; those of references under RN."""
    if usual := USUAL.match(header):
        return dict(zip(CODES, usual.groups(""), strict=True))
    found: dict[str, str] = dict.fromkeys(CODES, "")
    at, size = 0, len(header)
    while at < size:
        code = header[at : at + 2]
        if code not in NEXT:
            raise ValueError(f"{header[at : at + 20]!r} begins with no known line code")
        stop = NEXT[code].search(header, at)
        end = stop.start() if stop else size
        if header[at + 2 : at + 5] == "   " and code != "**":  # a bare code says nothing
            code = "RN" if code in CITED else code
            found[code] += ("\n" if found[code] else "") + header[at:end]
        at = end + 1
    return found


def _values(lines: dict[str, str], code: str) -> list[str]:
    """The lines of one code, without their prefixes."""
    return lines[code][5:].split(f"\n{code}   ") if lines[code] else []


def _list(lines: dict[str, str], code: str) -> tuple[str, ...]:
    """What is separated by semicolons, over all lines of one code."""
    return tuple(" ".join(_values(lines, code)).rstrip(";.").split("; ")) if lines[code] else ()


def _id(line: str) -> tuple[str, str, str | None, int]:
    """Entry name, data class, molecule type (before release 7), length."""
    columns = line[5:].split()
    if len(columns) not in (4, 5) or columns[-1] != "AA.":
        raise ValueError(f"{line[:80]!r} is no ID line: name, class and length are expected")
    name, data_class, *molecule, length = columns[:-1]
    return name, data_class.rstrip(";"), molecule[0].rstrip(";") if molecule else None, int(length)


def _dates(lines: dict[str, str]) -> dict[str, Dated | None]:
    if usual := USUAL_DATES.fullmatch(lines["DT"]):
        created, sequence, version, annotation, entry = usual.groups()
        return {
            "created": (created, 0),
            "sequence_update": (sequence, int(version)),
            "annotation_update": (annotation, int(entry)),
        }
    found: dict[str, Dated | None] = dict.fromkeys(EVENTS.values())
    for line in _values(lines, "DT"):
        date, comma, event = line.partition(", ")
        words = event.rstrip(".").split(" ")
        if comma and (field := EVENTS.get(" ".join(words[:2]))):
            found[field] = date, int(words[2]) if words[2].isdigit() else 0
        elif old := OLD_DATE.match(line):
            version = old[2].rstrip(".")
            found[EVENTS[old[3].lower()]] = old[1], version if "." in version else int(version or 0)
        else:
            raise ValueError(f"DT line {line[:80]!r} names no known event")
    return found


def _genes(block: str) -> tuple[dict[str, str | list[str]], ...]:
    found = []
    for gene in block[5:].replace("\nGN   ", "\n").split("\nand\n") if block else ():
        names: dict[str, str | list[str]] = {}
        for token in gene.replace("\n", " ").rstrip("; ").split("; "):
            kind, _, value = token.strip().rpartition("=") if "=" not in token else token.strip().partition("=")
            names[kind or "Name"] = value.split(", ") if kind not in ("", "Name") else value
        found.append(names)
    return tuple(found)


def _taxa(lines: dict[str, str]) -> tuple[str, ...]:
    """Ids without evidence; several, over several lines, in old entries."""
    if usual := USUAL_TAXON.fullmatch(lines["OX"]):
        return (usual[1],)
    ids = "".join(line.partition("{")[0].rstrip().rstrip(";") + ", " for line in _values(lines, "OX"))
    kind, _, some = ids.rstrip(", ").rpartition("=")
    if kind not in ("NCBI_TaxID", ""):
        raise ValueError(f"OX names {kind!r}; NCBI_TaxID is expected")
    return tuple(some.split(", ")) if some else ()


def _comments(block: str) -> tuple[str, ...]:
    """Each from its topic on, lines joined by a space; without the lines on copyright."""
    if not block:
        return ()
    first, *others = f"\n{block}".replace("\nCC       ", " ").split("\nCC   -!- ")
    found = [each.partition("\n")[0] for each in others]
    return (first[1:], *found) if first.startswith(" ") else tuple(found)
