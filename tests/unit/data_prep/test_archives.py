"""Tar archives of structures: streamed, cut into ranges, and refused by name where they are hostile or damaged."""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.records import FileSeen, Rejection, StructureRecord
from data_prep.sources import archives
from data_prep.sources.files import Slice, SourceError
from data_prep.sources.structures import Structures
from pretrain.places import Place
from tests.unit.tars import member, tar

NAMES = ("ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU")


def model(count: int = 10, confidence: float = 90.0) -> bytes:
    """A PDB file of one chain."""
    lines = [
        f"ATOM  {3 * i + j:>5}  {name:<3} {NAMES[i % 10]} A{i + 1:>4}    "
        f"{float(j):8.3f}{3.8 * i:8.3f}{0.0:8.3f}{1.0:6.2f}{confidence:6.2f}          {name[0]:>2}\n"
        for i in range(count)
        for j, name in enumerate(("N", "CA", "C"))
    ]
    return "".join([*lines, "TER\n", "END\n"]).encode()


def proteome(count: int) -> bytes:
    return tar(*(member(f"AF-P{i:05d}-F1-model_v4.pdb.gz", gzip.compress(model(8 + i))) for i in range(count)))


def items(folder: Path, data: bytes, name: str = "proteome.tar", **options) -> list:
    (folder / name).write_bytes(data)
    source = Structures(files=name, min_residues=5, states=False, **options)
    root = Place(str(folder))
    return [item for part in source.slices(root) for item in source.read(root, part, root)]


def told(found: list) -> list[tuple[str, str]]:
    """(reason, position) of each rejection."""
    return [(item.reason, item.position) for item in found if isinstance(item, Rejection)]


def keys(found: list) -> list[str]:
    return [item.key for item in found if isinstance(item, StructureRecord)]


@pytest.mark.parametrize("name", ["proteome.tar", "proteome.tar.gz", "proteome.tgz", "no_suffix", "wrong.cif"])
def test_members_are_read_whatever_the_archive_is_called(tmp_path, name):
    data = proteome(4)
    found = items(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name)
    *records, seen = found
    assert keys(records) == ["P00000", "P00001", "P00002", "P00003"]
    assert {record.source for record in records} == {name}
    assert records[2].position == "AF-P00002-F1-model_v4.pdb.gz"
    assert (records[2].id, records[2].fragment, len(records[2].letters)) == ("AF-P00002-F1", 1, 10)
    assert isinstance(seen, FileSeen)
    assert seen.bytes == (tmp_path / name).stat().st_size


def test_only_the_members_that_are_asked_for_are_read(tmp_path):
    pae = member("AF-P00001-F1-predicted_aligned_error_v4.json.gz", gzip.compress(b"[{}]"))
    data = tar(
        member("UP000005640/", type=tarfile.DIRTYPE),
        member("UP000005640/AF-P00001-F1-model_v4.pdb", model()),
        pae,
        member("UP000005640/AF-P00002-F1-model_v4.pdb.gz", gzip.compress(model())),
        member("README", b"not a structure"),
    )
    assert keys(items(tmp_path, data)) == ["P00001", "P00002"]
    assert keys(items(tmp_path, data, members="*.pdb.gz")) == ["P00002"]
    assert keys(items(tmp_path, data, members=("*P00001*.pdb",))) == ["P00001"]
    assert told(items(tmp_path, data, members="*.json.gz"))[0] == ("unknown_format", pae[0].name)


def test_members_that_are_not_read_are_counted_by_kind(tmp_path):
    def errors(number: int) -> tuple[tarfile.TarInfo, bytes]:
        return member(f"x/AF-P0000{number}-F1-predicted_aligned_error_v4.json.gz", gzip.compress(b"[{}]"))

    data = tar(
        member("x/", type=tarfile.DIRTYPE), errors(1), member("x/AF-P00001-F1.pdb", model()), errors(2),
        member("x/README", b"words" * 300_000), errors(3),
    )  # fmt: skip
    found = items(tmp_path, data, max_megabytes=1)  # README is larger, which is nobody's concern
    readme, json = (item for item in found if isinstance(item, Rejection))
    name = "x/AF-P00001-F1-predicted_aligned_error_v4.json.gz"
    assert json == Rejection("unread_member", "", "proteome.tar", "3 members of *.json.gz", name, 3)
    assert (readme.detail, readme.position, readme.count) == ("1 member of 'README'", "x/README", 1)
    assert keys(found) == ["P00001"]
    kept, _ = (item for item in items(tmp_path, data[: data.index(b"words")]) if isinstance(item, Rejection))
    assert (kept.reason, kept.count) == ("unread_member", 2)  # what was counted before damage is told


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, format):
    folder = "/".join(["a" * 40] * 3)
    name = f"{folder}/AF-P12345-F1-model_v4.pdb"
    found = items(tmp_path, tar(member(name, model()), member("AF-P00001-F1.pdb", model()), format=format))
    assert [item.position for item in found[:2]] == [name, "AF-P00001-F1.pdb"]
    assert told(found) == []


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_ranges_give_every_member_once(tmp_path, monkeypatch, chunk):
    """Ranges of a few blocks: they begin within members, between a long name and its member, and within the end."""
    long = "b" * 120
    data = tar(
        *(member(f"{long if i % 3 else 'a'}/AF-P{i:05d}-F1-model_v4.pdb", model(5 + i % 7)) for i in range(40)),
        format=tarfile.PAX_FORMAT,
    )
    (tmp_path / "x.tar").write_bytes(data)
    monkeypatch.setattr(archives, "BACK", 8 * archives.BLOCK)
    root, source = Place(str(tmp_path)), Structures(files="x.tar", min_residues=5, states=False)
    step = chunk * archives.BLOCK
    parts = [Slice(("x.tar",), at, min(at + step, len(data))) for at in range(0, len(data), step)]
    found = [item for part in parts for item in source.read(root, part, root)]
    assert keys(found) == [f"P{i:05d}" for i in range(40)]
    assert told(found) == []
    assert sum(isinstance(item, FileSeen) for item in found) == 1


def test_big_plain_archives_are_cut_and_small_files_share_a_task(tmp_path):
    (tmp_path / "big.tar").write_bytes(bytes(5 << 20))
    (tmp_path / "big.tar.gz").write_bytes(gzip.compress(bytes(5 << 20)))
    for i in range(3):
        (tmp_path / f"{i}.pdb").write_bytes(model())
    parts = Structures(files="*", chunk=2).slices(Place(str(tmp_path)))
    assert [(part.names, part.begin, part.end) for part in parts] == [
        (("0.pdb", "1.pdb", "2.pdb"), 0, None),
        (("big.tar",), 0, 2 << 20),
        (("big.tar",), 2 << 20, 4 << 20),
        (("big.tar",), 4 << 20, 5 << 20),
        (("big.tar.gz",), 0, None),
    ]


LINK, HARD, BLOCK_DEVICE, PIPE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE
HOSTILE = {
    "absolute": (member("/etc/AF-P99999-F1.pdb", model()), "archive_path"),
    "parent": (member("../AF-P99999-F1.pdb", model()), "archive_path"),
    "parent inside": (member("a/../../AF-P99999-F1.pdb", model()), "archive_path"),
    "parent of another system": (member("a\\..\\..\\AF-P99999-F1.pdb", model()), "archive_path"),
    "line end": (member("a\nAF-P99999-F1.pdb", model()), "archive_path"),
    "symbolic link": (member("AF-P99999-F1.pdb", type=LINK, linkname="/etc/passwd"), "archive_link"),
    "link to a member": (member("AF-P99999-F1.pdb", type=LINK, linkname="AF-P00001-F1.pdb"), "archive_link"),
    "hard link": (member("AF-P99999-F1.pdb", type=HARD, linkname="AF-P00001-F1.pdb"), "archive_link"),
    "device": (member("AF-P99999-F1.pdb", type=BLOCK_DEVICE, devmajor=8), "archive_device"),
    "character device": (member("AF-P99999-F1.pdb", type=tarfile.CHRTYPE, devmajor=1), "archive_device"),
    "pipe": (member("AF-P99999-F1.pdb", type=PIPE), "archive_device"),
    "sparse": (member("AF-P99999-F1.pdb", model(), type=tarfile.GNUTYPE_SPARSE), "archive_member_type"),
    "unknown type": (member("AF-P99999-F1.pdb", model(), type=b"Z"), "archive_member_type"),
    "overlong name": (member("a/" * 1000 + "AF-P99999-F1.pdb", model()), "archive_name"),
    "header of a megabyte": (member("a" * (1 << 20) + "/AF-P99999-F1.pdb", model()), "archive_name"),
    "empty": (member("AF-P99999-F1.pdb"), "empty_file"),
    "blank": (member("AF-P99999-F1.pdb", b" \n" * 99), "empty_file"),
    "too large": (member("AF-P99999-F1.pdb", bytes(2 << 20)), "too_large"),
    "bomb": (member("AF-P99999-F1.pdb.gz", gzip.compress(bytes(64 << 20))), "too_large"),
    "bomb in members": (member("AF-P99999-F1.pdb.gz", gzip.compress(bytes(1 << 20)) * 64), "too_large"),
    "gzip within gzip": (member("AF-P99999-F1.pdb.gz", gzip.compress(gzip.compress(model()))), "unknown_format"),
    "cut gzip": (member("AF-P99999-F1.pdb.gz", gzip.compress(model())[:-20]), "truncated_gzip"),
    "wrong checksum": (member("AF-P99999-F1.pdb.gz", gzip.compress(model())[:-8] + bytes(8)), "truncated_gzip"),
    "pickle": (member("AF-P99999-F1.pdb", b"\x80\x04\x95csystem\nos\n"), "no_atoms"),
    "pickle called mmCIF": (member("AF-P99999-F1.cif", b"\x80\x04\x95csystem\nos\n."), "unparsable_structure"),
    "web page": (member("AF-P99999-F1.cif.gz", gzip.compress(b"<!DOCTYPE html><html>")), "unparsable_structure"),
    "tar within": (member("AF-P99999-F1.cif", tar(member("x.pdb", model()))), "unknown_format"),
}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_and_the_next_one_read(tmp_path, name, format):
    hostile, reason = HOSTILE[name]
    before, after = member("AF-P00001-F1.pdb", model()), member("AF-P00002-F1.pdb", model())
    found = items(tmp_path, tar(before, hostile, after, format=format), max_megabytes=1)
    assert keys(found) == ["P00001", "P00002"]
    (refused,) = [item for item in found if isinstance(item, Rejection)]
    assert (refused.reason, refused.source) == (reason, "proteome.tar")
    assert refused.position.startswith(hostile[0].name[: 100 if "header" in name else 1024])
    assert list(tmp_path.iterdir()) == [tmp_path / "proteome.tar"]  # nothing was extracted


def test_a_lie_about_the_size_of_a_pax_record_is_no_way_out(tmp_path):
    data = bytearray(tar(member("a" * 150 + "AF-P00001-F1.pdb", model()), format=tarfile.PAX_FORMAT))
    at = data.index(b"path=") - 4
    data[at : at + 3] = b"999"
    found = items(tmp_path, bytes(data))
    assert keys(found) == []
    assert [reason for reason, _ in told(found)] == ["archive_name"]


def test_eight_headers_of_one_member_are_too_many(tmp_path):
    long = b"".join(tarfile.TarInfo.create_pax_global_header({"comment": f"{i}"}) for i in range(9))
    found = items(tmp_path, long + tar(member("AF-P00001-F1.pdb", model())))
    assert [reason for reason, _ in told(found)] == ["broken_archive"]


def cuts(data: bytes) -> Iterator[int]:
    """Within each header and content, and at the borders."""
    for at in range(0, len(data), archives.BLOCK):
        yield from (at, at + 1, at + 200)


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_that_ends_early_says_where(tmp_path, packed):
    data = tar(*(member(f"AF-P0000{i}-F1.pdb", model(8)) for i in range(3)))
    data = data[: data.rindex(b"END\n") + 512 - (data.rindex(b"END\n") % 512) + 1024]  # without the rest of its record
    whole = gzip.compress(data) if packed else data
    step = len(whole) // 40 if packed else 0
    places = range(0, len(whole) - 1, step) if packed else [at for at in cuts(data) if at < len(data) - 1024]
    for at in places:
        found = items(tmp_path, whole[:at], "x.tgz" if packed else "x.tar")
        ((reason, position),) = told(found)
        assert reason in ("truncated_archive", "truncated_gzip", "empty_file")
        assert keys(found) == [f"P0000{i}" for i in range(len(keys(found)))]
        if keys(found):
            last = f"AF-P0000{len(keys(found)) - 1}-F1.pdb"
            assert position.startswith((last, f"AF-P0000{len(keys(found))}-F1.pdb"))
            assert "byte" in position
    with pytest.raises(SourceError) as error:
        items(tmp_path, whole[: len(whole) // 2], "x.tgz" if packed else "x.tar", on_error="stop")
    assert str(error.value).count("fetch") == str(error.value).count("x.t") == 1


def test_damage_within_a_header_stops_the_archive_by_name(tmp_path):
    data = bytearray(tar(*(member(f"AF-P0000{i}-F1.pdb", model(8)) for i in range(3))))
    data[data.index(b"AF-P00001")] ^= 1
    found = items(tmp_path, bytes(data))
    assert keys(found) == ["P00000"]
    ((reason, position),) = told(found)
    assert (reason, position.partition(",")[0]) == ("broken_archive", "AF-P00000-F1.pdb")
    with pytest.raises(SourceError, match="after AF-P00000-F1"):
        items(tmp_path, bytes(data), on_error="stop")


def test_a_member_whose_size_is_beyond_the_archive_is_not_allocated(tmp_path):
    info = tarfile.TarInfo("AF-P00000-F1.pdb")
    info.size = 1 << 50
    found = items(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + model())
    ((reason, position),) = told(found)
    assert reason == "truncated_archive"
    assert position.startswith("AF-P00000-F1.pdb")


def test_archives_one_after_the_other_are_one(tmp_path):
    data = tar(member("AF-P00000-F1.pdb", model())) + tar(member("AF-P00001-F1.pdb", model()))
    assert keys(items(tmp_path, data)) == ["P00000", "P00001"]
