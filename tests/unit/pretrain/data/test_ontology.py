"""GO terms as rows of a table: the closure against the ontology's own and a slow loop, ids, damage, and their way to a
batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.ontology import Ontology, OntologyTerm
from pretrain.batch import lengths_of
from pretrain.data.collate import collate
from pretrain.data.dataset import Dataset
from pretrain.data.ontology import FILE, Vocabulary
from pretrain.data.plan import Plan, PlanConfig
from pretrain.places import Place
from pretrain.sample import Function, Modality, Sample, Term, Text
from tests.unit.datasets import write

_, STRUCTURE, FUNCTION, _ = Modality


def random_ontology(count: int, seed: int = 0) -> Ontology:
    """Every term above an earlier one, by `is_a` or `part_of`, in an order of ids that says nothing of it."""
    random = np.random.default_rng(seed)
    ids = [f"GO:{number:07d}" for number in random.choice(9_999_999, count, replace=False)]
    terms = {}
    for i, id in enumerate(ids):
        above = [ids[j] for j in random.choice(i, min(i, int(random.integers(4))), replace=False)] if i else []
        terms[id] = OntologyTerm(id, "p", is_a=tuple(above[:2]), part_of=(*above[2:], "GO:9999999"))
    return Ontology("now", terms)


def known(vocabulary: Vocabulary, row: int) -> set[str]:
    members = vocabulary.members[vocabulary.starts[row] : vocabulary.starts[row + 1]]
    return {f"GO:{vocabulary.numbers[member]:07d}" for member in members}


def test_a_terms_members_are_itself_and_its_ancestors(tmp_path: Path) -> None:
    ontology = random_ontology(200)
    (tmp_path / FILE).write_bytes(ontology.to_bytes())
    found = Vocabulary.read(Place(str(tmp_path)))
    assert [f"GO:{number:07d}" for number in found.numbers] == sorted(ontology.terms)
    assert max(np.diff(found.starts)) > 10
    for row, id in enumerate(sorted(ontology.terms)):
        assert known(found, row) == {id, *ontology.ancestors(id)}
        members = found.members[found.starts[row] : found.starts[row + 1]]
        assert (np.diff(members) > 0).all()


def test_texts_do_not_change_a_vocabularys_name_and_relations_do() -> None:
    parents = {"GO:0000001": (), "GO:0000002": ("GO:0000001",), "GO:0000003": ()}
    one = Vocabulary.of(parents)
    assert Vocabulary.of(dict(reversed(parents.items()))).sha256 == one.sha256
    assert Vocabulary.of({**parents, "GO:0000003": ("GO:0000001",)}).sha256 != one.sha256
    assert Vocabulary.of({**parents, "GO:0000004": ()}).sha256 != one.sha256


def test_ids_become_rows_and_what_is_unknown_is_told_apart() -> None:
    one = Vocabulary.of({"GO:0000007": (), "GO:0000002": (), "GO:0000100": ()})
    assert one.rows(["GO:0000100", "GO:0000002", "GO:0000100", "GO:0000009", "nonsense"]) == [0, 2]
    assert one.rows([]) == [] and one.rows(["GO:9999999"]) == []
    assert one.unknown(["GO:9999999", "GO:0000002", "GO:0000009"]) == ["GO:0000009", "GO:9999999"]


def test_tables_bring_a_vocabulary_back_and_damaged_ones_do_not() -> None:
    one = Vocabulary.of({"GO:0000001": (), "GO:0000002": ("GO:0000001",)})
    kept = {name: torch.from_numpy(table) for name, table in one.tables().items()}
    assert Vocabulary.from_tables(kept).sha256 == one.sha256
    for name, value in (("numbers", [2, 1]), ("starts", [0, 1, 2]), ("members", [0, 0, 5]), ("starts", [0, 3])):
        with pytest.raises(ValueError, match="damaged"):
            Vocabulary.from_tables({**kept, name: torch.tensor(value)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"ontology\.json is missing, and the model reads GO terms.*model\.terms=false"),
        ("{", "ontology.json: JSONDecodeError"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"format": 1, "terms": {}}', r"ontology\.json has no term, and the model reads GO terms.*model\.terms=false"),
        ('{"format": 1, "terms": {"GO:1": {"is_a": [], "part_of": []}}}', "'GO:1' is no id"),
    ],
)
def test_an_ontology_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        Vocabulary.read(Place(str(tmp_path)))


def test_a_term_above_itself_is_an_error() -> None:
    with pytest.raises(ValueError, match="above itself"):
        Vocabulary.of({"GO:0000001": ("GO:0000003",), "GO:0000002": ("GO:0000001",), "GO:0000003": ("GO:0000002",)})


PARENTS = {"GO:0000001": (), "GO:0005524": ("GO:0000001",), "GO:0000009": ("GO:0000001",)}


def annotated(key: str, *ids: str) -> Sample:
    return Sample(key, function=Function(tuple(Term(id, "IDA") for id in ids)))


def test_a_batch_has_direct_terms_where_the_model_reads_them(make_protein, make_spec) -> None:
    samples = [
        make_protein("A", *Modality), make_protein("B", STRUCTURE), annotated("C", "GO:0005524", "GO:0000009"),
        annotated("D", "GO:7777777"),
    ]  # fmt: skip
    spec = make_spec(terms=Vocabulary.of(PARENTS))
    terms = collate(samples, range(4), 1, 2, spec).terms
    assert terms is not None and terms.ids.dtype == torch.int64
    assert lengths_of(terms.offsets).tolist() == [1, 0, 2, 0] and terms.ids.tolist() == [2, 1, 2]
    none = collate([], [], 1, 2, spec).terms
    assert none is not None and (len(none.ids), none.offsets.tolist()) == (0, [0])
    assert collate(samples, range(4), 1, 2, make_spec()).terms is None
    without = collate(samples, range(4), 1, 2, replace(spec, modalities=(STRUCTURE,))).terms
    assert without is not None and not len(without.ids)


def test_proteins_with_terms_alone_train_the_models_that_read_terms(tmp_path: Path, make_spec) -> None:
    proteins = [annotated(f"T{i}", "GO:0005524") for i in range(5)]
    texts = [Sample(f"X{i}", function=Function(texts=(Text(f"folds {i}", "a"),))) for i in range(3)]
    dataset = Dataset.open(write(tmp_path, {"train": [*proteins, *texts]}))
    spec = make_spec(modalities=(FUNCTION,), terms=Vocabulary.of(PARENTS))
    assert Plan(dataset, "train", PlanConfig(samples=2), 0, spec).sizes == {"function": 8}
    assert Plan(dataset, "train", PlanConfig(samples=2), 0, replace(spec, terms=None)).sizes == {"function": 3}
