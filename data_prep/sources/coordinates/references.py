"""What a structure file says of itself: entry, resolution, whether it is a prediction, and whose chains it has.

mmCIF and BinaryCIF say it in small tables (`_struct_ref`, `_struct_ref_seq`), PDB files in DBREF lines. UniProt rows
count alone. A range is 1-based and inclusive, in the protein (begin, end) and in the chain (first, last): in label
numbers of the polymer's whole sequence in the one format, in the author's in the other.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

Table = Callable[[str, tuple[str, ...]], list[tuple[str, ...]]]  # category, columns → rows; "" where there is no value

UNIPROT = ("UNP", "TREMBL", "SWS")  # as the PDB has called it over the years
TABLES = (b"_entry", b"_struct_ref", b"_struct_ref_seq", b"_ma_qa_metric", b"_refine", b"_em_3d_reconstruction")
RANGES = ("ref_id", "pdbx_strand_id", "db_align_beg", "db_align_end", "seq_align_beg", "seq_align_end")
PREDICTED = re.compile(r"^TITLE .*ALPHAFOLD", re.IGNORECASE | re.MULTILINE)
WORDS = re.compile(r"DBREF +\S+ (?P<chain>.) +(-?\d+) +(-?\d+) +UNP +(?P<accession>\S+) +\S+ +(-?\d+) +(-?\d+) *$")
DBREF = (slice(33, 41), slice(55, 60), slice(62, 67), slice(14, 18), slice(20, 24))  # PDB format 3.3 §3.2


@dataclass(frozen=True)
class Segment:
    """A part of a chain that is a part of a protein."""

    accession: str
    begin: int | None = None
    end: int | None = None
    first: int | None = None
    last: int | None = None

    @property
    def length(self) -> int:
        return 0 if self.begin is None or self.end is None else self.end - self.begin + 1


@dataclass(frozen=True)
class Facts:
    """chains: by the author's name, each with its segments. entities: accession by entity, of files without ranges.

    label: whether segments count in label numbers. predicted: a model whose B-factors are pLDDT.
    """

    entry: str = ""
    predicted: bool = False
    resolution: float | None = None
    chains: dict[str, list[Segment]] = field(default_factory=dict)
    entities: dict[str, str] = field(default_factory=dict)
    label: bool = True

    def of(self, chain: str, entity: str) -> list[Segment]:
        """What is said of a chain; nothing of one that belongs to no known protein."""
        if chain in self.chains:
            return self.chains[chain]
        known = self.entities.get(entity) or self.entities.get("")
        return [] if self.chains or not known else [Segment(known)]


def of_tables(entry: str, table: Table) -> Facts:
    """entry: the data block's name, which stands for the entry where no `_entry.id` does."""
    uniprot, entities = {}, {}
    for identifier, entity, database, protein in table(
        "_struct_ref", ("id", "entity_id", "db_name", "pdbx_db_accession")
    ):
        if database in UNIPROT and protein:
            uniprot[identifier] = protein
            entities.setdefault(entity, protein)
    chains: dict[str, list[Segment]] = {}
    for reference, chain, *numbers in table("_struct_ref_seq", RANGES):
        if reference in uniprot:
            chains.setdefault(chain, []).append(Segment(uniprot[reference], *(_number(text) for text in numbers)))
    if "" in entities and len(set(entities.values())) > 1:
        entities = {}  # several proteins, and nothing says which chain is which
    resolution = None
    for category, column in (("_refine", "ls_d_res_high"), ("_em_3d_reconstruction", "resolution")):
        values = [float(value) for (value,) in table(category, (column,)) if re.fullmatch(r"\d+\.?\d*", value)]
        resolution = resolution or next((value for value in values if value > 0), None)
    names = [name for (name,) in table("_entry", ("id",)) if name]
    predicted = any(name == "pLDDT" for (name,) in table("_ma_qa_metric", ("name",)))
    return Facts(names[0] if names else entry, predicted, resolution, chains, entities)


def of_lines(content: str, entry: str, resolution: float | None) -> Facts:
    """content: of a PDB file, the lines before its first atom."""
    chains: dict[str, list[Segment]] = {}
    pending = ""
    for line in content.split("\n"):
        if line.startswith("DBREF ") and line[26:32].strip() == "UNP":
            chains.setdefault(line[12:13].strip(), []).append(_dbref(line))
        elif line.startswith("DBREF1") and line[26:32].strip() == "UNP":
            pending = line
        elif line.startswith("DBREF2") and pending:
            numbers = (line[45:55], line[57:67], pending[14:18], pending[20:24])
            segment = Segment(line[18:40].strip(), *(_number(part) for part in numbers))
            chains.setdefault(line[12:13].strip(), []).append(segment)
            pending = ""
    predicted = bool(PREDICTED.search(content)) and "\nEXPDTA" not in content
    return Facts(entry, predicted, resolution, chains, label=False)


def _dbref(line: str) -> Segment:
    """AlphaFold DB's own lines put an accession of ten letters where eight fit, and the rest two columns on."""
    words = WORDS.match(line)
    if words and len(words["accession"]) > 8:
        first, last, begin, end = (int(words[i]) for i in (2, 3, 5, 6))
        return Segment(words["accession"], begin, end, first, last)
    protein, *numbers = (line[part].strip() for part in DBREF)
    return Segment(protein, *(_number(part) for part in numbers))


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*-?\d{1,9}\s*", text) else None
