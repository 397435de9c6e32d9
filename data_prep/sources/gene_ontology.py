"""Gene Ontology: the ontology itself (OBO, read with pronto), and annotations as GAF 2.x or as a plain table.

Annotations are direct ones. A line whose qualifier holds NOT says that the protein was found *not* to have the
function: it is no annotation, and is counted among the rejected. Ids are resolved later, against the whole ontology.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Literal

from data_prep.records import AnnotationRecord, Items, Rejection
from data_prep.sources.files import Files, SourceError, Stream, rows, text
from pretrain.config import Config

GAF_COLUMNS = 15  # the required ones of GAF 2.0 to 2.2; two optional ones may follow
UNRECORDED = "NR"  # GO's own evidence code for annotations from before evidence was recorded


class Gaf(Files):
    """`kind = "gaf"`: GAF 2.0–2.2. Only lines of `database` are proteins by UniProt accession."""

    kind: Literal["gaf"] = "gaf"
    database: str = "UniProtKB"

    def parse(self, stream: Stream) -> Items:
        name, lines = stream.name, self._lines(stream.name, text(stream.whole()))
        for key, group in groupby(lines, key=lambda line: line if isinstance(line, Rejection) else line[0]):
            if isinstance(key, Rejection):
                yield key
            else:
                terms = dict.fromkeys((line[1], line[2]) for line in group if not isinstance(line, Rejection))
                yield AnnotationRecord(key, name, tuple(terms))

    def _lines(self, name: str, content: str) -> Iterator[tuple[str, str, str] | Rejection]:
        """(accession, term, evidence) of each line, or why it is none."""
        for number, line in enumerate(content.split("\n"), 1):
            if not line.strip() or line.startswith("!"):
                continue
            fields = line.rstrip("\r").split("\t")
            if len(fields) < GAF_COLUMNS or not fields[4].startswith("GO:"):
                problem = f"{name}, line {number}: not a GAF 2 annotation ({len(fields)} columns, {line[:60]!r})"
                if self.on_error == "stop":
                    raise SourceError(
                        "unparsable_line", problem + ', or set on_error = "reject" to pass over such lines'
                    )
                yield Rejection("unparsable_line", fields[1] if len(fields) > 1 else "", name, problem)
            elif fields[0] != self.database:
                yield Rejection("other_database", fields[1], name, f"line {number}: {fields[0]}, not {self.database}")
            elif "NOT" in fields[3].split("|"):
                yield Rejection("negated_annotation", fields[1], name, f"line {number}: {fields[3]} {fields[4]}")
            else:
                yield fields[1], fields[4], fields[6]


class AnnotationColumns(Config):
    accession: str = "uniprot"
    term: str = "go_id"


class Annotations(Files):
    """`kind = "annotations"`: a table of accession and GO id, `.gz` or not. evidence: the code of all its lines."""

    kind: Literal["annotations"] = "annotations"
    columns: AnnotationColumns = AnnotationColumns()
    evidence: str = UNRECORDED

    def parse(self, stream: Stream) -> Items:
        name, lines = stream.name, (row for _, row in rows(stream, self.columns.model_dump()))
        for key, group in groupby(lines, key=lambda row: row["accession"]):
            yield AnnotationRecord(key, name, tuple(dict.fromkeys((row["term"], self.evidence) for row in group)))
