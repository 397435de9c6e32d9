"""Gene Ontology annotations: GAF 2.x, GPAD 1.x and 2.0 with their GPI file, and plain tables.

What GAF and GPAD share, and what becomes of their lines, is in `annotations.py`.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import ClassVar, Literal

import pydantic

from data_prep.records import AnnotationRecord, Items, Rejection
from data_prep.sources import evidence
from data_prep.sources.annotations import MOST_TERMS, PARTNER, AnnotationFiles, Line, Tally, given
from data_prep.sources.evidence import CODES, ECO, UNRECORDED, Evidence, keeps, normal
from data_prep.sources.files import Files, SourceError, Stream
from data_prep.sources.gene_products import beside
from pretrain.config import Config

GAF_COLUMNS = 15  # the required ones of GAF 2.0 to 2.2; two optional ones may follow
GPAD_COLUMNS = 10  # the required ones of GPAD 1.1 to 2.0; two optional ones may follow
CELL = re.compile(r"\s*[;|]\s*")
NAMED = re.compile(r".*\[(GO:\d+)\]")  # `ATP binding [GO:0005524]`, as UniProt exports it


class Gaf(AnnotationFiles):
    """`kind = "gaf"`: GAF 2.0–2.2."""

    FORMAT: ClassVar[str] = "gaf"

    kind: Literal["gaf"] = "gaf"

    def reader(self, stream: Stream) -> Callable[[list[str]], Line | None]:
        return _gaf


def _gaf(fields: list[str]) -> Line | None:
    if len(fields) < GAF_COLUMNS or not fields[4].startswith("GO:"):
        return None
    form = fields[16] if len(fields) > 16 else ""
    code = fields[6] if fields[6] in CODES else normal(fields[6])
    denied = _denied(fields[3])
    extended = bool(denied) and len(fields) > 15 and bool(fields[15])
    return Line(fields[0], fields[1], form, denied, fields[4], code, fields[12], extended)


def _denied(qualifier: str) -> str:
    """The qualifier, if it is one that denies."""
    return qualifier if "NOT" in qualifier and "NOT" in qualifier.split("|") else ""


class Gpad(AnnotationFiles):
    """`kind = "gpad"`: GPAD 1.1, 1.2 and 2.0, told apart by the line (only 2.0 writes `DATABASE:ID` in one column).

    The evidence of a line is the GO code among its properties (`go_evidence=IEA`), where it has one; otherwise what its
    ECO id stands for. eco: the published `gaf-eco-mapping-derived.txt` under the same root, for ids beyond the common.
    """

    FORMAT: ClassVar[str] = "gpad"

    kind: Literal["gpad"] = "gpad"
    eco: str = ""

    @pydantic.model_validator(mode="after")
    def _taxa_need_products(self) -> "Gpad":
        if self.taxa and not self.gpi:
            raise ValueError("taxa of GPAD lines are known from a GPI file only: name one with `gpi`")
        return self

    def reader(self, stream: Stream) -> Callable[[list[str]], Line | None]:
        return partial(_gpad, evidence.read(*beside(stream, self.eco, "eco")).codes if self.eco else ECO)

    def parse(self, stream: Stream) -> Items:
        if self.eco and stream.begin == 0:
            yield evidence.read(*beside(stream, self.eco, "eco")).seen
        yield from super().parse(stream)


def _gpad(eco: dict[str, str], fields: list[str]) -> Line | None:
    if len(fields) < GPAD_COLUMNS or not fields[3].startswith("GO:"):
        return None
    database, colon, id = fields[0].partition(":")
    if not colon:
        id = fields[1]
    denied = _denied(fields[1] if colon else fields[2])
    properties = fields[11] if len(fields) > 11 else ""
    stated = next((p[12:] for p in properties.split("|") if p.startswith("go_evidence=")), "")
    extended = bool(denied) and len(fields) > 10 and bool(fields[10])
    return Line(database, id, "", denied, fields[3], normal(stated or fields[5], eco), "", extended)


class AnnotationColumns(Config):
    """evidence, qualifier: used where the table has them; if named here, it must."""

    accession: str = "uniprot"
    term: str = "go_id"
    evidence: str = "evidence"
    qualifier: str = "qualifier"


class Annotations(Files):
    """`kind = "annotations"`: a table of accession and GO ids, `.gz` or not.

    Several ids in a cell are separated by `;`, `|` or `,`, and may follow their name, as in `nucleus [GO:0005634]`; a
    cell of evidence codes has one for all of them, or as many. A qualifier with NOT denies. code: the evidence of lines
    that state none. evidence: the wanted codes, or groups of them, all if empty.
    """

    kind: Literal["annotations"] = "annotations"
    columns: AnnotationColumns = AnnotationColumns()
    code: str = UNRECORDED
    evidence: Evidence = ()

    def parse(self, stream: Stream) -> Items:
        optional = {"evidence", "qualifier"} - self.columns.model_fields_set
        tally = Tally(stream.name)
        table = self.rows(stream, self.columns.model_dump(), optional)
        for key, group in groupby(table, key=lambda row: "" if isinstance(row, Rejection) else row[1]["accession"]):
            terms: dict[tuple[str, str], int] = {}
            begun = ""
            for line in group:
                if isinstance(line, Rejection):
                    yield line
                    continue
                position, row = line
                begun = begun or position
                if _denied(row["qualifier"]):
                    told = f"{row['qualifier']} {row['term']}"
                    yield Rejection("negated_annotation", key, stream.name, told, position)
                    if PARTNER not in self._codes(row):
                        yield AnnotationRecord(key, stream.name, (), position, tuple(_ids(row["term"])))
                    continue
                if len(terms) >= MOST_TERMS:
                    yield given(key, stream.name, terms, begun)
                    terms, begun = {}, position
                try:
                    pairs = self._pairs(row, stream.name, position)
                except SourceError as error:
                    if self.on_error == "stop":
                        raise
                    yield Rejection(error.reason, key, stream.name, str(error), position)
                    continue
                for term, code in pairs:
                    if keeps(code, self.evidence):
                        terms.setdefault((term, code), _number(position) - _number(begun))
                    else:
                        tally.add("evidence_filtered", code, position)
            if terms:
                yield given(key, stream.name, terms, begun)
        yield from tally.rejections()

    def _pairs(self, row: dict[str, str], name: str, position: str) -> list[tuple[str, str]]:
        """(term, evidence code) of a line. Raises SourceError where it is open which code is whose."""
        terms = _ids(row["term"])
        codes = self._codes(row)
        if len(codes) not in (1, len(terms)):
            seen = f"{len(terms)} terms and {len(codes)} evidence codes in one line"
            raise SourceError("unparsable_line", f"{name}, {position}: {seen}; which is whose?", position)
        return list(zip(terms, codes * len(terms) if len(codes) == 1 else codes, strict=True))

    def _codes(self, row: dict[str, str]) -> list[str]:
        return [normal(code) for code in re.split(r"[;|,]", row["evidence"])] if row["evidence"] else [self.code]


def _ids(cell: str) -> list[str]:
    found: list[str] = []
    for part in CELL.split(cell):
        named = NAMED.fullmatch(part)
        found += [named[1]] if named else [id.strip() for id in part.split(",") if id.strip()]
    return found


def _number(position: str) -> int:
    """Of `byte 21`, or of `line 3`."""
    return int(position.rpartition(" ")[2])
