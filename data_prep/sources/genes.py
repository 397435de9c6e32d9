"""Gene → accession: images come from makers who name genes, and meet proteins by accession.

UniProt has several accessions for most genes: the reviewed one, and unreviewed ones of fragments, alleles and
predictions. The first is taken: what the table calls reviewed, then what `prefer` has, then by the accession's form
([OPQ] and five characters, the oldest, then other six, then ten), then by place in the table. Form counts because a
table may well be sorted by accession, as Bioconductor's is: of 1,331 human genes with one Swiss-Prot accession among
several, the first row has it in 14 %, form finds it in 92 %.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Self

import pydantic

from data_prep.records import FileSeen
from data_prep.sources.files import SourceError, Stream, find, rows, text
from pretrain.config import Config
from pretrain.places import Place

ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,})(?:\.\d+)?", re.IGNORECASE)
OTHERS = re.compile(r"ENS[A-Z]*(?:T|P|E|FM|GT)\d{6,}", re.IGNORECASE)  # Ensembl ids that are no genes
BREAK = re.compile(r"[;,|\s]+")  # between several names in a cell
OLDEST = re.compile(r"[OPQ][A-Z0-9]{5}")
FASTA = re.compile(rb">?(?:\w\w\|)?([A-Za-z0-9-]+)")
MOST = 1_500_000  # names and accessions that are remembered, 0.6 GB; all of human, mouse and yeast have 500,000
REVIEWED = {"reviewed", "swiss-prot", "sp", "true", "yes", "1"}


class GeneTable(Config):
    """Which table knows genes, relative to the configuration's own `root`, and its columns ("": it has none).

    Cells may hold several names, between `;`, `,`, `|` or spaces. accession: a row without one is passed over.
    ensembl, symbol, entrez: names of the gene; symbols after the first are synonyms. reviewed: is the accession?
    A table without a header, such as UniProt's idmapping_selected.tab, has columns "1", "2", ...
    prefer: FASTA files whose accessions come before others, such as those of the data set or of Swiss-Prot.
    """

    files: str
    accession: str = "uniprot"
    ensembl: str = ""
    symbol: str = ""
    entrez: str = ""
    reviewed: str = ""
    prefer: str | tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _has_names(self) -> Self:
        if not (self.ensembl or self.symbol or self.entrez):
            raise ValueError("genes need a column of names: give `ensembl`, `symbol` or `entrez`")
        return self

    @property
    def columns(self) -> dict[str, str]:
        named = self.model_dump(include={"accession", "ensembl", "symbol", "entrez", "reviewed"})
        return {ours: theirs for ours, theirs in named.items() if theirs}

    @property
    def preferred(self) -> tuple[str, ...]:
        return (self.prefer,) if isinstance(self.prefer, str) else self.prefer


class GeneMap:
    """Accessions by a gene's name, the best first. About 400 bytes a row of the table; read once per process."""

    def __len__(self) -> int:
        """Names that are known."""
        return sum(map(len, (self._ensembl, self._entrez, self._symbol, self._synonym)))

    def __init__(self) -> None:
        self.seen: tuple[FileSeen, ...] = ()
        self._ensembl: dict[str, tuple[str, ...]] = {}
        self._entrez: dict[str, tuple[str, ...]] = {}
        self._symbol: dict[str, tuple[str, ...]] = {}
        self._synonym: dict[str, tuple[str, ...]] = {}
        self._folded: dict[str, str] = {}

    @staticmethod
    def read(place: Place, config: GeneTable) -> "GeneMap":
        """Raises ValueError for a table that is not there, and SourceError for one without its columns."""
        names = find(place, (config.files, *config.preferred))
        return _read(place, config.model_dump_json(), tuple(place.stat(name).version for name in names))

    def accession(self, gene: str) -> str | None:
        """The one protein of a gene, or None for a gene that the table lacks."""
        return next(iter(self.accessions(gene)), None)

    def accessions(self, gene: str) -> tuple[str, ...]:
        """All proteins of a gene, the best first. Of several genes in one cell, those of the first that is known.

        An Ensembl id is looked up as one, with or without version; digits are an Entrez id; what else there is, a
        symbol, in other capitals if that leaves one gene, or a synonym.
        """
        return next((found for name in BREAK.split(gene) if name and (found := self._one(name))), ())

    def _one(self, name: str) -> tuple[str, ...]:
        if known := ENSEMBL.fullmatch(name):
            return self._ensembl.get(known[1].upper(), ())
        if name.isdecimal():
            return self._entrez.get(name, ())
        exact = self._symbol.get(name) or self._ensembl.get(name)  # Ensembl names yeast's genes YMR056C
        capitals = name.upper()
        alike = [each for each in (capitals, self._folded.get(capitals)) if each == "" or each in self._symbol]
        return exact or (self._symbol.get(alike[0], ()) if len(alike) == 1 else ()) or self._synonym.get(name, ())

    def _add(self, accession: str, row: dict[str, str]) -> None:
        one = (accession,)
        for cell, known in ((row.get("ensembl", ""), self._ensembl), (row.get("entrez", ""), self._entrez)):
            for name in BREAK.split(cell):
                if name and not OTHERS.match(name) and name[0] != "[":  # [P04637-1]: of what isoform
                    _append(known, unversioned(name.rstrip(".")), one)
        for i, name in enumerate(filter(None, BREAK.split(row.get("symbol", "")))):
            _append(self._synonym if i else self._symbol, name, one)

    def _order(self, rank: dict[str, int], preferred: set[str]) -> None:
        """Put each gene's best accession first, and learn which symbols differ in capitals alone."""

        def key(accession: str) -> tuple[bool, bool, int]:
            form = 0 if OLDEST.fullmatch(accession) else 1 if len(accession) == 6 else 2
            return not rank[accession], accession not in preferred, form

        for known in (self._ensembl, self._entrez, self._symbol, self._synonym):
            for name, accessions in known.items():
                if len(accessions) > 1:
                    known[name] = tuple(sorted(accessions, key=key))
        for name in self._symbol:
            if (capitals := name.upper()) != name:
                self._folded[capitals] = "" if capitals in self._folded else name


def unversioned(gene: str) -> str:
    """Ensembl ids without their versions, everything else as it is: `ENSG00000141510.12` is the gene of any release."""
    return ENSEMBL.sub(lambda match: match[1].upper(), gene)


def _append(known: dict[str, tuple[str, ...]], name: str, one: tuple[str]) -> None:
    """`one` is shared by the names of a row: most genes have one accession."""
    there = known.get(name)
    if there is None:
        known[name] = one
    elif one[0] not in there:
        known[name] = there + one


@lru_cache(maxsize=4)
def _read(place: Place, table: str, _versions: tuple[str, ...]) -> GeneMap:
    config = GeneTable.model_validate_json(table)
    genes, rank, seen = GeneMap(), dict[str, int](), list[FileSeen]()
    for name in find(place, (config.files,)):
        with Stream.open(place, name) as stream:
            for _, row in _rows(stream, config.columns):
                told = int(row.get("reviewed", "").lower() in REVIEWED)
                for accession in filter(None, BREAK.split(row["accession"])):  # none: a gene without a protein
                    rank[accession] = max(rank.get(accession, 0), told)
                    genes._add(accession, row)
                if len(rank) + len(genes) > MOST:
                    raise SourceError("too_large", f"{name}: over {MOST} names; take the table of your organisms")
            seen.append(stream.seen())
    if not rank:
        raise SourceError(
            "empty_table",
            f"{config.files}: no line has an accession; fetch it again, or name the column in `genes.accession`",
        )
    preferred: set[str] = set()
    for name in find(place, config.preferred) if config.preferred else ():
        with Stream.open(place, name) as stream:
            if not stream.opening().lstrip().startswith(b">"):
                raise SourceError("unparsable_entry", f"{name}: FASTA begins with '>'; correct `genes.prefer`")
            for _, entry in stream.pieces(b"\n>"):
                if (head := FASTA.match(entry)) and (accession := head[1].decode()) in rank:
                    preferred.add(accession)
            seen.append(stream.seen())
    genes._order(rank, preferred)
    genes.seen = tuple(seen)
    return genes


def _rows(stream: Stream, columns: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """As `rows`, and of a table without a header if columns are numbers."""
    if not all(theirs.isdecimal() for theirs in columns.values()):
        yield from rows(stream, columns, setting="genes")
        return
    stream.opening()
    place = {ours: int(theirs) - 1 for ours, theirs in columns.items()}
    for at, line in stream.pieces(b"\n"):
        cells = text(line).rstrip("\r").split("\t")
        if len(cells) <= max(place.values()):
            problem = f"{stream.name}, byte {at}: {len(cells)} columns, {max(place.values()) + 1} are named"
            raise SourceError("unparsable_line", problem, f"byte {at}")
        yield f"byte {at}", {ours: cells[i].strip() for ours, i in place.items()}
