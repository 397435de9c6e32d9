"""Checksums as archives publish them: `md5sum` and `sha256sum` listings, BSD's lines, and Metalink, which UniProt uses.

A listing comes from the same server as the files: it tells of damage on the way, not of a server that lies.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import lxml.etree as etree

from data_prep.remote.web import Refused
from pretrain.places import blocks

LENGTHS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # hexadecimal digits → algorithm
PREFERENCE = ("sha512", "sha256", "sha1", "md5")
GNU = re.compile(r"\\?([0-9a-fA-F]{32,128})(?:\s+\*?|\s*\t)(\S.*)")
BSD = re.compile(r"(?:MD5|SHA1|SHA256|SHA512) ?\((.+)\) ?= ?([0-9a-fA-F]{32,128})")


@dataclass(frozen=True)
class Expected:
    """What a file should be: its digest by algorithm (none where unknown) and its bytes (None where unknown)."""

    digests: dict[str, str] = field(default_factory=dict)
    bytes: int | None = None

    @property
    def best(self) -> str:
        """The strongest algorithm that a digest is known of, or ""."""
        return next((name for name in PREFERENCE if name in self.digests), "")


@dataclass(frozen=True)
class Listing:
    """name → what it should be. release: as the listing names it, or ""."""

    origin: str
    files: dict[str, Expected]
    release: str = ""

    def find(self, url: str) -> Expected:
        """Of the file at `url`: the entry whose path ends it, the longest such. Raises Refused where there is none."""
        path = PurePosixPath(url.partition("?")[0]).parts
        found = [name for name in self.files if path[-len(parts := _parts(name)) :] == parts and parts]
        if not found:
            raise Refused("unlisted", f"{url}: {self.origin} has no checksum of it, but of {_some(self.files)}")
        return self.files[max(found, key=lambda name: len(_parts(name)))]


def parse(data: bytes, origin: str) -> Listing:
    """Raises Refused for what is no listing."""
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _metalink(data, origin)
    files: dict[str, Expected] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        if found := GNU.fullmatch(line.strip()):
            _add(files, found[2], found[1])
        elif found := BSD.fullmatch(line.strip()):
            _add(files, found[1], found[2])
    if not files:
        raise Refused("no_listing", f"{origin}: no line of a checksum and a name; it begins with {data[:80]!r}")
    return Listing(origin, files)


def digests(path: Path, algorithms: set[str]) -> dict[str, str]:
    """The file's digests, in one pass."""
    running = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open(path, "rb") as file:
        for block in blocks(file):
            for digest in running.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in running.items()}


def _metalink(data: bytes, origin: str) -> Listing:
    """Metalink 3 and 4. Nothing is loaded, no entity expanded, and a document type is refused."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise Refused("no_listing", f"{origin}: XML that cannot be read ({error})") from error
    if root.getroottree().docinfo.doctype:
        raise Refused("no_listing", f"{origin}: XML with a document type, or a page; a listing has none")
    if etree.QName(root).localname != "metalink":
        raise Refused("no_listing", f"{origin}: <{etree.QName(root).localname}>, where <metalink> was expected")
    files: dict[str, Expected] = {}
    for file in root.iter("{*}file"):
        name, size = file.get("name", ""), file.findtext("{*}size", "").strip()
        for digest in file.iter("{*}hash"):
            algorithm = digest.get("type", "").lower().replace("-", "")
            if name and algorithm in PREFERENCE and digest.text:
                _add(files, name, digest.text.strip(), algorithm, int(size) if size.isdigit() else None)
    if not files:
        raise Refused("no_listing", f"{origin}: no file with a checksum in it")
    return Listing(origin, files, root.findtext("{*}version", "").strip())


def _add(files: dict[str, Expected], name: str, digest: str, algorithm: str = "", size: int | None = None) -> None:
    algorithm = algorithm or LENGTHS.get(len(digest), "")
    if algorithm:
        known = files.get(name, Expected())
        files[name] = Expected({**known.digests, algorithm: digest.lower()}, size if size is not None else known.bytes)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name.strip()).parts if part not in (".", "/"))


def _some(files: dict[str, Expected]) -> str:
    return ", ".join(sorted(files)[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
