"""Secondary accessions lead to their protein, and only where there is no doubt."""

from data_prep import aliases
from data_prep.records import AnnotationRecord, EntryRecord
from pretrain.places import Place
from pretrain.sample import About


def table(tmp_path, *entries: tuple[str, ...]) -> aliases.Aliases:
    place = Place(str(tmp_path))
    for number, (key, *secondary) in enumerate(entries):
        place.write(f"{number}.txt", aliases.line(EntryRecord(key, "x", About(), tuple(secondary))).encode())
    found = aliases.collect(place, [f"{number}.txt" for number in range(len(entries))])
    place.write("table.json", aliases.store(found))
    return aliases.read(place, "table.json")


def test_a_secondary_accession_leads_to_its_entry_and_takes_its_isoforms_along(tmp_path):
    known = table(tmp_path, ("P1", "Q1", "Q2"), ("P2", "A0A000"), ("P3",))
    assert [known.of(key) for key in ("Q1", "Q2", "A0A000", "P1", "Q9", "Q1-3")] == [
        "P1",
        "P1",
        "P2",
        "P1",
        "Q9",
        "P1-3",
    ]
    record = AnnotationRecord("Q2", "goa", (("GO:1", "IDA"),))
    assert known.renamed(record).key == "P1"
    assert known.renamed(AnnotationRecord("P3", "goa", ())).key == "P3"


def test_an_accession_of_two_entries_or_of_an_entry_itself_stays(tmp_path):
    known = table(tmp_path, ("P1", "Q1"), ("P2", "Q1"), ("P3", "P2"))
    assert known.of("Q1") == "Q1"  # split into P1 and P2
    assert known.of("P2") == "P2"  # an entry here, in an older file
    assert known.ambiguous == 1


def test_without_entries_nothing_changes(tmp_path):
    known = table(tmp_path)
    assert known.of("P1-2") == "P1-2"
