"""What came: the file that was asked for, or something else under its name.

Servers answer 200 with an empty body, with a page for people, with an error as JSON, or with half a file; such a file
must not lie in wait for the day it is parsed. The beginning of every file is looked at; where no checksum vouches for
the rest, archives are read to their end.
"""

import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from isal import igzip

from data_prep.remote.web import Refused
from data_prep.sources.files import BLOCK, DAMAGE

HEAD = 4096  # bytes that are looked at
MAX_JSON = 256 << 20  # bytes of a JSON file that is parsed as a whole
ERRORS = {"error", "errors", "errorMessage", "messages", "detail", "fault"}  # keys of a JSON answer that is an error
PAGE = re.compile(rb"<!doctype\s+html|<html[\s>]", re.IGNORECASE)

Kind = Literal[
    "auto", "any", "text", "json", "xml", "cif", "bcif", "pdb", "fasta", "uniprot", "obo", "gaf", "tar", "zip", "png",
    "jpeg", "tiff",
]  # fmt: skip

_SUFFIXES: dict[str, Kind] = {
    "json": "json", "xml": "xml", "cif": "cif", "mmcif": "cif", "bcif": "bcif", "pdb": "pdb", "ent": "pdb",
    "fasta": "fasta", "fa": "fasta", "obo": "obo", "gaf": "gaf", "gpad": "text", "gpi": "text", "tsv": "text",
    "csv": "text", "txt": "text", "tab": "text", "dat": "text", "tar": "tar", "tgz": "tar", "zip": "zip", "png": "png",
    "jpg": "jpeg", "jpeg": "jpeg", "tif": "tiff", "tiff": "tiff",
}  # fmt: skip

_SIGNS: dict[str, Callable[[bytes], bool]] = {
    "any": lambda head: True,
    "text": lambda head: b"\0" not in head and not head.startswith((b"{", b"<")),
    "json": lambda head: head[:1] in b"{[",
    "xml": lambda head: head.startswith(b"<"),
    "cif": lambda head: bool(re.search(rb"^data_", head, re.MULTILINE)),
    "bcif": lambda head: b"encoder" in head or b"dataBlocks" in head,
    "pdb": lambda head: bool(re.match(rb"(HEADER|TITLE|ATOM|HETATM|REMARK|CRYST1|MODEL|COMPND|OBSLTE)\b", head)),
    "fasta": lambda head: head.startswith(b">"),
    "uniprot": lambda head: head.startswith(b"ID   "),
    "obo": lambda head: b"format-version:" in head,
    "gaf": lambda head: head.startswith(b"!") or head.count(b"\t") >= 14,
    "tar": lambda head: head[257:262] == b"ustar",
    "zip": lambda head: head.startswith(b"PK\x03\x04"),
    "png": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "jpeg": lambda head: head.startswith(b"\xff\xd8\xff"),
    "tiff": lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}


def kind_of(name: str) -> Kind:
    """What a file of this name holds, once decompressed; `any` for a name that does not tell."""
    return _SUFFIXES.get(name.lower().removesuffix(".gz").rpartition(".")[2], "any")


def check(path: Path, name: str, kind: Kind, thorough: bool, origin: str = "") -> None:
    """Raise Refused unless the file at `path` is what one called `name` should be.

    origin: where it came from, for messages. thorough: also read compressed files and archives to their end, where a
    missing piece shows.
    """
    kind = kind_of(name) if kind == "auto" else kind
    origin = origin or name
    gzip = name.lower().endswith((".gz", ".tgz"))
    with open(path, "rb") as raw:
        magic = raw.read(HEAD)
        _not_an_answer(magic, origin, "gzip" if gzip else kind)
        if gzip and not magic.startswith(b"\x1f\x8b"):
            raise Refused("wrong_kind", f"{origin}: no gzip file; it begins with {magic[:40]!r}")
        raw.seek(0)
        plain: Any = igzip.IGzipFile(fileobj=raw) if gzip else raw
        try:
            head = plain.read(HEAD)
            _not_an_answer(head, origin, kind)
            if not _SIGNS[kind](head.removeprefix(b"\xef\xbb\xbf")):
                raise Refused("wrong_kind", f"{origin}: {kind} was expected; it begins with {head[:60]!r}")
            if kind == "json":
                _json(plain, head, origin)
            elif thorough and kind == "tar":
                _tar(path, gzip, origin)
            while thorough and gzip and plain.read(BLOCK):
                pass
        except DAMAGE as error:
            size = path.stat().st_size
            raise Refused("truncated", f"{origin}: damaged gzip, {size} bytes of it ({error})") from error
    if kind == "zip":
        _zip(path, origin, thorough)


def _not_an_answer(head: bytes, origin: str, kind: str) -> None:
    """Raise Refused for a page or an error in the place of a file."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        raise Refused("empty", f"{origin}: nothing but white space")
    if text.startswith(b"<") and PAGE.search(text[:2048]):
        title = re.search(rb"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
        said = f" ({' '.join(title[1].decode('utf-8', 'replace').split())[:80]!r})" if title else ""
        raise Refused("html", f"{origin}: an HTML page{said} instead of {kind}")
    if text.startswith(b"{") and kind not in ("json", "any"):
        raise Refused("error_reply", f"{origin}: JSON instead of {kind}: {text[:160].decode('utf-8', 'replace')}")


def _json(plain: Any, head: bytes, origin: str) -> None:
    data = head + plain.read(MAX_JSON)
    if len(data) >= MAX_JSON:
        return
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise Refused("truncated", f"{origin}: JSON that cannot be read ({error})") from error
    if isinstance(tree, dict) and (keys := ERRORS & tree.keys()):
        said = "; ".join(f"{key}: {tree[key]}" for key in sorted(keys))
        raise Refused("error_reply", f"{origin}: an error instead of data: {said[:160]}")


def _tar(path: Path, gzip: bool, origin: str) -> None:
    """Raise Refused for an archive that ends before its end: in a member, or without the zeros after the last."""
    last = b""
    try:
        with open(path, "rb") as file:
            plain: Any = igzip.IGzipFile(fileobj=file) if gzip else file
            with tarfile.open(fileobj=plain, mode="r|") if gzip else tarfile.open(fileobj=plain, mode="r:") as archive:
                for _ in archive:
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # of millions, none is kept
            if not gzip:
                file.seek(-tarfile.BLOCKSIZE, 2)
                last = file.read()
    except (tarfile.TarError, OSError) as error:
        raise Refused("truncated", f"{origin}: damaged archive ({error})") from error
    if any(last):
        raise Refused("truncated", f"{origin}: the archive's end is missing after {path.stat().st_size} bytes")


def _zip(path: Path, origin: str, thorough: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if thorough else None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, *DAMAGE) as error:
        raise Refused("truncated", f"{origin}: damaged archive ({error})") from error
    if bad:
        raise Refused("truncated", f"{origin}: damaged archive, at {bad}")
