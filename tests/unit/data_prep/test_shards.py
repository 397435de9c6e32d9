"""Spills give back what they were given; shards are plain tars with an index that fits."""

import json
import tarfile
import zlib

import numpy as np

from data_prep import spill
from data_prep.records import AnnotationRecord, ImageRecord, SequenceRecord, StructureRecord, TextRecord
from data_prep.shards import totals, write, write_rejections
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.sample import Function, Image, Sample, Structure, Term, Text, decode, encode

RECORDS = (
    SequenceRecord("P1", "a", "MKT"),
    AnnotationRecord("P1", "b", (("GO:0000001", "IDA"),)),
    TextRecord("P1", "c", Text("Binds α-things.\nAnd more.", "uniprot:function")),
    ImageRecord("P1", "d", Image("i", b"\x89PNG\n\x00", ("protein",))),
)
STRUCTURE = StructureRecord(
    "P1",
    "e",
    "1abc_A",
    "MK",
    ("N", "CA"),
    np.arange(12, dtype=np.float32).reshape(2, 2, 3),
    np.array([[True, False], [True, True]]),
    np.array([3, 5], dtype=np.int32),
    resolution=1.5,
    begin=4,
)


def samples() -> list[Sample]:
    chain = Structure(
        id="1abc_A",
        coordinates=np.ones((3, 3, 3), dtype=np.float32),
        mask=np.ones((3, 3), dtype=bool),
        residue=np.arange(3, dtype=np.int32),
        letters="MKT",
        identity=1.0,
    )
    function = Function((Term("GO:0000001", "IDA"),), (Text("Binds.", "uniprot:function"),))
    return [
        Sample(f"P{n}", "MKT" * (n + 1), (chain,), function, (Image("i", b"png" * 400, ("protein",)),))
        for n in range(3)
    ]


def test_spilled_records_come_back(tmp_path):
    out = spill.Spill(tmp_path / "s", 4)
    for record in (*RECORDS, STRUCTURE):
        out.add(record)
    out.flush()
    (path,) = (tmp_path / "s").iterdir()
    assert path.name == str(spill.partition("P1", 4))
    *light, structure = spill.read(path)
    assert tuple(light) == RECORDS
    assert isinstance(structure, StructureRecord)
    for name in ("coordinates", "mask", "number"):
        assert np.array_equal(getattr(structure, name), getattr(STRUCTURE, name))
    plain = ("key", "source", "id", "letters", "atoms", "confidence", "resolution", "begin", "end", "shift")
    assert all(getattr(structure, name) == getattr(STRUCTURE, name) for name in plain)


def test_a_spill_begun_again_starts_afresh_and_one_over_its_buffer_goes_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "BUFFER", 1)
    for _ in range(2):
        out = spill.Spill(tmp_path / "s", 1)
        out.add(RECORDS[0])
        out.add(RECORDS[1])
    assert list(spill.read(tmp_path / "s" / "0")) == list(RECORDS[:2])


def test_a_shard_is_a_plain_tar_and_its_index_fits(tmp_path):
    shard = write(tmp_path, "train", 7, samples())
    assert shard.path == "train/sequence_structure_function_image/00007.tar"
    path = tmp_path / shard.path
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:2]] == ["P0.safetensors", "P0.0.png"]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.pax_headers.get("x")) for m in members} == {
            (0, 0, 0, 0o644, "", None)
        }
    index = ShardIndex.read(path.with_name(f"00007{SUFFIX}"))
    data = path.read_bytes()
    assert index.keys == ("P0", "P1", "P2")
    assert index.offset[0] == 0
    assert int(index.offset[-1] + index.size[-1]) == len(data) - 1024
    for offset, size, crc in zip(index.offset, index.size, index.crc, strict=True):
        assert zlib.crc32(data[offset : offset + size]) == crc
    assert index.residues.tolist() == [3, 6, 9]
    assert (index.structure.tolist(), index.text.tolist(), index.images.tolist()) == ([3] * 3, [6] * 3, [1] * 3)
    assert decode(dict(encode(samples()[1]))).sequence == "MKTMKT"


def test_counts_tell_payload_from_overhead(tmp_path):
    shard = write(tmp_path, "train", 0, samples())
    counts = totals([shard])
    assert counts["samples"] == 3
    assert counts["facets"] == {"sequence": 3, "structure": 3, "terms": 3, "text": 3, "image": 3}
    assert counts["sequence_bytes"] == shard.residues == 18
    assert counts["structure_bytes"] == 3 * 3 * 3 * 3 * 2
    assert counts["structure_bytes_per_residue"] == 18.0
    assert counts["image_bytes"] == 3600
    payload = 18 + 162 + 3 * 13 + 3 * 6 + 3600
    assert counts["overhead_bytes_per_sample"] == round((counts["bytes"] - payload) / 3, 1)


def test_rejections_are_sorted_and_counted(tmp_path):
    lines = [{"reason": "b", "key": "2"}, {"reason": "a", "key": "3"}, {"reason": "b", "key": "1"}]
    assert write_rejections(tmp_path / "r.jsonl", lines) == {"a": 1, "b": 2}
    read = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted(read, key=lambda line: line["key"]) == read
