"""DeepFRI's chains whose structures the pack has, with their labels: EC numbers, and GO terms by branch.

    python benchmarks/chains.py PACK > held.toml    # how the pack is prepared with its test chains held out

EC numbers and the division into train, valid and test are DeepFRI's (Gligorijević et al. 2021). Its table of GO terms
is not in the pack, so a chain's terms are those of its UniProt accession in Swiss-Prot of 2014, with all ancestors; a
chain without an accession there has none and is left out of GO, and one without a term of a branch out of that branch.
That leaves about half of the training chains and nine in ten of the test chains: GO's figures are not DeepFRI's.
Labels that fewer than `LEAST` training chains have are left out too: the pack has a sixth of DeepFRI's chains.
"""

import csv
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.ontology import Ontology
from data_prep.ontology import read as read_ontology
from pretrain.evaluation.metrics import aupr_micro, fmax_torchdrug
from pretrain.places import Place

SPLITS = ("train", "valid", "test")
LISTS = {"EC": "nrPDB-EC_2020.04", "GO": "nrPDB-GO_2019.06.18"}
BRANCHES = {"MF": "molecular_function", "BP": "biological_process", "CC": "cellular_component"}
LEAST = {"EC": 1, "MF": 50, "BP": 50, "CC": 50}
MODEL = re.compile(r"AF-(\w+)-F\d+")  # some chains' proteins are named by their AlphaFold model


@dataclass(frozen=True)
class Task:
    """name: `EC`, `MF`, `BP` or `CC`. chains: split → keys (`1abc_A`). labels: split → bool [N, K], of `names`."""

    name: str
    chains: Mapping[str, list[str]]
    labels: Mapping[str, Tensor]
    names: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(keys) for split, keys in self.chains.items()} | {"labels": len(self.names)}

    @property
    def naive(self) -> dict[str, float]:
        """Fmax and AUPR of every label's share of the training chains, the same for every test chain."""
        truth = self.labels["test"]
        share = self.labels["train"].float().mean(0).expand(truth.shape)
        return {self.name: fmax_torchdrug(share, truth), f"{self.name} AUPR": aupr_micro(share, truth)}

    def first(self, most: int) -> "Task":
        """Of no more than so many chains of each split."""
        kept = {split: keys[:most] for split, keys in self.chains.items()}
        return Task(self.name, kept, {split: self.labels[split][:most] for split in kept}, self.names)


def tasks(pack: Path, data: Path) -> list[Task]:
    """All four. data: the prepared data set, for its ontology."""
    there, accession = _there(pack)
    found = [_task("EC", _split(pack, "EC", there), _enzymes(pack))]
    ontology, terms = read_ontology(Place(str(data))), _terms(pack)
    chains = _split(pack, "GO", there)
    for name, branch in BRANCHES.items():
        of = {
            key: _above(ontology, terms[one], branch)
            for keys in chains.values()
            for key in keys
            for one in accession.get(key, ())[:1]
            if one in terms
        }
        known = {split: [key for key in keys if of.get(key)] for split, keys in chains.items()}
        found.append(_task(name, known, of))
    return found


def held_out(pack: Path) -> list[str]:
    """Keys, as a prepared pack has them, of the proteins whose chains are in a test split."""
    there, accession = _there(pack)
    tests = {key for name in LISTS for key in _split(pack, name, there)["test"]}
    return sorted({one for key in tests for one in accession.get(key, (f"pdb_{key}",))})


def _there(pack: Path) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """(the chains that have a structure in the pack, their accessions), by key."""
    with (pack / "structures" / "manifest.tsv").open() as file:
        found = [row for row in csv.DictReader(file, delimiter="\t") if row["bulk_location"]]
    keys, accession = set[str](), dict[str, tuple[str, ...]]()
    for row in found:
        keys.add(key := f"{row['pdb_id'].lower()}_{row['chain']}")
        protein = MODEL.sub(r"\1", row["uniprot"])
        if protein and protein not in accession.get(key, ()):
            accession[key] = (*accession.get(key, ()), protein)
    return keys, accession


def _split(pack: Path, name: str, there: set[str]) -> dict[str, list[str]]:
    found = {}
    for split in SPLITS:
        lines = (pack / "benchmarks" / "deepfri" / f"{LISTS[name]}_{split}.txt").read_text().split()
        keys = (f"{line[:4].lower()}_{line[5:]}" for line in lines)
        found[split] = sorted(there & set(keys))
    return found


def _enzymes(pack: Path) -> dict[str, set[str]]:
    path = pack / "benchmarks" / "deepfri" / f"{LISTS['EC']}_annot.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    chains = (row for row in rows if len(row) == 2 and row[0][4:5] == "-")  # the others list the labels
    return {f"{chain[:4].lower()}_{chain[5:]}": set(numbers.split(",")) for chain, numbers in chains}


def _terms(pack: Path) -> dict[str, set[str]]:
    """Accession → GO terms as the source states them."""
    found: dict[str, set[str]] = {}
    for name in ("structures/sequences/swissprot2014_structure_matched_go.tsv.gz", "go/swissprot_2014_go.tsv.gz"):
        with gzip.open(pack / name, "rt") as file:
            for row in csv.reader(file, delimiter="\t"):
                if term := next((cell for cell in row if cell.startswith("GO:")), None):
                    found.setdefault(row[0], set()).add(term)
    return found


def _above(ontology: Ontology, terms: Iterable[str], branch: str) -> set[str]:
    """The terms of one branch and all that they imply in it, less the root."""
    live = {ontology.resolve(term) for term in terms} - {None}
    every = {above for term in live for above in (term, *ontology.ancestors(term or ""))}
    known = {term for term in every if term and ontology.terms[term].namespace == branch}
    return {term for term in known if ontology.parents(term)}


def _task(name: str, chains: dict[str, list[str]], of: Mapping[str, set[str]]) -> Task:
    counts = Counter(label for key in chains["train"] for label in of.get(key, ()))
    names = tuple(sorted(label for label, count in counts.items() if count >= LEAST[name]))
    place = {label: i for i, label in enumerate(names)}
    labels, kept = {}, {}
    for split, keys in chains.items():
        kept[split] = [key for key in keys if key in of]
        labels[split] = torch.zeros(len(kept[split]), len(names), dtype=torch.bool)
        for row, key in enumerate(kept[split]):
            for label in of[key] & place.keys():
                labels[split][row, place[label]] = True
    return Task(name, kept, labels, names)


if __name__ == "__main__":
    held = json.dumps(held_out(Path(sys.argv[1])))
    parent = json.dumps(str(Path(__file__).with_name("pack.toml").resolve()))
    print(f'extends = {parent}\nname = "pack-held"\n\n[split]\nmethod = "cluster"\nheld_out_keys = {held}')
