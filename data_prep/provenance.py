"""What a manifest says of where a data set comes from: files, hashes, releases, licences, versions of packages."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_prep.recipe import PrepareConfig, Roots
from data_prep.remote.ledger import RECORD
from pretrain.places import Place

PACKAGES = ("fourfold", "numpy", "gemmi", "biopython", "fastobo", "lxml", "pillow")
File = tuple[str, int, str]  # path, bytes, SHA-256


@dataclass
class Read:
    """What was read of one source, added up slice by slice: of a file no more stays than its name, size and hash."""

    files: set[File] = field(default_factory=set)
    releases: set[str] = field(default_factory=set)
    records: Counter[str] = field(default_factory=Counter)

    def add(self, told: dict[str, Any]) -> None:
        self.files |= {(file["path"], file["bytes"], file["sha256"]) for file in told["seen"]}
        self.releases |= {file["release"] for file in told["seen"] if file["release"]}
        self.records.update(told["records"])


def sources(config: PrepareConfig, roots: Roots, read: Sequence[Read]) -> list[dict[str, Any]]:
    """Each source's entry in the manifest. What neither the configuration nor the files say, `fourfold fetch` may
    have written down beside them, and holds as long as they are what it fetched."""
    fetched = {name: _fetched(root) for name, root in roots.items()}
    told = []
    for source, mine in zip(config.sources, read, strict=True):
        noted = [fetched[source.root or ""].get((path, sha256)) for path, _, sha256 in mine.files]
        releases = mine.releases or {note["release"] for note in noted if note and note["release"]}
        licences = {note["licence"] for note in noted if note and note["licence"]}
        about = {"kind": source.kind, "path": list(source.patterns), "name": source.name}
        about |= {"release": source.release or "; ".join(sorted(releases))}
        about |= {"licence": source.licence or "; ".join(sorted(licences)), "note": source.note}
        told.append({**about, **hash_of(mine.files), "records": counted(mine.records)})
    return told


def gene_ontology(config: PrepareConfig, terms: dict[str, Any]) -> dict[str, Any]:
    if not config.ontology:
        return {}
    release, seen = config.ontology.release or terms["release"], terms["seen"]
    file = hash_of([(seen["path"], seen["bytes"], seen["sha256"])])
    return {"path": config.ontology.files, "release": release, **file, **terms["counts"]}


def hash_of(files: Iterable[File]) -> dict[str, Any]:
    """Number, bytes and hash of some files: one file's own hash, or that of the sorted list of names and hashes."""
    files, rows = sorted(files), hashlib.sha256()
    for path, _, sha256 in files:
        rows.update(f"{sha256}  {path}\n".encode())
    sha256 = files[0][2] if len(files) == 1 else rows.hexdigest()
    return {"files": len(files), "bytes": sum(size for _, size, _ in files), "sha256": sha256}


def counted(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}


def versions() -> dict[str, str]:
    """Of the packages that what is written depends on."""
    return {name: _version(name) for name in PACKAGES}


def _fetched(root: Place) -> dict[tuple[str, str], dict[str, Any]]:
    """(path, SHA-256) → what is known of a file that was fetched into this root."""
    if not root.exists(RECORD):
        return {}
    try:
        files = json.loads(root.read(RECORD))["files"]
        return {(path, note["sha256"]): {"release": "", "licence": ""} | note for path, note in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError):  # somebody else's file of that name
        return {}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
