"""Shards are plain tars with an index that fits."""

import hashlib
import tarfile
import zlib

import numpy as np

from data_prep.shards import Shelf, totals, write
from pretrain.codec import decode, encode
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.sample import Function, Image, Sample, Structure, Term, Text


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
    assert tuple(index.keys) == ("P0", "P1", "P2")
    assert shard.facets == {str(int(facets)): list(index.facets).count(facets) for facets in index.facets}
    assert index.offset[0] == 0
    assert int(index.offset[-1] + index.size[-1]) == len(data) - 1024
    for offset, size, crc in zip(index.offset, index.size, index.crc, strict=True):
        assert zlib.crc32(data[offset : offset + size]) == crc
    assert index.residues.tolist() == [3, 6, 9]
    assert (index.structure.tolist(), index.text.tolist(), index.images.tolist()) == ([3] * 3, [6] * 3, [1] * 3)
    assert decode(dict(encode(samples()[1]))).sequence == "MKTMKT"


def test_an_index_has_the_clusters_that_it_is_given(tmp_path):
    shelf = Shelf(tmp_path, 3)
    for number, sample in enumerate(samples()):
        shelf.add("train", sample, 70 - 5 * number)
    (shard,) = shelf.close()
    index = ShardIndex.read(tmp_path / shard.index_path)
    assert index.cluster is not None and index.cluster.tolist() == [70, 65, 60]
    assert (tmp_path / shard.path).read_bytes() == (tmp_path / write(tmp_path, "test", 3, samples()).path).read_bytes()


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


def test_a_shelf_writes_each_subset_as_a_shard_of_its_own(tmp_path):
    shelf = Shelf(tmp_path, 3)
    for sample in samples():
        shelf.add("train", sample)
        shelf.add("valid", Sample(sample.key, sample.sequence))
    found = shelf.close()
    assert [shard.path for shard in found] == [
        "train/sequence_structure_function_image/00003.tar",
        "valid/sequence/00003.tar",
    ]
    for shard in found:
        data = (tmp_path / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        index = (tmp_path / shard.index_path).read_bytes()
        assert (len(index), hashlib.sha256(index).hexdigest()) == (shard.index_bytes, shard.index_sha256)
        assert shard.samples == 3
