"""Leakage on real data: how many held-out proteins have a relative in train, with a split by hash and by cluster."""

import random
import re
import shutil
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from data_prep import proteins
from data_prep.assign import Summary, assign
from data_prep.clusters import Sequences
from data_prep.spill import partition
from data_prep.split import Assignment, Facts, SplitConfig, write
from pretrain.places import Place
from tests.pack import PACK

FILES = (
    "uniprot/proteomes/escherichia_coli_k12_UP000000625.fasta.gz",
    "uniprot/proteomes/saccharomyces_cerevisiae_UP000002311.fasta.gz",
    "uniprot/proteomes/schizosaccharomyces_pombe_UP000002485.fasta.gz",
    "structures/sequences/swissprot2014_structure_matched.fasta.gz",
    "uniprot/uniprot_sample_20000.fasta.gz",
    "uniprot/image_protein_sequences.fasta",
)
SPECIES = {"escherichia": 83333, "saccharomyces": 559292, "schizosaccharomyces": 284812}
PARTITIONS = 8
SAMPLED = 1000  # held-out proteins that the check looks for relatives of
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not (PACK / FILES[0]).is_file(), reason="the pack is not here; FOURFOLD_PACK names its folder"),
    pytest.mark.skipif(not shutil.which("mmseqs"), reason="mmseqs (package mmseqs2) is not in PATH"),
]


@pytest.fixture(scope="module")
def facts() -> dict[str, Facts]:
    """The pack's sequences, by key; of two for one accession the first."""
    found: dict[str, Facts] = {}
    for name in FILES:
        taxon = next((taxon for species, taxon in SPECIES.items() if f"/{species}" in name), 0)
        for sample in proteins.read(PACK / name):
            found.setdefault(sample.key, Facts(sample.key, sample.sequence, taxon))
    assert len(found) > 44_000
    return found


def assigned(facts: dict[str, Facts], folder: Path, **settings) -> tuple[dict[str, str | None], Summary]:
    folder.mkdir()
    parts: list[list[Facts]] = [[] for _ in range(PARTITIONS)]
    for key in sorted(facts):
        parts[partition(key, PARTITIONS)].append(facts[key])
    names = [f"{number}.facts" for number in range(PARTITIONS)]
    for name, part in zip(names, parts, strict=True):
        write(folder / name, part)
    begun = time.monotonic()
    summary = assign(Place(str(folder)), names, SplitConfig.model_validate(settings), folder / "splits")
    print(f"\n{settings}: {time.monotonic() - begun:.0f} s\n{summary}")
    tables = [Assignment.read(Place(str(folder / "splits")), number) for number in range(PARTITIONS)]
    return {key: tables[partition(key, PARTITIONS)].of(key) for key in facts}, summary


def leaking(facts: dict[str, Facts], of: dict[str, str | None], folder: Path, sensitivity: float) -> float:
    """The share of held-out proteins that have a relative in train, by a search of its own."""
    folder.mkdir(exist_ok=True)
    held = random.Random(0).sample(sorted(key for key in of if of[key] in ("valid", "test")), SAMPLED)
    for name, keys in (("held", held), ("train", [key for key in of if of[key] == "train"])):
        (folder / f"{name}.fasta").write_text("".join(f">{key}\n{facts[key].sequence}\n" for key in keys))
    search = ["mmseqs", "easy-search", "held.fasta", "train.fasta", "hits.tsv", "tmp", "-s", str(sensitivity)]
    limits = ["--min-seq-id", "0.3", "-c", "0.8", "--cov-mode", "0", "-e", "0.001", "--format-output", "query,target"]
    subprocess.run([*search, *limits], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return len({line.split("\t")[0] for line in (folder / "hits.tsv").read_text().splitlines()}) / len(held)


def test_relatives_in_train(facts, tmp_path, capsys):
    by_hash, _ = assigned(facts, tmp_path / "hash", method="hash")
    by_cluster, summary = assigned(facts, tmp_path / "cluster", method="cluster")
    plain = leaking(facts, by_hash, tmp_path / "plain", 5.7)
    same, more = (leaking(facts, by_cluster, tmp_path / "check", sensitivity) for sensitivity in (5.7, 7.5))
    with capsys.disabled():
        print(f"\nheld-out proteins with a relative (30 % identity, 80 % coverage) in train: hash {plain:.1%}, ")
        print(f"cluster {same:.1%}, by a more sensitive search {more:.1%}; {summary}")
    assert plain > 0.5
    assert same <= 0.005 and more <= 0.02
    assert all(abs(each["reached"] - each["asked"]) < 0.02 for each in summary.shares.values())
    assert None not in by_cluster.values()


def test_no_cluster_crosses_a_split(facts, tmp_path):
    """The clusters made again, outside of the split, from the same sequences in the same order."""
    of, summary = assigned(facts, tmp_path / "cluster", method="cluster", search=False)
    keys = sorted(facts)
    letters = (re.sub("[^A-Z]", "X", facts[key].sequence or "") for key in keys)
    (tmp_path / "all.fasta").write_text("".join(f">{number}\n{each}\n" for number, each in enumerate(letters)))
    config = SplitConfig.model_validate({"method": "cluster"})
    sequences = Sequences(tmp_path / "all.fasta", np.arange(len(keys)), config, tmp_path / "again")
    members = defaultdict(set)
    for representatives, others in sequences.clusters():
        for a, b in zip(representatives.tolist(), others.tolist(), strict=True):
            members[a].add(keys[b])
    assert len(members) == summary.mmseqs["clusters"] > 20_000
    assert sum(map(len, members.values())) == len(keys)
    assert all(len({of[key] for key in cluster}) == 1 for cluster in members.values())


def test_a_species_held_out_has_no_relative_left(facts, tmp_path):
    """Of two yeasts one is held out; what is related to it in the other is in test too, or left out."""
    yeasts = {key: each for key, each in facts.items() if each.taxon in (559292, 284812)}
    how = {"method": "cluster", "valid": 0.0, "test": 0.0, "held_out_taxa": (284812,)}
    for homologs in ("test", "drop"):
        of, summary = assigned(yeasts, tmp_path / homologs, homologs=homologs, **how)
        assert {of[key] for key in yeasts if yeasts[key].taxon == 284812} == {"test"}
        assert summary.held_out["284812"] > 5000 and summary.held_out["homologs"] > 1000
        assert leaking(yeasts, of, tmp_path / f"{homologs}-check", 5.7) <= 0.005
