"""The table of embeddings: what is saved comes back, and what is nearest by hand is nearest."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from pretrain.embeddings import Embeddings, Residues, named
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION = Modality.SEQUENCE, Modality.STRUCTURE, Modality.FUNCTION
MODEL = "0123456789abcdef"


def table(residues: bool = False) -> Embeddings:
    """Five proteins in a plane; the last has neither sequence nor structure."""
    angles = np.radians([0, 30, 60, 90, 0])
    points = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    rows = Residues(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([4, 5, 0]), np.array([0, 2, 2, 3, 3, 3]))
    return Embeddings(
        keys=("A", "B", "C", "D", "E"),
        fused=points * 3,
        alone={SEQUENCE: points, STRUCTURE: points[::-1].copy(), FUNCTION: points},
        present={
            SEQUENCE: np.array([True, True, True, False, False]),
            STRUCTURE: np.array([False, True, True, True, False]),
            FUNCTION: np.array([False, False, False, False, True]),
        },
        model=MODEL,
        truncated=("B",),
        residues=rows if residues else None,
    )


@pytest.mark.parametrize("residues", [False, True])
def test_what_is_saved_comes_back(tmp_path, residues):
    saved = table(residues)
    saved.save(tmp_path / "new" / "embeddings.safetensors")
    found = Embeddings.load(tmp_path / "new" / "embeddings.safetensors")
    assert (found.keys, found.model, found.truncated) == (saved.keys, MODEL, ("B",))
    assert np.array_equal(found.fused, saved.fused)
    for modality in saved.alone:
        assert np.array_equal(found.alone[modality], saved.alone[modality])
        assert np.array_equal(found.present[modality], saved.present[modality])
        assert found.present[modality].dtype == np.bool_
    assert (found.residues is not None) == residues
    if found.residues:
        assert found.residues.of(0).tolist() == [[0, 1], [2, 3]] and len(found.residues.of(1)) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["embeddings.safetensors"]


def test_equal_embeddings_are_equal_bytes(tmp_path):
    table().save(tmp_path / "a")
    table().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_like_is_compared_with_like():
    """B's sequence stands at 30° and its structure at 90°: a sequence is compared with the former alone."""
    hits = table().nearest({SEQUENCE: np.array([2.0, 0.0], np.float32)}, 5)
    assert [hit.key for hit in hits] == ["A", "E", "B", "D", "C"]
    expected = [1, 1, np.cos(np.radians(30)), 0.5, np.cos(np.radians(30))]
    scores = {hit.key: hit.score for hit in hits}
    assert [scores[key] for key in "AEBCD"] == pytest.approx(expected, abs=1e-6)


def test_several_shared_modalities_are_averaged():
    query = {SEQUENCE: np.array([1.0, 0.0], np.float32), STRUCTURE: np.array([0.0, 1.0], np.float32)}
    scores = {hit.key: hit.score for hit in table().nearest(query, 5)}
    assert scores["B"] == pytest.approx((np.cos(np.radians(30)) + 1) / 2, abs=1e-6)  # its structure stands at 90°
    assert scores["A"] == pytest.approx(1.0)  # has a sequence only, compared with the query's sequence only


def test_by_names_what_counts():
    query = {FUNCTION: np.array([0.0, 1.0], np.float32)}
    hits = table().nearest(query, 2, by=[STRUCTURE])
    assert [hit.key for hit in hits] == ["B", "C"]  # 90° and 60°; A and E have no structure
    assert "E" not in [hit.key for hit in table().nearest(query, 5, by=[SEQUENCE, STRUCTURE])]


def test_ties_come_in_the_order_of_keys():
    one = np.ones((3, 2), np.float32)
    same = Embeddings(("z", "a", "m"), one, {SEQUENCE: one}, {SEQUENCE: np.ones(3, np.bool_)}, MODEL)
    assert [hit.key for hit in same.nearest({SEQUENCE: np.ones(2, np.float32)}, 3)] == ["a", "m", "z"]


def test_what_is_no_table_is_refused(tmp_path):
    path = tmp_path / "embeddings.safetensors"
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Embeddings.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="holds no embeddings"):
        Embeddings.load(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no embeddings"):
        Embeddings.load(path)
    table().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="holds no embeddings"):
        Embeddings.load(path)
    save_file({"x": np.zeros(1)}, path, {"embeddings": json.dumps({"format": 2, "model": MODEL})})
    with pytest.raises(ValueError, match=r"format 2; .*update it"):
        Embeddings.load(path)


def test_long_lists_are_shortened():
    assert named(["a", "b"]) == "a, b"
    assert named([str(i) for i in range(25)]).endswith("8, 9 and 15 more")


def test_what_a_modality_has_in_common_is_subtracted():
    """With a long common part every query finds the same protein; less the centres each finds its own."""
    random = np.random.default_rng(0)
    own = random.normal(size=(6, 8)).astype(np.float32)
    common = {SEQUENCE: np.full(8, 50, np.float32), FUNCTION: np.linspace(-60, 60, 8).astype(np.float32)}
    alone = {SEQUENCE: own + common[SEQUENCE]}
    there = {SEQUENCE: np.ones(6, np.bool_)}
    keys = tuple("abcdef")
    raw = Embeddings(keys, own, alone, there, MODEL)
    centred = Embeddings(keys, own, alone, there, MODEL, centres=common)
    texts = [{FUNCTION: own[i] + common[FUNCTION]} for i in range(6)]
    assert len({raw.nearest(text, 1)[0].key for text in texts}) < 6
    assert [centred.nearest(text, 1)[0].key for text in texts] == list(keys)
    assert centred.nearest(texts[0], 1)[0].score == pytest.approx(1, abs=1e-4)


def test_centres_go_to_disk_and_back(tmp_path):
    saved = table()
    saved.centres[SEQUENCE] = np.array([0.5, -2], np.float32)
    saved.save(tmp_path / "e")
    assert Embeddings.load(tmp_path / "e").centres[SEQUENCE].tolist() == [0.5, -2]
