"""PDB format → atoms and facts, read by gemmi: hybrid-36 numbers, chains of two letters, TER or none.

A residue's number in its chain's whole sequence comes from SEQRES, by gemmi's alignment, so that it is the number that
the same entry has in mmCIF. Only the first model is given to gemmi; its list of models is searched for each new one.
"""

import re
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from data_prep.sources.coordinates.atoms import NONE, Atoms, slots
from data_prep.sources.coordinates.references import Facts, of_lines
from data_prep.sources.files import SourceError, text

CELLS = 2e8  # of an alignment's matrix, a byte each; titin against itself has five times as many, and is a model
END = re.compile(rb"\nEND(?: [^\n]*)?\s*\Z")
FIRST = re.compile(rb"^(?:ATOM  |HETATM|MODEL )", re.MULTILINE)
RECORD = re.compile(
    rb"^(?:HEADER|OBSLTE|TITLE |SPLIT |CAVEAT|COMPND|SOURCE|KEYWDS|EXPDTA|NUMMDL|AUTHOR|REVDAT|JRNL  |REMARK|DBREF"
    rb"|SEQADV|SEQRES|MODRES|HET   |HETNAM|HELIX |SHEET |SSBOND|LINK  |CISPEP|SITE  |CRYST1|ORIGX|SCALE|MTRIX|MODEL "
    rb"|ATOM  |HETATM|ANISOU|PARENT|USER  )",
    re.MULTILINE,
)


def looks_like(data: bytes) -> bool:
    """Whether one of the first lines is a record of the format."""
    return RECORD.search(data[:4096]) is not None


def read(data: bytes) -> tuple[Atoms, Facts]:
    """The first model's atoms, and facts. Raises SourceError for no atoms, and what gemmi raises."""
    first = FIRST.search(data)
    if not first:
        raise SourceError("no_atoms", "the file has no atoms; fetch it again, or leave it out")
    head = text(data[: first.start()])
    end = data.find(b"\nENDMDL", first.start())
    if end < 0 and b"\nSEQRES" in data[: first.start()] and not END.search(data, max(len(data) - 1000, 0)):
        raise SourceError("truncated_structure", f"it has no END, after {len(data)} bytes; fetch it again")
    structure = _structure(data if end < 0 else data[:end])
    if not len(structure) or not structure[0].count_atom_sites():
        raise SourceError("no_atoms", "the file has no atoms; fetch it again, or leave it out")
    structure.setup_entities()
    entry = dict(structure.info.items()).get("_entry.id", "")
    return _atoms(structure), of_lines(head, entry, structure.resolution or None)


def _structure(data: bytes) -> gemmi.Structure:
    """Files from before 1996 have the entry's name and line numbers where the element and the charge are now."""
    try:
        return gemmi.read_pdb_string(data)
    except RuntimeError as error:
        if "charge" not in str(error):
            raise
        return gemmi.read_pdb_string(data, max_line_length=72)


def _atoms(structure: gemmi.Structure) -> Atoms:
    flat: Any = gemmi.FlatStructure(structure)
    names, number = _names(flat.residue_names), flat.resnums.astype(np.int64)
    place = _places(structure, _names(flat.subchains), names, number)
    slot = slots(_names(flat.atom_names))
    rows = np.flatnonzero((slot >= 0) & (flat.entity_type == gemmi.EntityType.Polymer.value))
    chain = _names(flat.chain_ids)[rows]
    alt, code = (np.asarray(column)[rows].astype(np.uint8).view("S1") for column in (flat.altlocs, flat.icodes))
    return Atoms(
        chain=chain,
        part=chain,
        entity=np.zeros(len(rows), dtype="S1"),
        residue=names[rows],
        code=np.where(code == b" ", b"", code),
        alt=np.where(alt == b" ", b"", alt),
        place=place[rows],
        number=number[rows],
        slot=slot[rows],
        xyz=flat.pos[rows],
        occupancy=flat.occ[rows].astype(np.float64),
        temperature=flat.b_iso[rows].astype(np.float64),
    )


def _names(column: NDArray) -> NDArray[np.bytes_]:
    """gemmi's [N, 8] characters as N byte strings."""
    return np.ascontiguousarray(column).view(np.uint8).view("S8").ravel()


def _places(structure: gemmi.Structure, parts: NDArray, names: NDArray, number: NDArray) -> NDArray[np.int64]:
    """Of each atom, its residue's number in SEQRES; NONE where there is none. Most often it is the author's number."""
    place = np.full(len(number), NONE)
    sequences = {part: entity.full_sequence for entity in structure.entities for part in entity.subchains}
    sequences = {part: sequence for part, sequence in sequences.items() if sequence}
    for part, sequence in sequences.items():
        inside = parts == part.encode()
        numbers = number[inside]
        if not len(numbers) or numbers.min() < 1 or numbers.max() > len(sequence):
            break
        if (np.array(sequence, dtype="S8")[numbers - 1] != names[inside]).any():
            break
        place[inside] = numbers
    else:
        return place
    residues = [residue for chain in structure[0] for residue in chain]
    if len(residues) * max(map(len, sequences.values())) > CELLS:
        return np.full(len(number), NONE)
    structure.assign_label_seq_id(False)
    places = [NONE if residue.label_seq is None else residue.label_seq for residue in residues]
    return np.repeat(np.array(places, dtype=np.int64), [len(residue) for residue in residues])
