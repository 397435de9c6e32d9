"""What the directions are measured by: labels of chains from a pack of five, triples a step, retrieval, features."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.ontology import Ontology, OntologyTerm
from pretrain.batch import Tokens
from pretrain.encoders.bundle import TRAINED
from pretrain.sample import Function, Modality, Text
from tests.models import batch_of, build, sample
from tests.unit.datasets import protein, write

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
MF, BP = "molecular_function", "biological_process"
GO = {
    "GO:0000001": OntologyTerm("root", MF),
    "GO:0000002": OntologyTerm("binding", MF, is_a=("GO:0000001",)),
    "GO:0000003": OntologyTerm(
        "ion binding", MF, is_a=("GO:0000002",), part_of=("GO:0000012",), alt_ids=("GO:0000009",)
    ),
    "GO:0000011": OntologyTerm("root", BP),
    "GO:0000012": OntologyTerm("transport", BP, is_a=("GO:0000011",)),
}
PARTS = {"train": "1AAA-A\n1BBB-A\n9ZZZ-A", "valid": "1CCC-A", "test": "1DDD-A\n1EEE-A"}
ENZYMES = "1AAA-A\t1.1.1.1,2.2.2.2\n1BBB-A\t1.1.1.1\n1CCC-A\t2.2.2.2\n1DDD-A\t3.3.3.3,2.2.2.2"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Chains 1aaa to 1eee, of which the last has no accession, and one that is listed and not there."""
    for folder in ("structures/sequences", "benchmarks/deepfri", "go"):
        (tmp_path / folder).mkdir(parents=True)
    rows = [("bulk_location", "pdb_id", "chain", "uniprot")]
    rows += [(f"a#{i}", f"1{c * 3}", "A", "" if c == "E" else f"P0000{i}") for i, c in enumerate("ABCDE", 1)]
    (tmp_path / "structures" / "manifest.tsv").write_text("\n".join(map("\t".join, rows)) + "\n")
    lists = tmp_path / "benchmarks" / "deepfri"
    for name in ("nrPDB-EC_2020.04", "nrPDB-GO_2019.06.18"):
        for split, keys in PARTS.items():
            (lists / f"{name}_{split}.txt").write_text(keys)
    head = "### EC numbers\n1.1.1.1\t2.2.2.2\t3.3.3.3\n### PDB-chain\tEC\n"
    (lists / "nrPDB-EC_2020.04_annot.tsv").write_text(f"{head}{ENZYMES}\n")
    first, second = "P00001\tGO:0000009\nP00002\tGO:0000002\n", "P00003\tGO:0000001\nP00004\tGO:0000003\n"
    (tmp_path / "structures/sequences/swissprot2014_structure_matched_go.tsv.gz").write_bytes(
        gzip.compress(first.encode())
    )
    (tmp_path / "go" / "swissprot_2014_go.tsv.gz").write_bytes(gzip.compress(second.encode()))
    (tmp_path / "ontology.json").write_bytes(Ontology("releases/today", GO).to_bytes())
    return tmp_path


def test_labels_of_chains(benchmark: ModuleType, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are the chains in order, columns the labels that training has; GO by ancestors, less roots."""
    monkeypatch.setattr(benchmark.chains, "LEAST", {"EC": 1, "MF": 2, "BP": 1, "CC": 1})
    enzymes, functions, processes, components = benchmark.chains.tasks(pack, pack)
    assert enzymes.names == ("1.1.1.1", "2.2.2.2")  # the third, no training chain has
    assert enzymes.chains == {"train": ["1aaa_A", "1bbb_A"], "valid": ["1ccc_A"], "test": ["1ddd_A"]}
    assert {split: rows.tolist() for split, rows in enzymes.labels.items()} == {
        "train": [[True, True], [True, False]],
        "valid": [[False, True]],
        "test": [[False, True]],
    }
    # GO:0000003 (by its alternative id) is one training chain's, and two are asked for; GO:0000002 is above it.
    assert functions.names == ("GO:0000002",)
    assert functions.chains == {"train": ["1aaa_A", "1bbb_A"], "valid": [], "test": ["1ddd_A"]}  # a root says nothing
    assert functions.labels["train"].tolist() == [[True], [True]] and functions.labels["test"].tolist() == [[True]]
    assert processes.names == ("GO:0000012",)
    assert processes.chains == {"train": ["1aaa_A"], "valid": [], "test": ["1ddd_A"]}
    assert components.chains == {"train": [], "valid": [], "test": []}
    assert functions.sizes == {"train": 2, "valid": 0, "test": 1, "labels": 1}


def test_arms_see_as_many_triples(benchmark: ModuleType, tmp_path: Path) -> None:
    """Half of each step; the rest by size, of what the arm reads. A paired arm has that half alone."""
    has = [(SEQUENCE, STRUCTURE, FUNCTION)] * 3 + [(SEQUENCE,)] * 4 + [(FUNCTION,)] * 5
    samples = [protein(f"P{i}", *one, structures=1, texts=1) for i, one in enumerate(has)]
    data = write(tmp_path / "data", {"train": samples})
    bench = benchmark.Bench(data, tmp_path, tmp_path, tmp_path, 4, 16, 40)

    def plan(**arm: object) -> tuple[int, str]:
        found = benchmark._plan(bench, benchmark.Arm("align_pro/tiny.toml", **arm))
        return found["data.plan.samples"], found["data.plan.weights"]

    assert plan() == (16, "{ function = 5, sequence = 4, sequence_structure_function = 9 }")
    two = ('model.modalities=["sequence","structure"]',)
    assert plan(changes=two) == (16, "{ function = 0, sequence = 4, sequence_structure_function = 4 }")
    assert plan(paired=True) == (8, "{ function = 0, sequence = 0, sequence_structure_function = 1 }")


@dataclass
class Found:
    alone: Mapping[Modality, np.ndarray]
    present: Mapping[Modality, np.ndarray]
    centres: Mapping[Modality, np.ndarray] = field(default_factory=dict)


def test_retrieval_is_less_the_centres_and_equal_texts_are_one(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both modalities' rows are one-hot beside a long mean of their own; with it, all are alike."""
    n, text = 30, Function((), (Text("said of two", "uniprot"),))
    samples = [protein(f"P{i:02d}", SEQUENCE, STRUCTURE, FUNCTION, structures=1, texts=1) for i in range(n)]
    samples = [replace(one, function=text) if i in (3, 4) else one for i, one in enumerate(samples)]
    data = write(tmp_path / "data", {"train": samples[:1], "test": samples}, partitions=1)
    means = {m: 50 * np.random.default_rng(i).random(n) for i, m in enumerate((SEQUENCE, STRUCTURE, FUNCTION))}
    present = {m: np.ones(n, bool) for m in means} | {FUNCTION: np.arange(n) > 0}
    found = Found({m: np.eye(n) + mean for m, mean in means.items()}, present, means)
    monkeypatch.setattr(benchmark, "_embedded", lambda *_: found)
    model = SimpleNamespace(modalities=(SEQUENCE, STRUCTURE, FUNCTION))
    bench = benchmark.Bench(data, tmp_path, tmp_path, tmp_path, 4, 16, 40)
    told = benchmark._retrieved(bench, model)
    assert told["sequence-structure"] == 1 and told["sequence-structure median rank"] == 1
    assert told["sequence-structure N"] == n and told["sequence-structure chance"] == pytest.approx(10 / n)
    assert told["sequence-function N"] == n - 1
    # Of 29 proteins two have two positives: 1 − C(27, 10) / C(29, 10) of a random order; the others 10 / 29.
    assert told["sequence-function chance"] == pytest.approx((27 * 10 / 29 + 2 * (1 - 19 * 18 / (29 * 28))) / 29)
    found.centres = {}
    assert benchmark._retrieved(bench, model)["sequence-structure"] < 1


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_encoder_runs_once_over_the_same_batch(benchmark: ModuleType, tmp_path: Path, trained: bool) -> None:
    _, encoders = build("amma")
    batch, runs, encode = batch_of([sample(0, *Modality), sample(1, SEQUENCE)], encoders), [], encoders.encode

    def counted(given: object, modality: Modality) -> Tokens:
        runs.append(modality)
        return encode(given, modality)  # type: ignore[arg-type]

    encoders.encode = counted  # type: ignore[method-assign]
    if trained:
        made = encoders.config.sequence.model_copy(update={"weights": TRAINED})  # type: ignore[union-attr]
        encoders.config = encoders.config.model_copy(update={"sequence": made})
    want = encode(batch, SEQUENCE)
    benchmark._remember(SimpleNamespace(encoders=encoders), tmp_path)
    one, again = (encoders.encode(batch, SEQUENCE) for _ in range(2))
    assert runs == [SEQUENCE] * (1 + trained)
    rounded = want.values if trained else want.values.bfloat16().float()
    assert torch.equal(one.values, rounded) and torch.equal(again.values, rounded)
    assert torch.equal(one.offsets, want.offsets) and torch.equal(one.positions, want.positions)
    other = batch_of([sample(2, *Modality)], encoders)
    assert len(encoders.encode(other, SEQUENCE).values) == len(encode(other, SEQUENCE).values)


def test_what_label_frequencies_alone_score(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two test chains one has the common label: at its score both are predicted it, precision and recall are 1/2."""
    labels = {"train": torch.tensor([[True, False]] * 3), "test": torch.tensor([[True, False], [False, True]])}
    monkeypatch.setattr(benchmark, "_tasks", lambda _: [benchmark.chains.Task("EC", {}, labels, ("a", "b"))])
    # At 0 both labels are predicted for both: precision 1/2, recall 1.
    # By score: two pairs at 1, one of them right; then all four, two right.
    fmax, aupr = pytest.approx(2 * 0.5 * 1 / 1.5), pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    assert benchmark._naive(json) == {"EC": fmax, "EC AUPR": aupr, "mean": fmax}
