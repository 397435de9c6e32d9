"""The kinds of source that are attacked, and which of their files is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.runs.hostile import good
from tests.runs.hostile.good import ERRORS, Tree


@dataclass(frozen=True)
class Kind:
    """source: a source's configuration. good: makes its files. target: the one that is attacked.

    ends: whether the target says where it ends, so that a file that is cut is known as such. entries: whether the
    target is what the records come from; otherwise it is a companion of it, without which there may be records.
    line: bytes that may be repeated in it without end, of some kilobytes. always: whether damage may stop the run even
    with `on_error = "reject"`. gzip: whether it may be packed. text: whether it is written for people.
    real: whether the target is a file of a public archive, or a part of one. again: whether another kind of the same
    code has met what any file could be.
    """

    name: str
    source: dict[str, Any]
    good: Callable[[], Tree]
    target: str
    ends: bool = False
    entries: bool = True
    line: bytes = b""
    always: bool = False
    gzip: bool = True
    text: bool = True
    real: bool = False
    again: bool = False

    @property
    def seed(self) -> bytes:
        return self.good()[self.target]


STRUCTURES = {"kind": "structures", "states": False}
IMAGES = {"kind": "images", "files": "images.tsv", "size": 16}
COMMENT = b"!" + b" comment" * 1250 + b"\n"
XML_COMMENT = b"<!--" + b" comment" * 1250 + b"-->\n"

KINDS = (
    Kind(
        "flat file",
        {"kind": "uniprot", "files": "entries.dat"},
        good.flat,
        "entries.dat",
        ends=True,
        real=True,
        line=b"CC   " + b"x" * 999 + b"\n",
    ),
    Kind(
        "scan",
        {"kind": "uniprot", "files": "entries.dat", "scan": True},
        good.flat,
        "entries.dat",
        ends=True,
        again=True,
    ),
    Kind(
        "isoforms",
        {"kind": "uniprot", "files": "entries.dat", "isoforms": True},
        good.flat,
        "entries.dat",
        ends=True,
        again=True,
    ),
    Kind("xml", {"kind": "uniprot", "files": "entries.xml"}, good.xml, "entries.xml", ends=True, line=XML_COMMENT),
    Kind("uniprot table", {"kind": "uniprot_table", "files": "exported.tsv"}, good.exported, "exported.tsv"),
    Kind(
        "fasta", {"kind": "fasta", "files": "more.fasta"}, good.fasta, "more.fasta", real=True, line=b"A" * 999 + b"\n"
    ),
    Kind("gaf", {"kind": "gaf", "files": "yeast.gaf"}, good.gaf, "yeast.gaf", real=True, line=COMMENT),
    Kind("gpad", {"kind": "gpad", "files": "yeast.gpa"}, good.gpad, "yeast.gpa", line=COMMENT),
    Kind(
        "gpi",
        {"kind": "gpad", "files": "yeast.gpa", "gpi": "yeast.gpi"},
        good.gpi,
        "yeast.gpi",
        line=COMMENT,
        entries=False,
        always=True,
    ),
    Kind(
        "eco", {"kind": "gpad", "files": "yeast.gpa", "eco": "eco.txt"}, good.eco, "eco.txt", entries=False, always=True
    ),
    Kind("annotations", {"kind": "annotations", "files": "go.tsv"}, good.annotations, "go.tsv"),
    Kind("annotations csv", {"kind": "annotations", "files": "go.csv"}, good.annotations_csv, "go.csv", again=True),
    Kind("texts", {"kind": "texts", "files": "texts.tsv"}, good.texts, "texts.tsv"),
    Kind("texts csv", {"kind": "texts", "files": "texts.csv"}, good.texts_csv, "texts.csv", again=True),
    Kind("ontology", {}, good.ontology, "go.obo", line=COMMENT, always=True),
    Kind("mmcif", {**STRUCTURES, "files": "*.cif"}, good.mmcif, "4ou0_A.cif", ends=True, real=True),
    Kind("aligned mmcif", {**STRUCTURES, "files": "*.cif"}, good.archive_mmcif, "4ou0_A.cif", ends=True, again=True),
    Kind("bcif", {**STRUCTURES, "files": "*.bcif"}, good.bcif, "1abc.bcif", ends=True, text=False),
    Kind("pdb", {**STRUCTURES, "files": "*.pdb"}, good.pdb, "1a8o.pdb", ends=True, real=True),
    Kind("tar", {**STRUCTURES, "files": "*.tar"}, good.tar, "proteome.tar", ends=True, text=False),
    Kind("pae", {**STRUCTURES, "files": "*.pdb"}, good.pae, ERRORS, ends=True, entries=False),
    Kind(
        "structures manifest",
        {**STRUCTURES, "files": "*.pdb", "manifest": "manifest.tsv"},
        good.listed,
        "manifest.tsv",
        entries=False,
        always=True,
    ),
    Kind(
        "foldcomp",
        {"kind": "foldcomp", "files": "db", "states": False},
        good.database,
        "db",
        ends=True,
        always=True,
        text=False,
        gzip=False,
    ),
    Kind(
        "foldcomp index", {"kind": "foldcomp", "files": "db", "states": False}, good.database, "db.index", always=True
    ),
    Kind(
        "foldcomp lookup",
        {"kind": "foldcomp", "files": "db", "states": False},
        good.database,
        "db.lookup",
        entries=False,
        always=True,
    ),
    Kind("images manifest", IMAGES, good.images, "images.tsv", always=True),
    Kind("png", IMAGES, good.images, "a_green.png", ends=True, entries=False, text=False, real=True),
    Kind("jpeg", IMAGES, good.jpeg, "a_green.png", ends=True, entries=False, text=False),
    Kind("tiff", IMAGES, good.tiff, "a_green.png", ends=True, entries=False, text=False),
    Kind(
        "atlas",
        {**IMAGES, "files": "**/*.jpg"},
        good.atlas,
        "1/495_A11_1_green.jpg",
        ends=True,
        entries=False,
        text=False,
        again=True,
    ),
    Kind(
        "gene table",
        {**IMAGES, "genes": {"files": "genes.tsv", "symbol": "symbol"}},
        good.genes,
        "genes.tsv",
        entries=False,
        always=True,
    ),
    Kind(
        "preferred genes",
        {**IMAGES, "genes": {"files": "genes.tsv", "symbol": "symbol", "prefer": "swissprot.fasta"}},
        good.preferred,
        "swissprot.fasta",
        entries=False,
        always=True,
    ),
    Kind(
        "samples table",
        {**IMAGES, "files": "**/*.jpg", "metadata": "samples.tsv"},
        good.samples,
        "samples.tsv",
        entries=False,
        always=True,
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}
