"""The format of stored features: what is written is read back, and nothing else is taken for it."""

import io
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from pretrain.data import features
from pretrain.data.dataset import Dataset
from pretrain.data.features import Layout, about, checksum, path_of, verify
from pretrain.data.stored import Stored, open_folder
from pretrain.sample import CorruptSample, Modality

NAME, WIDTH, SHARD = "esm-0123456789abcdef", 3, "train/structure/00000.tar"
COUNTS = [[4, 2], [], [5], [0, 4, 4]]  # rows of each item of each sample


def entry(sha256: str = "ab") -> dict:
    return about(NAME, Modality.STRUCTURE, SHARD, sha256)


def written(unread: tuple[int, ...] = ()) -> tuple[bytes, list[np.ndarray]]:
    """(a file of COUNTS' items, the items' rows as bits of bfloat16)."""
    rng = np.random.default_rng(0)
    sizes = [size for sample in COUNTS for size in sample]
    places = [(i, j) for i, sample in enumerate(COUNTS) for j in range(len(sample))]
    rows = [rng.integers(0, 1 << 16, (size, WIDTH), np.uint16) for size in sizes]
    layout = Layout.of(len(COUNTS), len(sizes), sum(sizes), WIDTH, entry())
    samples = np.cumsum([0, *map(len, COUNTS)], dtype="<i8").tobytes()
    starts = np.cumsum([0, *sizes], dtype="<i8").tobytes()
    marks = np.isin(np.arange(len(sizes)), unread).astype("<u2")
    each = zip(places, marks.tolist(), rows, strict=True)
    crc = np.array([checksum(*place, mark, bits.tobytes()) for place, mark, bits in each], "<u4")
    tables = samples + starts + crc.tobytes() + marks.tobytes()
    data = layout.header + tables + b"".join(bits.tobytes() for bits in rows)
    assert len(data) == layout.size
    return data, rows


@pytest.fixture
def stored(tmp_path, write_dataset, make_protein) -> Stored:
    """A data set of four structures, with features written by hand."""
    proteins = [make_protein(f"S{i}", Modality.STRUCTURE) for i in range(4)]
    dataset = Dataset.open(write_dataset(tmp_path, {"train": proteins}, partitions=1))
    file = tmp_path / path_of(NAME, SHARD)
    file.parent.mkdir(parents=True)
    file.write_bytes(written()[0])
    summary = {
        "format": 1, "encoder": {"features": NAME}, "width": WIDTH, "dataset": {"manifest_sha256": dataset.sha256},
        "shards": {SHARD: {"bytes": file.stat().st_size}},
    }  # fmt: skip
    (tmp_path / "features" / NAME / "features.json").write_text(json.dumps(summary))
    return opened(dataset)


def opened(dataset: Dataset) -> Stored:
    return Stored(dataset, [open_folder(dataset, Modality.STRUCTURE, NAME, WIDTH, ["train"])], {})


def file_of(stored: Stored) -> Path:
    return stored._dataset.path / path_of(NAME, SHARD)


def rows(stored: Stored, number: int, item: int) -> np.ndarray:
    return stored.rows(Modality.STRUCTURE, SHARD, number, item)


def test_every_item_is_read_by_its_address_and_by_safetensors(stored):
    data, items = written()
    places = [(i, j) for i, sample in enumerate(COUNTS) for j in range(len(sample))]
    for (number, item), want in zip(places, items, strict=True):
        assert np.array_equal(rows(stored, number, item), want) and rows(stored, number, item).shape == want.shape
    tensors = load(data)
    assert tensors["values"].dtype == torch.bfloat16
    assert np.array_equal(tensors["values"].view(torch.uint16).numpy(), np.concatenate(items))
    assert tensors["samples"].tolist() == [0, 2, 2, 3, 6] and tensors["items"].tolist() == [0, 4, 6, 11, 11, 15, 19]
    with pytest.raises(CorruptSample, match="no item 0, the sample has"):
        rows(stored, 1, 0)
    with pytest.raises(CorruptSample, match="structure 0 has 4 rows, the sample's own data 30"):
        stored.sample("train", "structure", 0).rows(Modality.STRUCTURE, 0, 30)
    with pytest.raises(ValueError, match="has 4 samples, its shard more"):
        rows(stored, 4, 0)


def test_a_file_is_read_through_and_says_what_it_holds():
    data, _ = written(unread=(1, 5))
    content = verify(io.BytesIO(data), "x", entry())
    assert content.unread == ((0, 1), (3, 2)) and content.layout.items == 6 and content.layout.size == len(data)
    with pytest.raises(ValueError, match=r"x is of .*'ab'.*, expected was .*'cd'"):
        verify(io.BytesIO(data), "x", entry("cd"))


def test_no_bit_can_turn_unnoticed(stored):
    """Of every byte of a file one bit is turned: each item is then read as it was, or refused by name."""
    data, items = written()
    places = [(i, j) for i, sample in enumerate(COUNTS) for j in range(len(sample))]
    refused = 0
    for at in range(len(data)):
        turned = bytearray(data)
        turned[at] ^= 1 << random.Random(at).randrange(8)
        with pytest.raises(ValueError, match="x"):
            verify(io.BytesIO(turned), "x", entry())
        file_of(stored).write_bytes(turned)
        fresh = opened(stored._dataset)
        for (number, item), want in zip(places, items, strict=True):
            try:
                assert np.array_equal(rows(fresh, number, item), want), at
            except ValueError as error:
                assert path_of(NAME, SHARD) in str(error)
                refused += 1
    assert refused > 2 * len(data) // len(items)


@pytest.mark.parametrize("length", [0, 5, 8, 200, 700, -1])
def test_a_file_that_ends_too_soon_is_refused(stored, length):
    data = written()[0][:length]
    file_of(stored).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{len(data)} bytes, .* in features.json; remove it and encode again"):
        opened(stored._dataset)
    with pytest.raises(ValueError, match="x"):
        verify(io.BytesIO(data), "x", entry())
    file_of(stored).unlink()
    with pytest.raises(ValueError, match=r"is missing, features.json names it"):
        opened(stored._dataset)


def test_a_file_cut_while_it_is_read_costs_its_samples_only(stored):
    assert len(rows(stored, 0, 0)) == 4
    size = file_of(stored).stat().st_size
    with file_of(stored).open("r+b") as file:
        file.truncate(size - 30)
    assert len(rows(stored, 0, 0)) == 4
    with pytest.raises(CorruptSample, match=path_of(NAME, SHARD)):
        rows(stored, 3, 2)


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b"nonsense", b'{"samples": 3}', b'{"samples":{"shape":["a"]},"items":{},"values":{}}', b"\xff" * 40],
)
def test_what_is_no_header_is_refused(header):
    with pytest.raises(ValueError, match="x is no file of stored features"):
        Layout.parse(struct.pack("<Q", len(header)) + header, "x")
    with pytest.raises(ValueError, match=r"x is no file of stored features .*a header of"):
        Layout.parse(struct.pack("<Q", 1 << 40) + header, "x")


def test_a_header_with_other_numbers_is_refused():
    for counts in [(-1, 0, 0, 1), (0, -1, 0, 1), (1, 1, -5, 1)]:
        data = Layout.of(*counts, entry()).header
        with pytest.raises(ValueError, match="x"):
            verify(io.BytesIO(data), "x", entry())


@pytest.mark.parametrize("change", [{"shards": 3}, {"encoder": None}, {"width": "wide", "shards": {"a": {}}}])
def test_a_damaged_summary_is_an_error_and_not_a_reason_to_encode_live(stored, change):
    path = stored._dataset.path / "features" / NAME / "features.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"features.json is damaged .*remove it and encode again"):
        opened(stored._dataset)


def test_reading_features_needs_no_torch():
    program = "import sys, pretrain.data.features, pretrain.data.stored, data_prep.encode; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "transformers"} & set(loaded)
    assert features.FORMAT == 1
