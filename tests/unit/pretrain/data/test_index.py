import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pretrain.codec import encode
from pretrain.data.dataset import Dataset, members
from pretrain.data.files import Files
from pretrain.data.index import Indices, Keys
from pretrain.places import Place
from pretrain.sample import CorruptSample, Facet, Modality


@pytest.fixture
def folder(tmp_path, write_dataset, make_protein) -> Path:
    held = [make_protein(f"P{i}", Modality.SEQUENCE, Modality.STRUCTURE) for i in range(6)]
    return write_dataset(tmp_path / "data", {"train": held, "test": []}, partitions=2)


def _shards(manifest: dict) -> list[dict]:
    return manifest["splits"]["train"]["sequence_structure"]["shards"]


def test_every_sample_is_read_as_it_was_written(tmp_path, write_dataset, make_protein):
    held = [
        make_protein("A1", *Modality, structures=2, images=3),
        make_protein("A2", Modality.FUNCTION),
        make_protein("A3", Modality.IMAGE, bands=1),
        make_protein("A4", Modality.SEQUENCE),
    ]
    data = Dataset.open(write_dataset(tmp_path, {"train": held}))
    found = {
        data.read("train", name, i).key: encode(data.read("train", name, i))
        for name, group in data.groups("train").items()
        for i in range(len(group))
    }
    assert found == {sample.key: encode(sample) for sample in held}


def test_groups_carry_the_index(folder):
    group = Dataset.open(folder).groups("train")["sequence_structure"]
    assert len(group) == 6 and group.modalities == (Modality.SEQUENCE, Modality.STRUCTURE)
    assert {group.key(i) for i in range(6)} == {f"P{i}" for i in range(6)}
    assert group.starts[0] == 0 and group.starts[-1] == 6 and group.longer(29) == 6 and group.longer(30) == 0
    assert [index.residues.tolist() for index in group.some()] == [[30] * n for n in np.diff(group.starts).tolist()]
    assert group.with_any(Facet.STRUCTURE | Facet.IMAGE).tolist() == np.diff(group.starts).tolist()
    assert group.with_any(Facet.IMAGE).sum() == 0
    for i in range(6):
        with tarfile.open(folder / group.shard(i)) as tar:
            assert f"{group.key(i)}.safetensors" in tar.getnames()


def test_a_copy_for_another_process_opens_its_own_files(folder):
    data = Dataset.open(folder)
    data.read("train", "sequence_structure", 0)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301  # what a spawned loader worker gets
    assert not copy.files._open
    assert encode(copy.read("train", "sequence_structure", 3)) == encode(data.read("train", "sequence_structure", 3))


def test_few_files_stay_open(tmp_path):
    files = Files(Place(str(tmp_path)), 2)
    for i in range(5):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 9)
    assert [files.read(str(i % 5), 0, 1)[0] for i in range(12)] == [i % 5 for i in range(12)]
    assert len(files._open) == 2
    files.retain(["1"])
    assert list(files._open) == ["1"] and files.whole("3") == bytes([3]) * 9


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Dataset.open(tmp_path / "nowhere")


def test_an_interrupted_preparation_is_named(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="preparation was interrupted"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tar: tar.unlink(), "in the manifest but not in the folder"),
        (lambda tar: tar.with_suffix(".index.safetensors").unlink(), "in the manifest but not in the folder"),
        (lambda tar: tar.write_bytes(tar.read_bytes()[:-512]), "bytes, .* in the manifest"),
        (lambda tar: tar.with_suffix(".index.safetensors").write_bytes(b"{}"), "SHA-256 differs"),
    ],
)
def test_files_must_be_those_of_the_manifest(folder, change, message):
    change(sorted(folder.glob("train/*/*.tar"))[0])
    with pytest.raises(ValueError, match=message):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format=9), "format 9"),
        (lambda manifest: manifest.pop("splits"), "damaged.*splits"),
        (lambda manifest: _shards(manifest)[0].pop("bytes"), "damaged.*bytes"),
        (lambda manifest: _shards(manifest)[0].update(samples=77), "77 in the manifest"),
        (lambda manifest: _shards(manifest)[0].update(path="../elsewhere/00000.tar"), "does not lie in"),
        (lambda manifest: manifest["splits"].update(train={"sequence_taste": {"shards": [{}]}}), "not a set of modal"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        Dataset.open(folder)


def test_a_damaged_manifest_or_index_is_refused(folder):
    index = sorted(folder.glob("train/*/*.index.safetensors"))[0]
    index.write_bytes(b"not an index")
    manifest = json.loads((folder / "manifest.json").read_text())
    _shards(manifest)[0]["index_sha256"] = hashlib.sha256(b"not an index").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="not a shard index"):
        Dataset.open(folder)
    (folder / "manifest.json").write_text('{"format": 1, "spl')
    with pytest.raises(ValueError, match="damaged"):
        Dataset.open(folder)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_an_empty_split_is_an_error_when_it_is_asked_for(folder, split):
    with pytest.raises(ValueError, match=f"split '{split}' holds no samples.*'train': 6"):
        Dataset.open(folder).groups(split)


def test_a_flipped_bit_is_found_and_named(folder):
    data = Dataset.open(folder)
    group = data.groups("train")["sequence_structure"]
    for i in range(len(group)):
        tar = folder / group.shard(i)
        good = tar.read_bytes()
        flipped = bytearray(good)
        flipped[group.row(i).offset + 700] ^= 4
        tar.write_bytes(flipped)
        with pytest.raises(CorruptSample, match=rf"{group.shard(i)}: {group.key(i)}: .*checksum is wrong"):
            data.read("train", "sequence_structure", i)
        tar.write_bytes(good)
        assert data.read("train", "sequence_structure", i).key == group.key(i)


def test_a_shard_cut_short_while_it_is_read(folder):
    data = Dataset.open(folder)
    group = data.groups("train")["sequence_structure"]
    (folder / group.shard(0)).write_bytes(b"")
    with pytest.raises(CorruptSample, match="0 of"):
        data.read("train", "sequence_structure", 0)


def test_a_shard_gone_while_it_is_read_is_no_damaged_sample(folder):
    data = Dataset.open(folder)
    for tar in folder.glob("train/*/*.tar"):
        tar.unlink()
    with pytest.raises(ValueError, match="cannot be read now") as caught:
        data.read("train", "sequence_structure", 0)
    assert not isinstance(caught.value, CorruptSample)


def test_members_stay_inside_their_span(folder):
    group = Dataset.open(folder).groups("train")["sequence_structure"]
    span = (folder / group.shard(0)).read_bytes()[: group.row(0).size]
    assert list(members(span)) == [f"{group.key(0)}.safetensors"]

    def with_size(text: bytes) -> bytes:
        return span[:124] + text.ljust(12, b"\0") + span[136:]

    rng = np.random.default_rng(0)
    for broken in (
        span[:300],
        span[:-600],
        with_size(b"77777777777"),
        with_size(b"-1"),
        with_size(b"9z"),
        with_size(b""),
        span[:156] + b"2" + span[157:],  # a link, not a file
        rng.bytes(2048),
    ):
        with pytest.raises(CorruptSample):
            members(broken)


def test_keys_are_a_sequence_of_text():
    for told in ((), ("A",), ("A1", "B", "C_2", "D-3")):
        keys = Keys(np.frombuffer("\n".join(told).encode(), np.uint8))
        assert (len(keys), tuple(keys), [keys[i] for i in range(len(told))]) == (len(told), told, list(told))
        assert keys[1:] == told[1:] and (not told or keys[-1] == told[-1])
    assert keys.index("C_2") == 2 and "B" in keys and "b" not in keys
    with pytest.raises(IndexError):
        keys[4]


def test_indices_stay_within_their_bytes(folder):
    data = Dataset.open(folder)
    group = data.groups("train")["sequence_structure"]
    size = max(len(data.files.whole(shard.replace(".tar", ".index.safetensors"))) for shard in group.shards)
    indices = Indices(data.files, size)
    for number in (0, 1, 0, 1):
        indices.of(group.shards[number], group.facets[number])
        assert list(indices._held) == [group.shards[number]] and indices._bytes <= size
    assert pickle.loads(pickle.dumps(indices))._limit == size  # noqa: S301


def test_an_index_that_is_not_what_was_counted_is_refused(folder, write_dataset, make_protein, tmp_path):
    data = Dataset.open(folder)
    other = write_dataset(tmp_path / "other", {"train": [make_protein("P0", Modality.SEQUENCE)]}, partitions=2)
    shard = data.groups("train")["sequence_structure"].shards[0].replace(".tar", ".index.safetensors")
    (folder / shard).write_bytes(next(other.glob("train/*/*.index.safetensors")).read_bytes())
    with pytest.raises(ValueError, match=r"index.safetensors: what its samples have is not what was counted"):
        data.read("train", "sequence_structure", 0)


def test_a_manifest_without_facets_counts_the_same(folder):
    with_facets = Dataset.open(folder).groups("train")["sequence_structure"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in _shards(manifest):
        del shard["facets"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    without = Dataset.open(folder).groups("train")["sequence_structure"]
    assert np.array_equal(with_facets.facets, without.facets) and without.lengths is not None
