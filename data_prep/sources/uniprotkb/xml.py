"""UniProtKB XML as a stream: entries are cut out of it one by one, to be parsed alone.

What surrounds the entries is never given to an XML parser, and must be what UniProt writes: a declaration, comments,
the root element, a copyright. So there is no document type, no entity but the five of XML itself, no file or network
that a parser could be sent to, and no more than one entry in memory.
"""

import re
from collections.abc import Iterator

from data_prep.sources.files import SourceError, Stream

MARK = b"</entry>"
LIMIT = 16 << 20  # bytes of an entry; the longest of UniProt has some 5 MB
PROLOG = 64 << 10  # bytes before the first entry
KEY = re.compile(rb"<(?:\w+:)?accession>\s*([A-Z0-9]+)")
ENTRY = re.compile(rb"<entry(?=[\s>])")
ASIDE = re.compile(rb"<!--.*?-->|<\?.*?\?>", re.DOTALL)
DECLARATION = re.compile(rb"<!(?!--|\[CDATA\[)")
ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
ROOT = re.compile(rb"\s*(<((?:\w+:)?uniprot)(?:\s[^<>]*)?>)\s*")
CLOSING = re.compile(rb"</(?:\w+:)?uniprot\s*>\s*\Z")
READ = {"utf-8": "", "utf8": "", "us-ascii": "", "ascii": "", "iso-8859-1": "latin-1", "latin-1": "latin-1"}
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


def pieces(stream: Stream) -> Iterator[tuple[int, bytes]]:
    """(offset, a document of one entry) for each; what is between entries is checked and dropped.

    Raises SourceError for a document type, for an encoding that is not UTF-8, ASCII or Latin-1, for another kind of
    document, and for a file that ends too early.
    """
    name = stream.name
    encoding = _encoding(name, stream.opening(PROLOG))
    root, closing, found, rest = b"", b"", 0, b""
    for at, piece in stream.pieces(MARK, LIMIT):
        _refuse_declarations(name, at, piece)
        begin = ENTRY.search(piece)
        if not stream.marked:
            rest = piece
            break
        if not begin:
            said = f"{name}: an entry ends in what follows byte {at}, and none has begun"
            raise SourceError("unparsable_entry", said, f"byte {at}")
        before = _between(name, at, piece[: begin.start()])
        if not found:
            root, closing = _root(name, before)
        elif before.strip():
            raise SourceError("unparsable_entry", f"{name}: {before[:60]!r} stands between entries", f"byte {at}")
        found += 1
        entry = piece[begin.start() :]
        if encoding:
            entry = entry.decode(encoding).encode()
        yield at + begin.start(), root + entry + MARK + closing
    inside = ENTRY.search(rest)
    end = b"" if inside else _between(name, stream.given - len(rest), rest)
    if not found and not inside:
        _root(name, end[: end.find(b">", end.find(b"<")) + 1])
    if not CLOSING.search(end):
        raise SourceError(
            "truncated_entry",
            f"{name}: the file ends before its root element does, after {found} entries; fetch it again",
            f"byte {stream.given}",
        )


def _between(name: str, at: int, data: bytes) -> bytes:
    """What stands before, between or after entries, without comments and instructions."""
    if len(data) > PROLOG:
        said = f"{name}: {len(data)} bytes from byte {at} that belong to no entry; {PROLOG} are allowed"
        raise SourceError("unparsable_entry", said, f"byte {at}")
    return ASIDE.sub(b"", data)


def accession(piece: bytes) -> str:
    """The primary accession, or nothing: for messages about what could not be parsed."""
    found = KEY.search(piece, 0, PROLOG)
    return found[1].decode("ascii", "replace") if found else ""


def _refuse_declarations(name: str, at: int, data: bytes) -> None:
    if found := DECLARATION.search(data):
        raise SourceError(
            "xml_doctype",
            f"{name}: {data[found.start() : found.start() + 40]!r}; a document type or entity has no place in UniProt's"
            " XML, and is not read",
            f"byte {at + found.start()}",
        )


def _encoding(name: str, opening: bytes) -> str:
    """What to decode from, or nothing where the bytes are UTF-8 already."""
    declared = ENCODING.search(opening)
    encoding = declared[1].decode("ascii", "replace").lower() if declared else "utf-8"
    if b"\0" not in opening[:64] and not opening.startswith((b"\xff\xfe", b"\xfe\xff")) and encoding in READ:
        return READ[encoding]
    for codec in (encoding, *WIDE):
        try:
            _refuse_declarations(name, 0, opening.decode(codec, "ignore").encode())
        except (LookupError, UnicodeError):
            continue
    raise SourceError("xml_encoding", f"{name}: XML in UTF-8, ASCII or Latin-1 is read; this is {encoding}, or binary")


def _root(name: str, prolog: bytes) -> tuple[bytes, bytes]:
    """The root's start and end tag, of what stands before the first entry."""
    root = ROOT.fullmatch(prolog.removeprefix(b"\xef\xbb\xbf"))
    if not root:
        seen = prolog.strip()[:80]
        raise SourceError("unparsable_entry", f"{name}: UniProtKB's XML begins with <uniprot>, this with {seen!r}")
    return root[1], b"</" + root[2] + b">"
