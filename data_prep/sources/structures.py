"""Structures: AlphaFold DB and PDB files, mmCIF or PDB format, read with gemmi; one record per polypeptide chain.

Taken: the first model, of each atom the alternate location with the highest occupancy, backbone atoms only. B-factors
are pLDDT in AlphaFold models alone (an `AF-…-F…` name, pLDDT among `_ma_qa_metric`, a title without an experiment),
elsewhere they are not kept. The protein is, in this order, what the configuration says (a manifest, or the folder's
name), what an AlphaFold file is called, or what the file says (`_struct_ref`, DBREF); a chain of no known protein
becomes an unpaired sample.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gemmi
import numpy as np
import pydantic

from data_prep.places import Place
from data_prep.records import Items, Rejection, StructureRecord
from data_prep.sources.files import Files, Slice, SourceError, Stream, rows, text
from data_prep.sources.uniprot import accession
from pretrain.config import Config
from pretrain.sample import BACKBONE

MODEL = re.compile(r"AF-(?P<accession>[A-Z0-9]+(?:-\d+)?)-F\d+")  # an isoform's has its number: AF-P12345-2-F1
ENTRY = re.compile(r"([0-9][A-Za-z0-9]{3})(?:_[A-Za-z0-9]+)?")
PROTEIN = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
FAR = 1e5  # Å; no atom lies so far out: it is a filler, or damage
Observed = tuple[gemmi.Residue, dict[int, gemmi.Atom]]  # a residue, and those of its atoms that are taken, by slot
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
PREDICTED = re.compile(r"^TITLE .*ALPHAFOLD", re.IGNORECASE | re.MULTILINE)
DBREF = (
    slice(12, 13),
    slice(26, 32),
    slice(33, 41),
    slice(14, 18),
    slice(55, 60),
    slice(62, 67),
)  # PDB format 3.3 §3.2


class ManifestColumns(Config):
    """Columns of a manifest; an empty name: it has none. A row is found by file name, or by PDB id and chain."""

    file: str = "file"
    pdb: str = ""
    chain: str = ""
    accession: str = "uniprot"
    begin: str = ""
    end: str = ""
    resolution: str = ""


class Structures(Files):
    """`kind = "structures"`. atoms: which are stored, of N, CA, C, O. min_residues: shorter chains are rejected.

    accession: "file" (what it says or is called), or "folder" (the name of the folder it lies in). manifest: a table
    of file → accession and more, relative to the configuration's own `root`, which has the last word.
    """

    kind: Literal["structures"] = "structures"
    on_error: Literal["stop", "reject"] = "reject"
    slice: int = 256
    atoms: tuple[str, ...] = BACKBONE[:3]
    min_residues: int = pydantic.Field(default=20, ge=1)
    accession: Literal["file", "folder"] = "file"
    manifest: str | None = None
    columns: ManifestColumns = ManifestColumns()

    def read(self, root: Place, part: Slice, home: Place) -> Items:
        columns = tuple(self.columns.model_dump().items())
        known = _manifest(home, self.manifest, columns) if self.manifest else {}  # a broken one stops the run
        for item in super().read(root, part, home):
            yield _corrected(item, known) if isinstance(item, StructureRecord) else item

    def parse(self, stream: Stream) -> Items:
        name, data = stream.name, stream.whole()
        structure, references = _open(name, data)
        chains = [chain for chain in structure[0] if chain.get_polymer().check_polymer_type() in PROTEIN]
        if not chains:
            problem = f"{name}: no polypeptide chain among {len(structure[0])} chains; leave the file out"
            raise SourceError("no_protein_chain", problem)
        model = MODEL.search(name) or MODEL.search(structure.name)
        if model:
            references = references.of_model(model["accession"])
        for chain in chains:
            label = model[0] if model else f"{_entry_name(name, structure.name)}_{UNSAFE.sub('-', chain.name)}"
            reference = references.of(chain.name)
            if self.accession == "folder":
                reference = replace(reference or Reference(""), accession=Path(name).parent.name)
            key = accession(reference.accession) if reference else f"pdb_{label}"
            residues = list(_residues(chain.get_polymer(), self.atoms))
            if len(residues) < self.min_residues:
                problem = f"{label}: {len(residues)} residues, min_residues is {self.min_residues}"
                yield Rejection("short_chain", key, name, problem)
                continue
            record = _record(key, name, label, residues, self.atoms, reference or Reference(""))
            if references.predicted:
                yield replace(record, confidence=_confidence(residues))
            else:
                yield replace(record, resolution=structure.resolution or None)


@dataclass(frozen=True)
class Reference:
    """What a file says a chain is. begin, end: range of the sequence, 1-based. first, last: the chain's own numbers."""

    accession: str
    begin: int | None = None
    end: int | None = None
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class References:
    """By chain name; the empty name stands for every chain."""

    chains: dict[str, Reference]
    predicted: bool

    def of(self, chain: str) -> Reference | None:
        return self.chains.get(chain) or self.chains.get("")

    def of_model(self, accession: str) -> "References":
        """What is left when the protein is known: DBREF in AlphaFold's PDB files loses the end of a long accession."""
        told = {chain: each for chain, each in self.chains.items() if each.accession == accession}
        return References(told or {"": Reference(accession)}, predicted=True)


def _open(name: str, data: bytes) -> tuple[gemmi.Structure, References]:
    """Parse either format. Raises SourceError for what is neither, or holds no atoms."""
    stem = Path(name.removesuffix(".gz"))
    try:
        if stem.suffix in (".cif", ".mmcif"):
            block = gemmi.cif.read_string(data)[0]
            structure = gemmi.make_structure_from_block(block)
            references = _cif_references(block)
        else:
            structure = gemmi.read_pdb_string(data)
            references = _pdb_references(text(data))
            structure.name = dict(structure.info.items()).get("_entry.id") or stem.stem
    except (ValueError, RuntimeError, IndexError) as error:
        raise SourceError(
            "unparsable_structure", f"{name}: not a readable {stem.suffix or 'structure'} file: {error}"
        ) from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise SourceError("no_atoms", f"{name}: the file has no atoms; fetch it again, or leave it out")
    structure.setup_entities()
    return structure, references


def _entry_name(name: str, entry: str) -> str:
    """`12as` of an entry 12AS, or of a file that is named by PDB id and chain; else the file's own name."""
    stem = Path(name).name.removesuffix(".gz").rsplit(".", 1)[0]
    for candidate in (entry, stem):
        if match := ENTRY.fullmatch(candidate):
            return match[1].lower()
    return UNSAFE.sub("-", stem).strip("-")


def _cif_references(block: gemmi.cif.Block) -> References:
    """UniProt rows of `_struct_ref_seq` by chain; of `_struct_ref` by entity where there is no range."""
    predicted = any(gemmi.cif.as_string(row[0]) == "pLDDT" for row in block.find("_ma_qa_metric.", ["name"]))
    uniprot: dict[str, str] = {}
    for identifier, database, protein in block.find("_struct_ref.", ["id", "db_name", "pdbx_db_accession"]):
        if database in ("UNP", "TREMBL", "SWS"):
            uniprot[identifier] = gemmi.cif.as_string(protein)
    chains: dict[str, Reference] = {}
    tags = ["ref_id", "pdbx_strand_id", "db_align_beg", "db_align_end", "?seq_align_beg", "?seq_align_end"]
    for row in block.find("_struct_ref_seq.", tags):
        if row[0] in uniprot:
            numbers = [_number(row[i]) if row.has(i) else None for i in range(2, 6)]
            _keep_longest(chains, gemmi.cif.as_string(row[1]), Reference(uniprot[row[0]], *numbers))
    if not chains and len(set(uniprot.values())) == 1:
        chains[""] = Reference(next(iter(uniprot.values())))
    return References(chains, predicted)


def _pdb_references(content: str) -> References:
    """UniProt ranges of DBREF lines by chain; DBREF1 and DBREF2 share out what is too long for one line."""
    chains: dict[str, Reference] = {}
    pending = ""
    for line in content.split("\n"):
        if line.startswith(("ATOM", "MODEL")):
            break
        if line.startswith("DBREF ") and line[26:32].strip() == "UNP":
            chain, _, protein, first, begin, end = (line[part].strip() for part in DBREF)
            _keep_longest(
                chains, chain, Reference(protein, _number(begin), _number(end), _number(first), _number(line[20:24]))
            )
        elif line.startswith("DBREF1") and line[26:32].strip() == "UNP":
            pending = line
        elif line.startswith("DBREF2") and pending:
            numbers = (_number(part) for part in (line[45:55], line[57:67], pending[14:18], pending[20:24]))
            _keep_longest(chains, line[12:13].strip(), Reference(line[18:40].strip(), *numbers))
            pending = ""
    return References(chains, predicted=bool(PREDICTED.search(content)) and "\nEXPDTA" not in content)


def _keep_longest(chains: dict[str, Reference], chain: str, reference: Reference) -> None:
    """A chain of several proteins (a fusion) counts as the one that most of it is."""
    known = chains.get(chain)
    if known is None or (reference.end or 0) - (reference.begin or 0) > (known.end or 0) - (known.begin or 0):
        chains[chain] = reference


def _number(field: str) -> int | None:
    return int(field) if re.fullmatch(r"-?\d+", field.strip()) else None


def _residues(residues: gemmi.ResidueSpan, atoms: tuple[str, ...]) -> Iterator[Observed]:
    """Each residue with at least one of the atoms: somewhere, and best occupied.

    Of residues that share one number (microheterogeneity) the better occupied one stays.
    """
    slots = {name: slot for slot, name in enumerate(atoms)}
    held: Observed | None = None
    for residue in residues:
        places: dict[int, gemmi.Atom] = {}
        for atom in residue:
            slot = slots.get(atom.name)
            if slot is None or not all(abs(x) < FAR for x in atom.pos):  # false of NaN too
                continue
            if slot not in places or atom.occ > places[slot].occ:
                places[slot] = atom
        if not places:
            continue
        if held and held[0].seqid == residue.seqid:
            if max(a.occ for a in places.values()) > max(a.occ for a in held[1].values()):
                held = (residue, places)
            continue
        if held:
            yield held
        held = (residue, places)
    if held:
        yield held


def _record(
    key: str, source: str, label: str, residues: list[Observed], atoms: tuple[str, ...], reference: Reference
) -> StructureRecord:
    coordinates = np.zeros((len(residues), len(atoms), 3), dtype=np.float32)
    mask = np.zeros((len(residues), len(atoms)), dtype=bool)
    for i, (_, places) in enumerate(residues):
        for slot, atom in places.items():
            coordinates[i, slot] = atom.pos.tolist()
            mask[i, slot] = True
    codes = (gemmi.find_tabulated_residue(residue.name).one_letter_code.upper() for residue, _ in residues)
    begin, first = reference.begin, reference.first
    return StructureRecord(
        key=key,
        source=source,
        id=label,
        letters="".join(codes).replace(" ", "X"),
        atoms=atoms,
        coordinates=coordinates,
        mask=mask,
        number=_numbers([residue for residue, _ in residues]),
        begin=begin,
        end=reference.end,
        shift=None if begin is None or first is None else begin - 1 - first,
    )


def _confidence(residues: list[Observed]) -> np.ndarray:
    """pLDDT, which a model has in the B-factors of a residue's atoms, the same in all."""
    return np.array([next(iter(places.values())).b_iso for _, places in residues], dtype=np.float32)


def _numbers(residues: list[gemmi.Residue]) -> np.ndarray:
    """The source's residue numbers where they increase strictly (label numbers first), else 0..L-1."""
    for numbers in ([r.label_seq for r in residues], [r.seqid.num for r in residues]):
        if None not in numbers:
            array = np.array(numbers, dtype=np.int32)
            if (np.diff(array) > 0).all():
                return array
    return np.arange(len(residues), dtype=np.int32)


def _corrected(record: StructureRecord, manifest: dict[str, dict[str, str]]) -> StructureRecord:
    """The record with what the manifest knows of its file or chain."""
    row = manifest.get(Path(record.source).name) or manifest.get(record.id)
    if not row:
        return record
    known: dict[str, Any] = {"key": accession(row["accession"])} if row.get("accession") else {}
    try:
        known |= {name: int(row[name]) for name in ("begin", "end") if row.get(name)}
        if row.get("resolution") and record.confidence is None:
            known["resolution"] = float(row["resolution"])
    except ValueError as error:
        raise SourceError("unparsable_table", f"manifest of structures, row of {record.id}: {error}") from error
    return replace(record, **known)


@lru_cache(maxsize=4)
def _manifest(root: Place, name: str, columns: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str]]:
    """The manifest's rows by file name, and by `12as_A` where it names PDB ids and chains (chains A and a differ)."""
    table: dict[str, dict[str, str]] = {}
    wanted = {ours: theirs for ours, theirs in columns if theirs}
    for _, row in rows(Stream.open(root, name), wanted):
        if row.get("file"):
            table.setdefault(Path(row["file"]).name, row)
        if row.get("pdb") and row.get("chain"):
            table.setdefault(f"{row['pdb'].lower()}_{row['chain']}", row)
    return table
