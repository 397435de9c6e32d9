"""Streams, byte ranges, tables and places: nothing twice, nothing left out, nothing larger than it should be."""

import gc
import gzip
import hashlib
import io
import random
import re
import tarfile
import threading
import tracemalloc
import weakref
import zlib
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal
from uuid import uuid4

import pytest

from data_prep.records import FileSeen, Items, Rejection, SequenceRecord
from data_prep.sources.files import BLOCK, Files, Slice, SourceError, Stream, find, load, resolve, rows, stopping, text
from data_prep.sources.gene_ontology import Annotations, Gaf
from data_prep.sources.uniprot import Fasta, Uniprot, UniprotTable
from pretrain.places import Place

TEXT = b"one\ntwo\n\nthree\n\n\nfour"


class Words(Files):
    """A source of one word a line, for these tests."""

    MARK: ClassVar[bytes] = b"\n"

    kind: Literal["words"] = "words"

    def parse(self, stream: Stream) -> Items:
        for at, line in stream.pieces(b"\n"):
            if line == b"bad":
                raise SourceError("bad_word", f"{stream.name}: a bad word", f"byte {at}")
            yield SequenceRecord("w", stream.name, line.decode(), f"byte {at}")


def place(folder: Path, data: bytes, name: str = "file") -> Place:
    (folder / name).write_bytes(data)
    return Place(str(folder))


def pieces(data: bytes, mark: bytes, begin: int = 0, end: int | None = None) -> list[tuple[int, bytes]]:
    return list(Stream("x", io.BytesIO(data), begin, end).pieces(mark))


def naive(data: bytes, mark: bytes) -> list[tuple[int, bytes]]:
    """(offset, piece) by Python's own split; an empty last one is none."""
    found, at = [], 0
    for piece in data.split(mark):
        found.append((at, piece))
        at += len(piece) + len(mark)
    return found if found[-1][1] else found[:-1]


@pytest.mark.parametrize("mark", [b"\n", b"\n\n", b"\n//", b"abc"])
def test_pieces_are_those_of_split(mark: bytes) -> None:
    draw = random.Random(0)
    for _ in range(200):
        letters = sorted({chr(c) for c in mark} | {"x"})
        data = "".join(draw.choices(letters, k=draw.randrange(60))).encode()
        assert pieces(data, mark) == naive(data, mark)


@pytest.mark.parametrize("mark", [b"\n", b"\n//"])
def test_ranges_that_touch_give_every_piece_once(mark: bytes) -> None:
    draw = random.Random(1)
    for _ in range(100):
        data = "".join(draw.choices(["\n", "//", "x", "yy"], k=draw.randrange(1, 60))).encode()
        cuts = sorted({0, len(data), *draw.choices(range(len(data) + 1), k=draw.randrange(6))})
        found = [each for a, b in pairwise(cuts) for each in pieces(data, mark, a, b)]
        assert found == naive(data, mark), (data, cuts)


def test_pieces_across_blocks() -> None:
    for shift in range(-3, 4):
        data = b"x" * (BLOCK + shift) + b"\n//\nlast"
        stream = Stream("x", io.BytesIO(data))
        found = [(at, len(piece), stream.marked) for at, piece in stream.pieces(b"\n//")]
        assert found == [(0, BLOCK + shift, True), (BLOCK + shift + 3, 5, False)]


def test_a_piece_without_end_is_refused_within_its_limit() -> None:
    stream = Stream("big", io.BytesIO(b"one\n" + b"x" * (8 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="big: no end after") as error:
            list(stream.pieces(b"\n", 2 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (error.value.reason, error.value.position) == ("overlong_entry", "byte 4") and peak < 12 << 20


@pytest.mark.parametrize("pack", [False, True])
def test_a_stream_is_hashed_as_it_is_stored(tmp_path: Path, pack: bool) -> None:
    stored = gzip.compress(TEXT * 1000) if pack else TEXT * 1000
    with Stream.open(place(tmp_path, stored), "file") as stream:
        assert stream.packed == pack and stream.opening(7) == TEXT[:7] and stream.opening(12) == TEXT[:12]
        assert stream.read(5) == TEXT[:5]
        stream.release = "2024_05"
        seen = stream.seen()
        assert stream.given == len(TEXT) * 1000 and stream.read(1) == b""
    assert seen == FileSeen("file", len(stored), hashlib.sha256(stored).hexdigest(), "2024_05")
    assert load(Place(str(tmp_path)), "file") == (TEXT * 1000, FileSeen("file", len(stored), seen.sha256))


@pytest.mark.parametrize("pack", [False, True])
def test_a_closed_stream_is_gone(tmp_path: Path, pack: bool) -> None:
    """Without a garbage collection, which does not find a gzip reader of isal's; else each file would cost 160 kB."""
    where = place(tmp_path, gzip.compress(TEXT) if pack else TEXT)
    with Stream.open(where, "file") as stream:
        assert stream.packed == pack and stream.read(3) == b"one"
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)
    gone = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert gone() is None
    finally:
        gc.enable()


def test_what_was_looked_at_ahead_is_read_again(tmp_path: Path) -> None:
    with Stream.open(place(tmp_path, gzip.compress(TEXT)), "file") as stream:
        assert stream.opening() == TEXT
        assert [piece for _, piece in stream.pieces(b"\n")] == TEXT.split(b"\n")
    with Stream.open(place(tmp_path, TEXT), "file") as stream:
        assert stream.opening(9) == TEXT[:9] and stream.opening(4) == TEXT[:4] and stream.whole() == TEXT
        with pytest.raises(SourceError, match="the file is empty"):
            stream.opening()


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    data = b"".join(gzip.compress(line + b"\n") for line in TEXT.split(b"\n"))
    with Stream.open(place(tmp_path, data), "file") as stream:
        assert stream.whole() == TEXT + b"\n"


def test_every_truncation_of_a_gzip_is_noticed(tmp_path: Path) -> None:
    data = gzip.compress(bytes(random.Random(0).choices(b"ACDEFGHIKLMNPQRSTVWY\n", k=3000)))
    for end in range(3, len(data)):
        with Stream.open(place(tmp_path, data[:end]), "file") as stream, pytest.raises(SourceError) as error:
            stream.whole()
        assert error.value.reason == "truncated_gzip"
        assert f"damaged after {end} bytes" in str(error.value) and error.value.position == f"byte {end} of the gzip"
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    with Stream.open(place(tmp_path, bytes(damaged)), "file") as stream, pytest.raises(SourceError, match="is damaged"):
        stream.whole()


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9, wbits=31)
    packed = b"".join(squeeze.compress(bytes(8 << 20)) for _ in range(40)) + squeeze.flush()
    assert len(packed) < 400_000
    with Stream.open(place(tmp_path, packed), "file") as stream, pytest.raises(SourceError) as error:
        while stream.read(BLOCK):
            pass
    assert error.value.reason == "decompression_bomb" and "no source file does that" in str(error.value)


def test_what_is_read_whole_has_a_limit(tmp_path: Path) -> None:
    root = place(tmp_path, b"x" * (3 << 20))
    with Stream.open(root, "file") as stream, pytest.raises(SourceError) as error:
        stream.whole(2 << 20)
    assert error.value.reason == "too_large" and "over 2 MiB" in str(error.value)
    assert len(Stream.open(root, "file").whole(3 << 20)) == 3 << 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b" \r\n\t", "empty_file"),
        (gzip.compress(b"", mtime=0), "empty_file"),
        (b"<!doctype HTML PUBLIC>", "html_reply"),
        (b"\xef\xbb\xbf\n<html lang='en'>", "html_reply"),
        (gzip.compress(b"<html>404</html>", mtime=0), "html_reply"),
    ],
)
def test_an_empty_file_or_a_web_page_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    with Stream.open(place(tmp_path, data), "file") as stream, pytest.raises(SourceError) as error:
        stream.opening()
    assert error.value.reason == reason and str(error.value).startswith("file: ")


@pytest.mark.parametrize("packed", [True, False])
def test_a_tar_archive_is_called_by_its_name(tmp_path: Path, packed: bool) -> None:
    """As past releases of UniProt come: uniprot_sprot-only2024_01.tar.gz."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz" if packed else "w") as archive:
        member = tarfile.TarInfo("uniprot_sprot.dat.gz")
        archive.addfile(member, io.BytesIO())
    (tmp_path / "x.tar.gz").write_bytes(held.getvalue())
    for source in (Uniprot, Fasta, UniprotTable, Gaf, Annotations):
        with pytest.raises(SourceError, match=r"a tar archive, which begins with 'uniprot_sprot\.dat\.gz'; unpack"):
            list(source(files="x.tar.gz").read(Place(str(tmp_path)), Slice(("x.tar.gz",)), Place(str(tmp_path))))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for name, said in (("gone", "no such file"), (".", "directory")):
        with pytest.raises(SourceError, match=f"(?i){re.escape(name)}: .*{said}") as error:
            Stream.open(Place(str(tmp_path)), name).read(1)
        assert error.value.reason == "unreadable_file"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("x: fetch it again", "x: fetch it again. To leave out"),
        ("x: 3 terms and 2 codes; which is whose?", "x: 3 terms and 2 codes; which is whose? To leave out"),
    ],
)
def test_what_stops_a_run_says_the_other_way_once(said: str, read: str) -> None:
    error = stopping(SourceError("damaged", said, "byte 7"))
    assert str(error).startswith(read) and str(stopping(error)) == str(error)
    assert str(error).endswith('set on_error = "reject" for its source') and error.position == "byte 7"


def test_an_error_survives_being_sent() -> None:
    import copy

    sent = copy.copy(SourceError("reason", "message", "byte 7"))
    assert (sent.reason, str(sent), sent.position) == ("reason", "message", "byte 7")


def test_big_plain_files_are_cut_and_hashed_once(tmp_path: Path) -> None:
    lines = b"".join(b"%07d\n" % i for i in range(300_000))
    place(tmp_path, lines, "a.txt")
    place(tmp_path, gzip.compress(lines, 1), "b.txt.gz")
    root, source = place(tmp_path, b"bad\nx", "c.txt"), Words(files="*", chunk=1, on_error="reject")
    slices = source.slices(root)
    size, step = len(lines), 1 << 20
    cut = [Slice(("a.txt",), at, min(at + step, size)) for at in range(0, size, step)]
    assert slices == [*cut, Slice(("b.txt.gz",)), Slice(("c.txt",))]
    items = [item for part in slices for item in source.read(root, part, root)]
    words = [item.sequence for item in items if isinstance(item, SequenceRecord)]
    assert words == 2 * [line.decode() for line in lines.splitlines()]
    seen = {item.path: item.sha256 for item in items if isinstance(item, FileSeen)}
    assert seen == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.txt", "b.txt.gz")}
    assert [item for item in items if isinstance(item, Rejection)] == [
        Rejection("bad_word", "c.txt", "c.txt", "c.txt: a bad word", "byte 0")
    ]
    with pytest.raises(SourceError, match="a bad word"):
        list(Words(files="c.txt").read(root, Slice(("c.txt",)), root))


def table(folder: Path, data: bytes, name: str = "t.tsv", optional: tuple[str, ...] = ()) -> list:
    with Stream.open(place(folder, data, name), name) as stream:
        return list(rows(stream, {"key": "Entry", "value": "Some value"}, optional))


def test_rows_of_a_table(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfSome value\tother\tEntry\r\n a b \tx\tP1\r\n\r\n"q\tx\tP2\tmore\r\n'
    first, second = data.index(b" a b"), data.index(b'"q')
    told = [(f"byte {first}", {"key": "P1", "value": "a b"}), (f"byte {second}", {"key": "P2", "value": '"q'})]
    assert table(tmp_path, data) == told
    assert table(tmp_path, gzip.compress(data), "t.tsv.gz") == told
    commas = b'Entry,Some value\nP1,"a, ""b""\nc"\n\nP2,x\n'
    assert table(tmp_path, commas, "t.csv") == [
        ("line 3", {"key": "P1", "value": 'a, "b"\nc'}),
        ("line 5", {"key": "P2", "value": "x"}),
    ]
    assert table(tmp_path, b"Entry\nP1\n", optional=("value",)) == [("byte 6", {"key": "P1", "value": ""})]


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", "empty_file", "empty"),
        (b"<html></html>", "html_reply", "web page"),
        (b"Entry\tother\nP1\tx\n", "unparsable_table", r"no column \['Some value'\] in its header"),
        (b"Entry\tSome value\nP1\n", "unparsable_line", "byte 17: 1 columns, the header has 2"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, data: bytes, reason: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as error:
        table(tmp_path, data)
    assert error.value.reason == reason


def test_text_is_utf8_or_latin1() -> None:
    assert (text(b"\xef\xbb\xbfa"), text("Bérénice".encode()), text(b"B\xe9")) == ("a", "Bérénice", "Bé")


def test_missing_files_and_folders_say_what_is_missing(tmp_path: Path) -> None:
    root = Place(str(tmp_path))
    with pytest.raises(ValueError, match="the folder does not exist"):
        find(root, ("nowhere/*.cif",))
    with pytest.raises(ValueError, match="nothing there matches"):
        find(root, ("*.cif",))


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_ROOT", str(tmp_path))
    monkeypatch.delenv("NO_ROOT", raising=False)
    assert resolve("$A_ROOT") == Place(str(tmp_path))
    assert resolve("package:data_prep/sample").exists("README.md")
    assert resolve("memory://bucket/folder") == Place("memory://bucket/folder")
    with pytest.raises(ValueError, match="the environment has no NO_ROOT"):
        resolve("$NO_ROOT")
    with pytest.raises(ValueError, match="no folder at"):
        resolve(str(tmp_path / "nowhere"))


@pytest.fixture(params=["local", "file", "memory"])
def some_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder of the file system, by its path and by its URL, and one of fsspec."""
    urls = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid4().hex}/folder"}
    return Place(urls[request.param])


def test_a_place_keeps_what_is_written(some_place: Place, tmp_path: Path) -> None:
    assert not some_place.exists("a/b.txt") and some_place.list("a") == []
    some_place.write("a/b.txt", b"0123456789")
    some_place.write("a/c.txt", b"c")
    some_place.write("a/deep/d.txt", b"d")
    assert some_place.exists("a/b.txt") and some_place.list("a") == ["b.txt", "c.txt", "deep"]
    assert some_place.read("a/b.txt") == b"0123456789" and some_place.read("a/b.txt", 2, 3) == b"234"
    assert some_place.read("a/b.txt", 8, 5) == b"89" and (some_place / "a").read("c.txt") == b"c"
    assert some_place.stat("a/b.txt").bytes == 10
    assert some_place.find("a/*.txt") == ["a/b.txt", "a/c.txt"]
    assert some_place.find("**/*.txt") == ["a/b.txt", "a/c.txt", "a/deep/d.txt"]
    with some_place.open("a/b.txt") as file:
        file.seek(5)
        assert file.read(2) == b"56"
    some_place.write("a/b.txt", b"new")
    assert some_place.read("a/b.txt") == b"new"
    made = tmp_path / "made"
    made.write_bytes(b"x" * 1000)
    assert some_place.put(made, "put/it") == hashlib.sha256(b"x" * 1000).hexdigest()
    assert not made.exists() and some_place.read("put/it") == b"x" * 1000
    some_place.remove("a/b.txt")
    some_place.remove("a/gone")
    assert some_place.list("a") == ["c.txt", "deep"]
    some_place.remove("a")
    assert some_place.find("**/*.txt") == [] and not some_place.exists("a/c.txt")
    with pytest.raises(FileNotFoundError):
        some_place.stat("a/c.txt")


def test_of_two_that_create_a_file_one_succeeds(some_place: Place) -> None:
    assert some_place.create("locks/one", b"first") and not some_place.create("locks/one", b"second")
    assert some_place.read("locks/one") == b"first" and some_place.list("locks") == ["one"]
    if some_place.local is None:
        return
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: some_place.create("race", b"%d" % i) and won.append(i)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and some_place.read("race") == b"%d" % won[0]


def test_streams_and_ranges_of_a_store(some_place: Place) -> None:
    lines = b"".join(b"%07d\n" % i for i in range(200_000))
    some_place.write("deep/a.txt", lines)
    source = Words(files="**/*.txt", chunk=1)
    found = [item for part in source.slices(some_place) for item in source.read(some_place, part, some_place)]
    assert [item.sequence for item in found if isinstance(item, SequenceRecord)] == lines.decode().split()
    assert [item for item in found if isinstance(item, FileSeen)] == [
        FileSeen("deep/a.txt", len(lines), hashlib.sha256(lines).hexdigest())
    ]
    assert Place(some_place.url) == some_place and str(some_place / "x") == f"{some_place.url}/x"
