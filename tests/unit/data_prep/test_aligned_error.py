"""Predicted aligned errors: every layout that was ever published, the right file beside a model, and damage by name."""

import gzip
import json

import numpy as np
import pytest

from data_prep.sources.coordinates import aligned_error
from data_prep.sources.coordinates.aligned_error import find_pae, parse_pae, read_pae
from data_prep.sources.files import SourceError
from pretrain.places import Place
from tests.pack import PACK

REAL = "AF-P29373-F1-predicted_aligned_error_v4.json.gz"
LENGTH = 12
ERRORS = np.random.default_rng(3).integers(0, 32, (LENGTH, LENGTH))


def matrix(errors=ERRORS, field: str = "predicted_aligned_error") -> list:
    return [{field: errors.tolist(), "max_predicted_aligned_error": 31.75}]


def columns(errors=ERRORS) -> list:
    """As AlphaFold DB wrote version 1 and 2."""
    row, column = np.divmod(np.arange(errors.size), len(errors))
    return [
        {
            "residue1": (row + 1).tolist(),
            "residue2": (column + 1).tolist(),
            "distance": errors.ravel().tolist(),
            "max_predicted_aligned_error": 31.75,
        }
    ]


def parse(content: object, length: int = LENGTH) -> np.ndarray:
    return parse_pae(content if isinstance(content, bytes) else json.dumps(content).encode(), "x.json", length)


def refused(content: object, reason: str, length: int = LENGTH) -> str:
    with pytest.raises(SourceError) as caught:
        parse(content, length)
    assert caught.value.reason == reason
    assert "x.json" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(matrix()),
        json.dumps(matrix(), separators=(",", ":")),
        json.dumps(matrix(), indent=1),
        json.dumps(matrix()[0]),
        json.dumps(columns()),
        json.dumps(columns()[0], separators=(",", ":")),
        json.dumps({"plddt": [50.5, 60.0], "max_pae": 30.1, "pae": ERRORS.tolist(), "ptm": 0.5}),
        json.dumps({"pae": (ERRORS + 0.26).tolist(), "token_chain_ids": ["A", "A"]}),
        json.dumps({"max_predicted_aligned_error": 31.75, "predicted_aligned_error": ERRORS.tolist()}),
    ],
    ids=["v4", "v4 close", "v4 indented", "v6 object", "v1", "v1 close", "colabfold", "alphafold3", "last"],
)
def test_every_layout_gives_the_same_errors(content):
    errors = parse(content.encode())
    assert errors.dtype == np.uint8
    assert errors.tolist() == ERRORS.tolist()


def test_the_rows_are_the_residues_aligned_on():
    errors = np.zeros((LENGTH, LENGTH), dtype=int)
    errors[2, 7] = 9
    assert parse(matrix(errors))[2, 7] == 9
    assert parse(columns(errors))[2, 7] == 9


def test_pairs_in_any_order_find_their_place():
    (content,) = columns()
    order = np.random.default_rng(1).permutation(ERRORS.size)
    for name in ("residue1", "residue2", "distance"):
        content[name] = np.array(content[name])[order].tolist()
    assert parse([content]).tolist() == ERRORS.tolist()


def test_values_are_rounded_to_whole_angstroms_within_a_byte():
    values = np.full((2, 2), 0.0)
    values.ravel()[:] = [0.4, 31.75, 1e3, -0.1]
    assert parse(matrix(values), 2).tolist() == [[0, 32], [255, 0]]
    assert parse(matrix(np.array([[300, 7], [15, 12345]])), 2).tolist() == [[255, 7], [15, 255]]


def test_one_residue():
    assert parse(matrix(np.array([[0]])), 1).tolist() == [[0]]


@pytest.mark.parametrize("length", [LENGTH - 1, LENGTH + 1, 1, 1000])
def test_another_length_than_the_models_is_named(length):
    message = refused(matrix(), "pae_shape", length)
    assert f"12 rows of 12, the model has {length} residues" in message
    refused(columns(), "pae_shape", length)


@pytest.mark.parametrize(
    "rows",
    [
        "[[0,1],[2]]",
        "[[0],[1,2,3]]",
        "[0,1,2,3]",
        "[[0,1,2,3]]",
        "[[[0,1],[2,3]]]",
        "[[0,1],2,3]",
        "[]",
        "[[],[]]",
        "[[0,1],[2,3],[4,5]]",
        "[[0,1,[2,3]]]",
        "]0,1],[2,3][",
        "[[0,1]][[2,3]]",
    ],
)
def test_what_is_not_rows_of_the_models_length_is_refused(rows):
    refused(f'[{{"predicted_aligned_error":{rows}}}]'.encode(), "pae_shape" if rows[0] == "[" else "unparsable_pae", 2)


@pytest.mark.parametrize("numbers", ["0,1],[2,x", "0,1],[2,", "0,,[2,3", "0,1],[2,1-2", "0,0x1],[2,3", "0,1],[2,null"])
def test_what_is_no_number_is_refused(numbers):
    with pytest.raises(SourceError) as caught:
        parse(f'{{"pae":[[{numbers}]]}}'.encode(), 2)
    assert caught.value.reason in ("unparsable_pae", "pae_shape")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "nan", "inf"])
def test_numbers_without_end_are_refused(number):
    with pytest.raises(SourceError) as caught:
        parse(f'{{"pae":[[0.5,{number}],[2,3]]}}'.encode(), 2)
    assert caught.value.reason in ("pae_not_finite", "unparsable_pae")


def test_pairs_that_are_missing_or_double_are_refused():
    for field, value in (("residue1", 0), ("residue2", LENGTH + 1), ("residue2", 2), ("residue1", 99_999)):
        (content,) = columns()
        content[field][0] = value
        assert "not every pair of 12 residues" in refused([content], "pae_shape")
    (content,) = columns()
    del content["distance"][5]
    assert "143 numbers" in refused([content], "pae_shape")


@pytest.mark.parametrize("layout", [matrix, columns])
def test_cut_anywhere_it_is_refused(layout):
    content = json.dumps(layout()).encode()
    last = content.rindex(b"]", 0, content.rindex(b"max_")) + 1
    for end in range(last):
        with pytest.raises(SourceError) as caught:
            parse(content[:end])
        assert caught.value.reason in ("unparsable_pae", "pae_shape")


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"[]", b"{}", b'[{"pae":"x"}]', b'{"pae":' + b"[" * 200_000]
)
def test_what_is_no_such_file_is_refused(content):
    refused(content, "unparsable_pae")


def test_deep_nesting_is_refused():
    refused(b'{"pae":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "pae_shape")


def test_a_file_larger_than_any_of_its_length_is_not_read_whole(tmp_path, monkeypatch):
    content = json.dumps(matrix()).encode()
    (tmp_path / "padded.json.gz").write_bytes(gzip.compress(content + b" " * (40 << 20)))
    monkeypatch.setattr(aligned_error, "SLACK", 1 << 16)
    with pytest.raises(SourceError) as caught:
        read_pae(Place(str(tmp_path)), "padded.json.gz", LENGTH)
    assert caught.value.reason == "too_large"


def test_damaged_and_absent_files_are_named(tmp_path):
    packed = gzip.compress(json.dumps(matrix(np.zeros((200, 200), dtype=int) + ERRORS[0, 0])).encode())
    (tmp_path / "cut.json.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "empty.json").write_bytes(b"")
    for name, reason in (
        ("cut.json.gz", "truncated_gzip"),
        ("empty.json", "empty_file"),
        ("none.json", "unreadable_file"),
    ):
        with pytest.raises(SourceError) as caught:
            read_pae(Place(str(tmp_path)), name, 200)
        assert caught.value.reason == reason


def test_the_file_of_the_same_version_is_found(tmp_path):
    names = [
        "AF-P1-F1-predicted_aligned_error_v3.json.gz",
        "AF-P1-F1-predicted_aligned_error_v4.json",
        "AF-P1-F1-predicted_aligned_error_v10.json.gz",
        "AF-P1-F2-predicted_aligned_error_v4.json",
        "AF-P1-2-F1-predicted_aligned_error_v6.json",
        "AF-P2-F1-predicted_aligned_error.json",
        "AF-P2-F1-predicted_aligned_error_v2.json",
        "AF-P3-F1-confidence_v4.json",
    ]
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in names:
        (tmp_path / "a" / "b" / name).touch()
    place = Place(str(tmp_path))

    def found(model: str) -> str | None:
        return find_pae(place, f"a/b/{model}")

    assert found("AF-P1-F1-model_v4.cif.gz") == "a/b/" + names[1]
    assert found("AF-P1-F1-model_v3.pdb") == "a/b/" + names[0]
    assert found("AF-P1-F1-model_v6.cif") == "a/b/" + names[2]
    assert found("AF-P1-F2-model_v1.cif") == "a/b/" + names[3]
    assert found("AF-P1-2-F1-model_v6.cif") == "a/b/" + names[4]
    assert found("AF-P2-F1-model.cif") == "a/b/" + names[5]
    assert found("AF-P2-F1-model_v4.cif") == "a/b/" + names[6]
    assert found("AF-P3-F1-model_v4.cif") is None
    assert found("1abc.cif") is None
    assert find_pae(place / "a" / "b", "AF-P1-F1-model_v4.cif") == names[1]
    assert find_pae(place, "nowhere/AF-P1-F1-model_v4.cif") is None


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    for i in range(50):
        (tmp_path / f"AF-P{i}-F1-predicted_aligned_error_v4.json").touch()
    calls = []
    listing = Place.list
    monkeypatch.setattr(Place, "list", lambda place, name="": calls.append(name) or listing(place, name))
    place = Place(str(tmp_path))
    assert all(find_pae(place, f"AF-P{i}-F1-model_v4.cif") for i in range(50))
    assert len(calls) == 1


@pytest.mark.skipif(not (PACK / "afdb" / REAL).is_file(), reason=f"no {REAL} under {PACK}")
def test_the_real_file_is_found_and_read():
    place = Place(str(PACK))
    name = find_pae(place, "afdb/AF-P29373-F1-model_v4.cif.gz")
    assert name is not None and name == f"afdb/{REAL}"
    expected = json.loads(gzip.decompress((PACK / name).read_bytes()))[0]["predicted_aligned_error"]
    errors = read_pae(place, name, len(expected))
    assert errors.tolist() == expected
    assert len(errors) == 138 and not errors.diagonal().any() and errors.max() == 25
    with pytest.raises(SourceError, match="138 rows of 138, the model has 137 residues"):
        read_pae(place, name, 137)
