"""Structures of AlphaFold DB and the PDB: mmCIF, BinaryCIF, PDB format, in folders or tar archives; a record per chain.

Taken: the first model, of each residue one conformer (`residues.py` says which), backbone atoms only. Temperature
factors are pLDDT in AlphaFold models alone (an `AF-…-F…` name, pLDDT among `_ma_qa_metric`, a title without an
experiment), elsewhere they are not kept. The protein is, in this order, what the configuration says (a manifest, or the
folder's name), what an AlphaFold file is called, or what the file says (`_struct_ref`, DBREF); a chain of no known
protein becomes an unpaired sample. A chain that is a fusion of several proteins gives each of them its own residues.

A file's format is told by its first bytes, whatever it is called. Whatever goes wrong within a file becomes a
rejection of it. A file is held whole: that takes three times its size, and up to 20 times where it is not laid out as
the archives do it; so under 1 GiB with the default `max_megabytes`, which all but the largest capsids stay below.
"""

import re
from collections.abc import Generator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
from isal import isal_zlib

from data_prep.records import Item, Items, Rejection, StructureRecord
from data_prep.sources import archives
from data_prep.sources.annotations import Tally
from data_prep.sources.coordinates import bcif, mmcif, pdb
from data_prep.sources.coordinates.aligned_error import find_pae, read_pae
from data_prep.sources.coordinates.chains import UNSAFE, Wanted, records, taken
from data_prep.sources.coordinates.references import Facts
from data_prep.sources.coordinates.residues import Chain, chains
from data_prep.sources.files import DAMAGE, Files, Slice, SourceError, Stream, rows
from data_prep.sources.uniprot import accession
from pretrain.config import Config
from pretrain.places import Place
from pretrain.sample import BACKBONE

__all__ = ["UNSAFE", "ManifestColumns", "Structures"]

ARCHIVES = (".tar", ".tar.gz", ".tgz")
SUFFIXES = (".cif", ".mmcif", ".bcif", ".pdb", ".ent")
FAR = 1000.0  # Å, of a resolution
MOST_LISTED = 500_000  # rows of a manifest, some 0.4 GB
MEMBERS = tuple(f"*{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz"))


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

    members: patterns of an archive's members that are read, by default all of the three formats'; the others are
    counted by the ending of their names (`unread_member`).
    accession: "file" (what it says or is called), or "folder" (the name of the folder it lies in). manifest: a table
    of file → accession and more, relative to the configuration's own `root`, which has the last word.
    states: whether 3Di states are stored. pae: whether the aligned errors beside a model are; not those inside an
    archive, where a model's may come long after it (AlphaFold DB's archives have none). min_plddt: models of a
    lower mean are rejected. min_residue_plddt: residues below it are left out. max_megabytes: of one decompressed file,
    a quarter of it where it is BinaryCIF.
    """

    TAR: ClassVar[bool] = True

    kind: Literal["structures"] = "structures"
    on_error: Literal["stop", "reject"] = "reject"
    slice: int = 256
    members: str | tuple[str, ...] = MEMBERS
    atoms: tuple[str, ...] = BACKBONE[:3]
    min_residues: int = pydantic.Field(default=20, ge=1)
    accession: Literal["file", "folder"] = "file"
    manifest: str | None = None
    columns: ManifestColumns = ManifestColumns()
    states: bool = True
    pae: Literal["keep", "ignore"] = "keep"
    min_plddt: float = pydantic.Field(default=0.0, ge=0, le=100)
    min_residue_plddt: float = pydantic.Field(default=0.0, ge=0, le=100)
    max_megabytes: int = pydantic.Field(default=40, ge=1)

    @pydantic.field_validator("atoms")
    @classmethod
    def _known(cls, atoms: tuple[str, ...]) -> tuple[str, ...]:
        if not atoms or len(set(atoms)) != len(atoms) or set(atoms) - set(BACKBONE):
            raise ValueError(
                f"atoms are some of {', '.join(BACKBONE)}, each once; given are {', '.join(atoms) or 'none'}"
            )
        return atoms

    def slices(self, root: Place) -> list[Slice]:
        """Small files by the `slice`; archives by the `chunk` MiB, a bigger plain one in byte ranges of as much."""
        single: list[str] = []
        found: list[Slice] = []
        some, held = [], 0  # small archives: AlphaFold DB ships a million of them
        for name in (name for part in super().slices(root) for name in part.names):
            if not name.endswith(ARCHIVES):
                single.append(name)
                continue
            size, step = root.stat(name).bytes, self.chunk << 20
            if size > step and self.cuttable(root, name):
                found += [Slice((name,), at, min(at + step, size)) for at in range(0, size, step)]
                continue
            if some and held + size > step:
                found.append(Slice(tuple(some)))
                some, held = [], 0
            some, held = [*some, name], held + size
        found += [Slice(tuple(some))] if some else []
        return [Slice(tuple(single[at : at + self.slice])) for at in range(0, len(single), self.slice)] + found

    def companions(self, root: Place, home: Place) -> list[tuple[Place, str]]:
        return [(home, self.manifest)] if self.manifest else []

    def read(self, root: Place, part: Slice, home: Place) -> Items:
        columns = tuple(self.columns.model_dump().items())
        known = _manifest(home, self.manifest, columns) if self.manifest else {}  # a broken one stops the run
        for item in super().read(root, part, home):
            yield _corrected(item, known, self.manifest or "") if isinstance(item, StructureRecord) else item

    def parse(self, stream: Stream) -> Items:
        if stream.begin or archives.looks_like(stream.opening(tar=True)) or stream.name.endswith(ARCHIVES):
            yield from self._archive(stream)
            return
        data = stream.whole(self.max_megabytes << 20)
        for item in self._file(stream.name, "", data):
            if isinstance(item, StructureRecord) and self.pae == "keep" and stream.place is not None:
                item = yield from _with_errors(item, stream.place)
            yield self._finished(item)

    def _archive(self, stream: Stream) -> Items:
        """The members' records, a rejection for each that cannot be used, one for all of a kind that is not read."""
        unread = Tally(stream.name, "member")
        try:
            yield from self._members(stream, unread)
        except SourceError:
            yield from unread.rejections()
            raise
        yield from unread.rejections()

    def _members(self, stream: Stream, unread: Tally) -> Items:
        limit, patterns = self.max_megabytes << 20, (self.members,) if isinstance(self.members, str) else self.members
        last = stream.end is None or stream.place is None or stream.end >= stream.place.stat(stream.name).bytes

        def wanted(name: str) -> bool:
            return any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in patterns)

        for member in archives.members(stream, wanted, limit, None if last else stream.end):
            name, shown = Path(member.name).name, member.name or "a member without a name"
            if member.refused == archives.UNREAD:
                unread.add(member.refused, _ending(name), shown)
                continue
            try:
                if member.data is None:
                    raise SourceError(member.refused, f"{shown}: {member.detail}")
                data = _unpacked(shown, member.data, limit)
                yield from map(self._finished, self._file(stream.name, member.name, data))
            except SourceError as error:
                position = f"{shown}, {error.position}" if error.position else shown
                if self.on_error == "stop":
                    raise SourceError(error.reason, f"{stream.name}: {error}", position) from error
                yield Rejection(error.reason, name, stream.name, str(error), position)

    def _file(self, source: str, member: str, data: bytes) -> Items:
        """The records of one file's chains. member: its name, if it is an archive's."""
        name = member or source
        if data[:2] == b"\x1f\x8b" or archives.looks_like(data):
            raise SourceError(
                "unknown_format", f"{name}: packed twice, an archive or gzip within another; unpack it once"
            )
        found, facts = opened(name, data, self.max_megabytes << 20)
        wanted = Wanted(self.atoms, self.min_residues, self.states, whole=self.manifest is not None)
        if self.accession == "folder":
            wanted = replace(wanted, accession=Path(name).parent.name)
        for item in records(name, found, facts, wanted):
            yield replace(item, source=source, position=member or item.position)

    def _finished(self, item: Item) -> Item:
        """With the residues that are sure enough, or rejected."""
        if not isinstance(item, StructureRecord) or item.confidence is None:
            return item
        mean = float(item.confidence.mean())
        if mean < self.min_plddt:
            problem = f"{item.id}: mean pLDDT {mean:.1f}, min_plddt is {self.min_plddt:g}"
            return Rejection("low_confidence", item.key, item.source, problem, item.position)
        sure = item.confidence >= self.min_residue_plddt
        if sure.all():
            return item
        if sure.sum() < self.min_residues:
            problem = f"{item.id}: {sure.sum()} residues of pLDDT {self.min_residue_plddt:g} and more"
            return Rejection("low_confidence", item.key, item.source, problem, item.position)
        return taken(item, sure)


def _ending(name: str) -> str:
    """`*.json.gz`: what names like this one have in common."""
    bare = name.removesuffix(".gz")
    return f"*{Path(bare).suffix}{name[len(bare) :]}" if Path(bare).suffix else f"{name[:20]!r}"


def opened(name: str, data: bytes, limit: int) -> tuple[list[Chain], Facts]:
    """The chains of a file in any of the formats, and its facts. Raises SourceError, whatever the matter is."""
    suffix = Path(name.removesuffix(".gz")).suffix
    try:
        if bcif.looks_like(data):
            if len(data) > limit // 4:
                raise SourceError("too_large", f"over {limit >> 22} MiB of BinaryCIF; raise max_megabytes")
            atoms, facts = bcif.read(data)
        elif mmcif.looks_like(data):
            atoms, facts = mmcif.read(data)
        elif pdb.looks_like(data) or suffix in (".pdb", ".ent"):
            atoms, facts = pdb.read(data)
        elif suffix in SUFFIXES:
            atoms, facts = mmcif.read(data)
        else:
            raise SourceError("unknown_format", f"neither mmCIF, BinaryCIF nor PDB; it begins with {data[:40]!r}")
        found = list(chains(atoms))
        if not found:
            raise SourceError("no_protein_chain", "no polymer with a backbone; leave the file out")
        return found, facts
    except SourceError as error:
        raise SourceError(error.reason, f"{name}: {error}", error.position) from error
    except Exception as error:  # whatever gemmi, msgpack and numpy raise for damage
        told = f"{type(error).__name__}: {error}"
        raise SourceError("unparsable_structure", f"{name}: not a readable structure file: {told[:300]}") from error


def _unpacked(name: str, data: bytes, limit: int) -> bytes:
    """A member's content, decompressed if it is gzip. Raises SourceError for damage, and beyond the limit."""
    if not data.strip():
        raise SourceError("empty_file", f"{name}: a member of {len(data)} bytes, all of them white space or none")
    if data[:2] != b"\x1f\x8b":
        return data
    parts, held = [], 0
    try:
        while data:
            stream = isal_zlib.decompressobj(wbits=31)
            parts.append(stream.decompress(data, limit + 1 - held))
            held += len(parts[-1])
            if held > limit:
                raise SourceError("too_large", f"{name}: over {limit >> 20} MiB when decompressed; look at it")
            if not stream.eof:
                raise EOFError("it ends early")
            data = stream.unused_data.lstrip(b"\0")
    except DAMAGE as error:
        problem = f"{name}: gzip stream of a member is damaged after {held} bytes ({error}); fetch it again"
        raise SourceError("truncated_gzip", problem, f"byte {held}") from error
    return b"".join(parts)


def _with_errors(record: StructureRecord, place: Place) -> Generator[Rejection, None, StructureRecord]:
    """The record with its aligned errors; a rejection of their file, if that is damaged."""
    name = find_pae(place, record.source) if record.confidence is not None else None
    if name is None:
        return record
    try:
        return replace(record, pae=read_pae(place, name, len(record.letters)))
    except SourceError as error:
        yield Rejection(error.reason, record.key, name, str(error), error.position or record.position)
        return record


def _corrected(record: StructureRecord, manifest: dict[str, dict[str, str]], name: str) -> StructureRecord:
    """The record with what the manifest of this name knows of its file or chain."""
    whose = (Path(record.source).name, Path(record.position).name, record.id)
    row = next((manifest[each] for each in whose if each in manifest), None)
    if not row:
        return record
    known: dict[str, Any] = {"key": accession(row["accession"])} if row.get("accession") else {}
    try:
        known |= {each: _number(row[each]) for each in ("begin", "end") if row.get(each)}
        if row.get("resolution") and record.confidence is None:
            known["resolution"] = float(row["resolution"])
            if not 0 < known["resolution"] < FAR:
                raise ValueError(f"a resolution of {row['resolution']:.40} Å")
    except ValueError as error:
        raise SourceError("unparsable_table", f"{name}: row of {record.id}: {error}; correct it") from error
    return replace(record, **known)


def _number(text: str) -> int:
    """Of a residue. Raises ValueError."""
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise ValueError(f"a residue number of {text[:40]!r}")
    return int(text)


@lru_cache(maxsize=4)
def _manifest(root: Place, name: str, columns: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str]]:
    """The manifest's rows by file name, and by `12as_A` where it names PDB ids and chains (chains A and a differ)."""
    table: dict[str, dict[str, str]] = {}
    wanted = {ours: theirs for ours, theirs in columns if theirs}
    with Stream.open(root, name) as stream:
        for _, row in rows(stream, wanted):
            if row.get("file"):
                table.setdefault(Path(row["file"]).name, row)
            if row.get("pdb") and row.get("chain"):
                table.setdefault(f"{row['pdb'].lower()}_{row['chain']}", row)
            if len(table) > MOST_LISTED:
                raise SourceError("too_large", f"{name}: over {MOST_LISTED} rows; make it several sources")
    if not table:
        raise SourceError("empty_table", f"{name}: no row names a file or a chain; write it again, or leave it out")
    return table
