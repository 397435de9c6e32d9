"""Hostile BinaryCIF: what MessagePack may claim, and what encodings may make of a few bytes."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from tests.runs.hostile.files import Case, packed
from tests.runs.hostile.good import atoms, column, packed_bcif


def bcifs() -> Iterator[Case]:
    good = atoms()
    byte = {"kind": "ByteArray", "type": 3}

    def with_column(name: str, data: Any, *encodings: dict[str, Any], mask: Any = None) -> Callable[[], bytes]:
        made = {"name": name, "data": {"data": data, "encoding": list(encodings)}, "mask": mask}
        return lambda: packed_bcif([*(each for each in good if each["name"] != name), made], 90)

    four = np.arange(90, dtype="<i4").tobytes()
    text = {
        "kind": "StringArray",
        "dataEncoding": [byte],
        "offsetEncoding": [byte],
        "stringData": "ALA",
        "offsets": struct.pack("<2i", 0, 3),
    }
    nested: dict[str, Any] = {**text}
    for _ in range(200):
        nested = {**text, "dataEncoding": [nested]}
    columns = {
        "a run of 2^31": (
            struct.pack("<2i", 1, 2**31 - 1),
            {"kind": "RunLength", "srcSize": 2**31, "srcType": 3},
            byte,
        ),
        "runs of less than nothing": (struct.pack("<4i", 1, -5, 1, 95), {"kind": "RunLength"}, byte),
        "runs of runs": (struct.pack("<4i", 1000, 1000, 1000, 1000), *[{"kind": "RunLength"}] * 10, byte),
        "half a run": (struct.pack("<3i", 1, 90, 1), {"kind": "RunLength"}, byte),
        "an unknown type": (four, {"kind": "ByteArray", "type": 99}),
        "an unknown encoding": (four, {"kind": "Pickle"}, byte),
        "no encoding": (four,),
        "1,000 encodings": (four, *[{"kind": "Delta", "origin": 0}] * 1000, byte),
        "a factor of zero": (four, {"kind": "FixedPoint", "factor": 0}, byte),
        "a factor of no number": (four, {"kind": "FixedPoint", "factor": "x"}, byte),
        "one step": (four, {"kind": "IntervalQuantization", "min": 0, "max": 1, "numSteps": 1}, byte),
        "an origin of 2^64": (four, {"kind": "Delta", "origin": 2**64 - 1}, byte),
        "an integer without an end": (
            b"\x7f" * 90,
            {"kind": "IntegerPacking", "byteCount": 1, "isUnsigned": False},
            {"kind": "ByteArray", "type": 1},
        ),
        "bytes that are none": ([1, 2, 3], byte),
        "bytes of an odd length": (four[:-1], byte),
        "no bytes": (b"", byte),
        "texts of nothing": (four, {**text, "stringData": "", "offsets": b""}),
        "texts beyond": (four, {**text, "offsets": struct.pack("<2i", 0, 2**31 - 1)}),
        "texts before": (four, {**text, "offsets": struct.pack("<2i", -5, -1)}),
        "texts in texts": (four, nested),
        "texts of themselves": (four, text, text, text),
        "an index beyond": (struct.pack("<90i", *[7] * 90), text),
        "an index before": (struct.pack("<90i", *[-7] * 90), text),
    }
    for name, (data, *encodings) in columns.items():
        for which in ("label_seq_id", "label_comp_id"):
            yield Case(f"{name} in {which}", with_column(which, data, *encodings), "any")
    yield Case(
        "a mask of another length",
        with_column("label_seq_id", four, byte, mask={"data": four[:40], "encoding": [byte]}),
        "told",
    )
    for claim in (-1, 10**6, 2**31, 2**63, "90", None, 90.0, [90]):
        yield Case(f"{claim!r} rows", lambda claim=claim: packed_bcif(good, claim))  # type: ignore
    raw = packed_bcif(good, 90)
    for name, data in {
        "an array of 2^32": b"\x83\xa7version\xa30.3\xa7encoder\xa1x\xaadataBlocks\xdd\xff\xff\xff\xff",
        "a map of 2^32": b"\xdf\xff\xff\xff\xff\xa7encoder",
        "a text of 4 GB": b"\x83\xa7encoder\xdb\xff\xff\xff\xff",
        "bytes of 4 GB": b"\x83\xa7encoder\xc6\xff\xff\xff\xff",
        "an extension": b"\x83\xa7encoder\xc7\x08\x01" + bytes(8),
        "a date": b"\x83\xa7encoder\xd6\xff" + bytes(4),
        "100,000 levels": b"\x83\xa7encoder" + b"\x91" * 100_000 + b"\xc0",
        "100,000 levels of blocks": b"\x81\xaadataBlocks" + b"\x91" * 100_000 + b"\xc0",
        "maps in maps": b"\x81\xaadataBlocks\x91\x81\xaacategories" + b"\x91\x81\xa1a" * 50_000 + b"\xc0",
        "keys that are maps": b"\x82\xa7encoder\xa1x\x81\x01\x02\x03",
        "text that is none": raw.replace(b"1ABC", b"\xff\xfe\xfd\xfc"),
        "a path": raw.replace(b"1ABC", b"../x"),
        "no blocks": msgpack.packb({"version": "0.3", "encoder": "x", "dataBlocks": []}),
        "blocks that are none": msgpack.packb({"version": "0.3", "encoder": "x", "dataBlocks": "x"}),
        "10,000 columns": packed_bcif([column(f"x{i}", [1]) for i in range(10_000)], 1),
        "100 blocks": msgpack.packb({"encoder": "x", "dataBlocks": [{"header": "x", "categories": []}] * 100}),
        "no atoms": packed_bcif([], 0),
        "more after the end": raw + raw,
        "a column of nothing": packed_bcif([*good, {"name": "x"}], 90),
        "a column without a name": packed_bcif([{"data": good[0]["data"]}], 90),
        "numbers for names": packed_bcif([column("label_atom_id", [1.5] * 90), *good[2:]], 90),
        "names for numbers": packed_bcif([*good[:7], *(column(f"Cartn_{axis}", ["x"] * 90) for axis in "xyz")], 90),
        "no numbers at all": packed_bcif(
            [*good[:7], *(column(f"Cartn_{axis}", [float("nan")] * 90) for axis in "xyz")], 90
        ),
        "numbers beyond": packed_bcif([*good[:7], *(column(f"Cartn_{axis}", [3e38] * 90) for axis in "xyz")], 90),
    }.items():
        yield Case(name, lambda data=data: data)
    run = {
        "name": "Cartn_x",
        "data": {"data": struct.pack("<2i", 1, 4_000_000), "encoding": [{"kind": "RunLength"}, byte]},
        "mask": None,
    }
    names = [each["name"] for each in good]
    yield Case(
        "4,000,000 atoms in 1 kB", lambda: packed_bcif([{**run, "name": name} for name in names], 4_000_000), heavy=True
    )

    def letters(name: str, word: str) -> dict[str, Any]:
        told = {
            **text,
            "dataEncoding": [{"kind": "RunLength"}, byte],
            "stringData": word,
            "offsets": struct.pack("<2i", 0, len(word)),
        }
        return {"name": name, "data": {"data": struct.pack("<2i", 0, 4_000_000), "encoding": [told]}, "mask": None}

    chains = [letters("label_atom_id", "CA"), letters("label_comp_id", "G" * 64), letters("label_asym_id", "A" * 64)]
    numbers = [{**run, "name": name} for name in ("label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z")]
    yield Case("4,000,000 atoms of long names in 1 kB", lambda: packed_bcif([*chains, *numbers], 4_000_000), heavy=True)
    junk = {"name": "junk", "data": {"data": bytes(10 * 1000**2), "encoding": [byte]}, "mask": None}
    runs = [
        {**run, "name": name}
        for name in ("label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv")
    ]

    def three(word: str) -> Callable[[], bytes]:
        """1,650,000 atoms in ten megabytes, the most that are read."""
        count = struct.pack("<2i", 0, 1_650_000)
        texts = [
            letters(name, "CA" if "atom" in name else word)
            for name in ("label_atom_id", "label_comp_id", "label_asym_id", "auth_asym_id", "label_entity_id")
        ]
        for each in texts:
            each["data"]["data"] = count
        numbers = [{**each, "data": {**each["data"], "data": struct.pack("<2i", 1, 1_650_000)}} for each in runs]
        return lambda: packed(packed_bcif([*texts, *numbers, junk], 1_650_000))

    yield Case("1,650,000 atoms of one residue", three("GLY"), "told", heavy=True)
    yield Case("1,650,000 atoms of longer names", three("G" * 19), "told", heavy=True)
    yield Case(
        "1,000 columns of 4,000,000",
        lambda: packed_bcif([{**run, "name": f"x{i}"} for i in range(999)], 4_000_000),
        heavy=True,
    )


CASES = {"bcif": bcifs}
