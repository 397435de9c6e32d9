"""UniProt: flat-file entries (sequence, function comments, GO cross-references) and FASTA.

Biopython reads the flat file. An entry is known by its primary accession; secondary ones belong to entries that were
merged into it, and nothing is joined through them.
"""

import re
from io import StringIO
from typing import Literal

from data_prep.records import AnnotationRecord, Items, Record, SequenceRecord, TextRecord
from data_prep.sources.files import Files, SourceError, Stream, text
from pretrain.sample import Text

EVIDENCE = re.compile(r"\.\s*\{ECO:[^}]*\}(?=\.)|\s*\{ECO:[^}]*\}")  # `text. {ECO:…}.` has one full stop too many
NOTE = r"(?:Ref\.\d+|PubMed:\d+|By similarity|Probable|Potential|Microbial infection)"
CITATION = re.compile(rf"\s*\({NOTE}(?:, {NOTE})*\)")
HEADER = re.compile(r"(?:AFDB:)?AF-(?P<model>[A-Z0-9]+(?:-\d+)?)-F\d+|(?:sp|tr)\|(?P<uniprot>[^|\s]+)\|?|(?P<bare>\S+)")


class Uniprot(Files):
    """`kind = "uniprot"`: UniProtKB flat files, `.gz` or not."""

    kind: Literal["uniprot"] = "uniprot"

    def parse(self, stream: Stream) -> Items:
        from Bio import SwissProt

        entries, name = 0, stream.name
        try:
            for entry in SwissProt.parse(StringIO(text(stream.whole()))):
                entries += 1
                yield from _entry(entry, name)
        except (SwissProt.SwissProtParserError, ValueError, AssertionError, IndexError) as error:
            raise SourceError(
                "unparsable_entry",
                f"{name}: entry {entries + 1} is not a UniProt flat-file entry ({error}); is the file complete?",
            ) from error


class Fasta(Files):
    """`kind = "fasta"`: headers `>sp|ACC|NAME`, `>AF-ACC-F1` or `>ACC`, `.gz` or not."""

    kind: Literal["fasta"] = "fasta"

    def parse(self, stream: Stream) -> Items:
        name, content = stream.name, text(stream.whole())
        if not content.lstrip().startswith(">"):
            raise SourceError("unparsable_entry", f"{name}: FASTA begins with '>', this with {content.lstrip()[:20]!r}")
        for entry in content.lstrip()[1:].split("\n>"):
            header, _, body = entry.partition("\n")
            sequence = "".join(body.split()).removesuffix("*").upper()
            yield SequenceRecord(accession(header), name, sequence)


def accession(header: str) -> str:
    """The accession in a FASTA header (without `>`): of an AlphaFold model, a UniProt entry, or the first word."""
    match = HEADER.match(header.strip())
    return next(group for group in match.groups() if group) if match else ""


def clean(comment: str) -> str:
    """A comment without its evidence tags, literature references and doubled spaces."""
    return " ".join(CITATION.sub("", EVIDENCE.sub("", comment)).split()).removesuffix(";").replace(" .", ".")


def _entry(entry, name: str) -> list[Record]:
    key = entry.accessions[0]
    records: list[Record] = [SequenceRecord(key, name, entry.sequence)]
    functions = [clean(c.removeprefix("FUNCTION: ")) for c in entry.comments if c.startswith("FUNCTION: ")]
    records += [TextRecord(key, name, Text(function, "uniprot:function")) for function in functions if function]
    terms = tuple((ref[1], ref[3].partition(":")[0]) for ref in entry.cross_references if ref[0] == "GO")
    return [*records, AnnotationRecord(key, name, terms)] if terms else records
