"""What is spilled comes back: by partition, by key, in order; and what is damaged is told."""

import random

import numpy as np
import pytest

from data_prep import spill
from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    ImageRecord,
    Record,
    SequenceRecord,
    StructureRecord,
    TextRecord,
)
from pretrain.places import Place
from pretrain.sample import About, Image, Text

RECORDS = (
    SequenceRecord("P1", "a", "MKT", "byte 7"),
    EntryRecord(
        "P1", "a", About("Titin", "Homo sapiens", 9606, True, ec=("2.7.11.1",), genes=("ENSG1",)), ("Q1", "Q2")
    ),
    AnnotationRecord("P1", "b", (("GO:0000001", "IDA"),)),
    AnnotationRecord("P1", "b", (("GO:1", "IDA"), ("GO:2", "IDA")), "byte 7", ("GO:3",), (0, 90)),
    TextRecord("P1", "c", Text("Binds α-things.\nAnd more.", "uniprot:function")),
    ImageRecord("P1", "d", Image("i", b"\x89PNG\n\x00", ("protein",), antibody="HPA1", gene="ENSG1")),
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
    states="DV",
    pae=np.array([[0, 3], [4, 0]], dtype=np.uint8),
    fragment=2,
    position="member x",
)


def spilled(folder, records: list[Record], partitions: int, held: int = spill.HELD) -> list[str]:
    out = spill.Spill(folder, partitions, held)
    for record in records:
        out.add(record)
    out.flush()
    return out.runs


def sequences(count: int, seed: int) -> list[Record]:
    draw = random.Random(seed)
    return [
        SequenceRecord(f"P{draw.randrange(count // 3)}", f"{seed}", "MKT" * draw.randrange(30)) for _ in range(count)
    ]


def test_every_kind_of_record_comes_back(tmp_path):
    (run,) = spilled(tmp_path, [*RECORDS, STRUCTURE], 4)
    found = list(spill.merge(Place(str(tmp_path)), [run], spill.partition("P1", 4)))
    assert tuple(record for _, record in found[:-1]) == RECORDS
    structure = found[-1][1]
    assert isinstance(structure, StructureRecord)
    for name in ("coordinates", "mask", "number", "pae"):
        assert np.array_equal(getattr(structure, name), getattr(STRUCTURE, name))
    plain = ("key", "id", "letters", "atoms", "confidence", "resolution", "begin", "states", "fragment", "position")
    assert all(getattr(structure, name) == getattr(STRUCTURE, name) for name in plain)
    for other in set(range(4)) - {spill.partition("P1", 4)}:
        assert not list(spill.merge(Place(str(tmp_path)), [run], other))


@pytest.mark.parametrize("ahead", [64, 1 << 20])
def test_merging_runs_is_sorting_all_records(tmp_path, monkeypatch, ahead):
    monkeypatch.setattr(spill, "SMALLEST", ahead)
    monkeypatch.setattr(spill, "MERGED", ahead)
    records: list[Record] = []
    runs: list[str] = []
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        some = sequences(200, number)
        runs += [f"{number}/{run}" for run in spilled(tmp_path / f"{number}", some, 5, held=9000)]
        records += some
    assert len(runs) > 9
    found = [record for part in range(5) for _, record in spill.merge(Place(str(tmp_path)), runs, part)]
    expected = sorted(records, key=lambda record: (spill.partition(record.key, 5), record.key))  # stable: in order
    assert found == expected


def test_combined_runs_hold_what_they_held_in_the_same_order(tmp_path):
    place, runs = Place(str(tmp_path)), []
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        runs += [f"{number}/{run}" for run in spilled(tmp_path / f"{number}", sequences(150, number), 5, held=9000)]
    spill.combine(place, runs, 5, tmp_path / "one.run")
    for part in range(5):
        assert list(spill.merge(place, ["one.run"], part)) == list(spill.merge(place, runs, part))


def test_kinds_that_are_not_wanted_are_passed_over(tmp_path):
    runs = spilled(tmp_path, [*RECORDS, STRUCTURE], 1)
    found = list(spill.skim(Place(str(tmp_path)), runs, 0, (EntryRecord, StructureRecord)))
    assert [key for key, _ in found] == ["P1"] * len([*RECORDS, STRUCTURE])
    assert [type(record) for _, record in found if record is not None] == [EntryRecord, StructureRecord]


def test_a_damaged_run_is_told_whichever_byte_it_is(tmp_path):
    (run,) = spilled(tmp_path, [*RECORDS, STRUCTURE], 1)
    data = (tmp_path / run).read_bytes()
    for at in range(len(spill.MAGIC), len(data), 13):
        (tmp_path / "flipped.run").write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        with pytest.raises(ValueError):
            list(spill.merge(Place(str(tmp_path)), ["flipped.run"], 0))
    for end in range(0, len(data), 17):
        (tmp_path / "short.run").write_bytes(data[:end])
        with pytest.raises(spill.SpillDamaged):
            list(spill.merge(Place(str(tmp_path)), ["short.run"], 0))
