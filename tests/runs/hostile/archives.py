"""Hostile tar archives: members that are no plain files, names that lead out, headers that lie."""

import gzip
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from tests.runs.hostile.files import MIB, Case, Must, packed, torch_file, trap, zipped
from tests.runs.hostile.good import chain, member, tar, tarred

GOOD = chain()
NAME = "AF-P99999-F1-model_v4.pdb"
BEFORE, AFTER = member("AF-P00001-F1-model_v4.pdb", GOOD), member("AF-P00002-F1-model_v4.pdb", GOOD)


def between(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    return tarred(BEFORE, *members, AFTER, format=format)


def header(name: str = NAME, size: bytes = b"", kind: bytes = b"0", raw: dict[int, bytes] | None = None) -> bytes:
    """A USTAR header with some of its bytes replaced, and the checksum that it then has."""
    block = bytearray(member(name, GOOD)[0].tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[124 : 124 + len(size)] = size
    for at, data in (raw or {}).items():
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def raw(*blocks: bytes) -> bytes:
    """A good member, blocks as they are, another good member, and the end."""
    first, last = tarred(BEFORE)[: 512 + len(filled(GOOD))], tarred(AFTER)
    return first + b"".join(blocks) + last


def pax(**records: str) -> bytes:
    """A PAX header and what it says of the next member."""
    said = b""
    for key, value in records.items():
        line = f" {key.replace('_', '.')}={value}\n".encode()
        size = len(line) + len(str(len(line)))
        said += str(size if len(str(size)) + len(line) == size else size + 1).encode() + line
    return lying(said)


def lying(said: bytes) -> bytes:
    return header("x", b"%011o\0" % len(said), b"x") + filled(said)


def cases() -> Iterator[Case]:
    yield from names()
    yield from types()
    yield from sizes()
    yield from headers()
    yield from contents()


def both(name: str, make: Callable[[], bytes], must: Must = "told", **more: Any) -> Iterator[Case]:
    """As a plain archive and as a packed one."""
    yield Case(name, make, must, **more)
    yield Case(f"{name}, packed", lambda: packed(make()), must, **more)


def names() -> Iterator[Case]:
    for name, path in {
        "upwards": f"../../{NAME}",
        "upwards from inside": f"a/../../{NAME}",
        "upwards at the end": f"a/{NAME}/..",
        "absolute": f"/etc/cron.d/{NAME}",
        "of a user": f"~root/{NAME}",
        "of Windows": f"C:\\x\\{NAME}",
        "upwards in Windows": f"..\\..\\{NAME}",
        "of the network": f"\\\\host\\x\\{NAME}",
        "with a line end": f"a\n{NAME}",
        "with an escape": f"\x1b[2J{NAME}",
        "of dots": "./././../.././" + NAME,
        "of 2,000 letters": "a" * 2000 + NAME,
        "of 2,000 folders": "a/" * 2000 + NAME,
        "of 200 kB": "a" * 200_000 + NAME,
        "of other letters": f"Ж/{NAME}",
        "of nothing": "",
        "of a blank": " ",
        "of a dash": f"-rf {NAME}",
        "of a device": "/dev/stdin.pdb",
    }.items():
        for format, kind in ((tarfile.GNU_FORMAT, "GNU"), (tarfile.PAX_FORMAT, "PAX")):
            must: Must = (
                "any" if name in ("of a user", "of Windows", "of other letters", "of a blank", "of a dash") else "told"
            )
            if name == "of nothing":
                must = "any"
            yield Case(
                f"a name {name}, {kind}",
                lambda path=path, format=format: between(member(path, GOOD), format=format),
                must,
            )
    yield Case("bytes of no letters in a name", lambda: raw(header(raw={0: b"\xff\xfe\xfd.pdb\0"}), filled(GOOD)))
    yield Case("a prefix upwards", lambda: raw(header(raw={345: b"../../etc"}), filled(GOOD)), "told")
    yield Case("a name twice", lambda: between(BEFORE, BEFORE))
    yield Case("one name, another content", lambda: between(member(BEFORE[0].name, chain(40))))


def types() -> Iterator[Case]:
    for name, kind, more in (
        ("a link", tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
        ("a link upwards", tarfile.SYMTYPE, {"linkname": "../../../etc/passwd"}),
        ("a link to itself", tarfile.SYMTYPE, {"linkname": NAME}),
        ("a hard link", tarfile.LNKTYPE, {"linkname": BEFORE[0].name}),
        ("a hard link outside", tarfile.LNKTYPE, {"linkname": "/etc/shadow"}),
        ("a character device", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}),
        ("a block device", tarfile.BLKTYPE, {"devmajor": 8, "devminor": 0}),
        ("a pipe", tarfile.FIFOTYPE, {}),
        ("a sparse file", tarfile.GNUTYPE_SPARSE, {}),
        ("an unknown type", b"Z", {}),
        ("a volume", b"V", {}),
        ("a file over several volumes", b"M", {}),
        ("a folder of files", b"D", {}),
    ):
        yield from both(name, lambda kind=kind, more=more: between(member(NAME, type=kind, **more)))  # type: ignore
        yield Case(f"{name} with content", lambda kind=kind: raw(header(kind=kind), filled(GOOD)), "told")
    yield Case("a folder called as a file", lambda: between(member(NAME, type=tarfile.DIRTYPE)))
    yield Case("a folder of 10 GB", lambda: raw(header(size=b"120000000000", kind=b"5")))
    yield Case(
        "a link, then a file through it",
        lambda: between(member("a", type=tarfile.SYMTYPE, linkname="/etc"), member(f"a/{NAME}", GOOD)),
    )
    yield Case(
        "a sparse file of PAX",
        lambda: raw(
            pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="10737418240", path=NAME),
            header(),
            filled(GOOD),
        ),
    )


def sizes() -> Iterator[Case]:
    for name, size in {
        "10 GB": b"120000000000",
        "8 GB": b"77777777777\0",
        "10 GB in binary": b"\x80" + (10 << 30).to_bytes(11, "big"),
        "2^63 in binary": b"\x80" + (1 << 63).to_bytes(11, "big"),
        "2^87 in binary": b"\x80" + b"\xff" * 11,
        "less than nothing in binary": b"\xff" * 12,
        "less than nothing": b"-0000000001\0",
        "letters": b"12345abcdef\0",
        "nines": b"99999999999\0",
        "blanks": b" " * 12,
        "a byte less": b"%011o\0" % (len(GOOD) - 1),
        "a block less": b"%011o\0" % (len(GOOD) - 512),
        "a block more": b"%011o\0" % (len(GOOD) + 512),
        "nothing": b"%011o\0" % 0,
    }.items():
        must: Must = "any" if name == "a byte less" else "told"
        yield from both(f"a size of {name}", lambda size=size: raw(header(size=size), filled(GOOD)), must)
    for size in ("10737418240", "-1", "1e9", "0x10", "", "9" * 5000, str(2**63), "１０"):
        yield Case(
            f"a PAX size of {size[:20]!r}", lambda size=size: raw(pax(size=size), header(), filled(GOOD)), "told"
        )
    yield Case(
        "a PAX size that is right", lambda: raw(pax(size=str(len(GOOD))), header(size=b"%011o\0" % 0), filled(GOOD))
    )


def headers() -> Iterator[Case]:
    long = header("././@LongLink", b"%011o\0" % 200, b"L") + filled(b"a" * 199 + b"\0")
    for name, make in {
        "a checksum of another": lambda: raw(header()[:148] + b"000000\0 " + header()[156:], filled(GOOD)),
        "a checksum of letters": lambda: raw(header()[:148] + b"abcdefgh" + header()[156:], filled(GOOD)),
        "a header of 255": lambda: raw(b"\xff" * 512, filled(GOOD)),
        "a header of blanks": lambda: raw(b" " * 512, filled(GOOD)),
        "nine long names": lambda: raw(*[long] * 9, header(), filled(GOOD)),
        "a long name of 1 GB": lambda: raw(header("././@LongLink", b"%011o\0" % (1 << 30), b"L"), bytes(512)),
        "a long name of 1 MB": lambda: raw(
            header("././@LongLink", b"%011o\0" % MIB, b"L"), b"a" * MIB, header(), filled(GOOD)
        ),
        "a long name and no member": lambda: tarred(BEFORE)[: 512 + len(filled(GOOD))] + long,
        "a long link of 1 GB": lambda: raw(header("././@LongLink", b"%011o\0" % (1 << 30), b"K"), bytes(512)),
        "a PAX header of 10 GB": lambda: raw(header("x", b"120000000000", b"x"), bytes(512)),
        "a PAX header of 1 MB": lambda: raw(lying(b"30 path=aaaaaaaaaaaaaaaaaaaaa\n" * 35_000), header(), filled(GOOD)),
        "a PAX header for all of 10 GB": lambda: raw(header("x", b"120000000000", b"g"), bytes(512)),
        "a PAX record that lies of its length": lambda: raw(lying(b"999999 path=x\n"), header(), filled(GOOD)),
        "a PAX record of no length": lambda: raw(lying(b"0 path=x\n"), header(), filled(GOOD)),
        "a PAX record of less than nothing": lambda: raw(lying(b"-9 path=x\n"), header(), filled(GOOD)),
        "a PAX record without an equals": lambda: raw(lying(b"9 pathxy\n"), header(), filled(GOOD)),
        "a PAX record without an end": lambda: raw(lying(b"30 path=aaaa"), header(), filled(GOOD)),
        "a PAX path upwards": lambda: raw(pax(path=f"../../{NAME}"), header(), filled(GOOD)),
        "a PAX path with a zero byte": lambda: raw(pax(path="a\0b.pdb"), header(), filled(GOOD)),
        "a PAX link": lambda: raw(pax(linkpath="/etc/passwd"), header(kind=b"2")),
        "64 kB of garbage between members": lambda: raw(b"garbage!" * 8192),
        "one garbage block": lambda: raw(b"garbage!" * 64),
        "no members": lambda: bytes(10240),
        "an archive of archives": lambda: between(member("x.pdb", tar()["proteome.tar"])),
        "nothing after a header": lambda: header(),
        "half a header": lambda: header()[:256],
    }.items():
        yield from both(name, make, "told")
    for name, make in {
        "an end in the middle": lambda: tarred(BEFORE) + tarred(AFTER),
        "one zero block in the middle": lambda: raw(bytes(512)),
        "a header of old tar": lambda: raw(header(raw={257: bytes(8)}), filled(GOOD)),
        "a header of star": lambda: raw(header(raw={508: b"tar\0"}), filled(GOOD)),
        "an end without blocks": lambda: tarred(BEFORE)[: 512 + len(filled(GOOD))],
        "two records of one path": lambda: raw(pax(path="a.pdb") + pax(path="b.pdb"), header(), filled(GOOD)),
    }.items():
        yield from both(name, make, "any")
    yield Case(
        "100,000 members of nothing",
        lambda: packed(header("x.pdb", b"%011o\0" % 0) * 20_000 + bytes(1024)),
        "told",
        heavy=True,
    )
    yield Case("a bomb of long names", lambda: packed(long * 100_000), "told", heavy=True)
    yield Case(
        "a bomb of folders",
        lambda: packed(header("x/", b"%011o\0" % 0, b"5") * 100_000 + bytes(1024)),
        "any",
        heavy=True,
    )


def contents() -> Iterator[Case]:
    def holding(data: bytes, name: str = NAME) -> bytes:
        return between(member(name, data))

    block = gzip.compress(bytes(MIB), mtime=0)
    for suffix in (".pdb", ".ent", ".cif", ".mmcif", ".bcif", ".pdb.gz", ".cif.gz", ".bcif.gz"):
        name = NAME.replace(".pdb", suffix)
        yield Case(f"a pickle called {suffix}", lambda name=name: holding(trap(), name), "told")
        yield Case(
            f"a page called {suffix}", lambda name=name: holding(b"<!DOCTYPE html><html>no</html>", name), "told"
        )
        yield Case(f"a bomb called {suffix}", lambda name=name: holding(block * 300, name), "told", heavy=True)
        yield Case(f"nothing called {suffix}", lambda name=name: holding(b"", name), "told")
    for name, make in {
        "a pickle of torch": lambda: holding(torch_file()),
        "a packed pickle": lambda: holding(packed(trap()), NAME + ".gz"),
        "a zip archive": lambda: holding(zipped(GOOD)),
        "gzip within gzip": lambda: holding(packed(packed(GOOD)), NAME + ".gz"),
        "cut gzip": lambda: holding(packed(GOOD)[:-9], NAME + ".gz"),
        "gzip of a wrong checksum": lambda: holding(packed(GOOD)[:-8] + bytes(8), NAME + ".gz"),
        "gzip and garbage": lambda: holding(packed(GOOD) + b"garbage", NAME + ".gz"),
        "an archive": lambda: holding(tarred(BEFORE)),
        "a packed archive": lambda: holding(packed(tarred(BEFORE)), NAME + ".gz"),
        "zero bytes": lambda: holding(bytes(9999)),
        "blanks": lambda: holding(b" \n" * 5000),
        "50 MB": lambda: holding(bytes(50 * MIB)),
    }.items():
        yield Case(f"a member of {name}", make, "told")
    yield Case("members of other kinds alone", lambda: tarred(member("README", b"x"), member("x.json", b"[]")), "told")
    yield Case("no archive by its name", lambda: GOOD, "any")
    yield Case(
        "a bomb of an archive",
        lambda: packed(tarred(BEFORE)[:-1024]) + gzip.compress(bytes(MIB), mtime=0) * 300,
        "told",
        heavy=True,
    )


CASES = {"tar": cases}
