"""The sample inside the package: what its README promises of sizes, licences, subsets and rejections is so."""

import csv
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import gemmi
import pytest
from PIL import Image

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load
from pretrain.sample import CHANNELS, Modality, group_name

SAMPLE = Path(__file__).parents[3] / "data_prep" / "sample"
FILES = sorted(path for path in SAMPLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
README = (SAMPLE / "README.md").read_text()
PROTEINS = list(csv.DictReader((SAMPLE / "proteins.tsv").read_text().splitlines(), delimiter="\t"))
STRUCTURES = [path for path in FILES if path.parent.name == "structures" and not path.name.startswith("reject")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(manifest, rejections as dicts) of the sample, prepared without Ray."""
    out = tmp_path_factory.mktemp("sample") / "out"
    manifest = prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), out, quiet=True)
    return manifest, [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def test_small_enough_to_travel():
    assert sum(path.stat().st_size for path in FILES) <= 8e6
    assert 60 <= len(PROTEINS) <= 120
    assert len({protein["key"] for protein in PROTEINS}) == len(PROTEINS)


def test_readme_names_every_file():
    assert not [path.name for path in FILES if f"{path.name}`" not in README and path.name != "README.md"]


def test_every_subset_of_modalities_occurs():
    subsets = Counter(protein["subset"] for protein in PROTEINS)
    names = {group_name(some) for count in range(1, 5) for some in combinations(Modality, count)}
    assert set(subsets) == names
    assert subsets["sequence_structure_function"] + subsets["sequence_structure_function_image"] >= 60
    for name, count in subsets.items():
        words = name.replace("_", ", ") if "_" in name else f"{name} alone"
        assert f"| {words} | {count} |" in README


def test_licences_are_in_the_files():
    entries = (SAMPLE / "uniprot" / "entries.dat").read_text()
    assert entries.count("Distributed under the Creative Commons Attribution (CC BY 4.0) License") == entries.count(
        "\n//\n"
    )
    texts = [path.read_text() for path in FILES if path.suffix in (".dat", ".fasta", ".gaf", ".obo", ".cif", ".pdb")]
    assert not any("NoDeriv" in text or "NonCommercial" in text or "General Public" in text for text in texts)


@pytest.mark.parametrize("path", STRUCTURES, ids=lambda path: path.name)
def test_structure_parses(path):
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    longest = max(len(chain.get_polymer()) for chain in structure[0])
    assert longest >= 40
    named = [p["key"] for p in PROTEINS if path.name in p["structures"].replace("biopython:", "").split()]
    assert len(named) == 1


def test_ontology_is_closed_and_covers_the_annotations():
    stanzas = (SAMPLE / "go" / "go.obo").read_text().split("\n[Term]\n")[1:]
    ids = {re.search(r"^id: (\S+)", stanza, re.MULTILINE)[1] for stanza in stanzas}  # type: ignore[index]
    parents = {
        parent
        for stanza in stanzas
        for parent in re.findall(r"^(?:is_a:|relationship: \S+) (GO:\d+)", stanza, re.MULTILINE)
    }
    assert parents <= ids
    known = ids | {old for stanza in stanzas for old in re.findall(r"^alt_id: (\S+)", stanza, re.MULTILINE)}
    lines = [line for path in (SAMPLE / "go").glob("*.gaf") for line in path.read_text().splitlines()]
    used = {line.split("\t")[4] for line in lines if not line.startswith("!")}
    assert used - known == {"GO:9999999"}


def test_images_are_what_the_manifest_says():
    rows = list(csv.DictReader((SAMPLE / "images" / "manifest.tsv").read_text().splitlines(), delimiter="\t"))
    listed = {row["path"] for row in rows}
    there = {path.name for path in FILES if path.parent.name == "images" and path.suffix == ".png"}
    assert listed - there == {"missing.png"} and there <= listed
    for row in rows:
        if row["path"] in there and not row["path"].startswith("reject"):
            with Image.open(SAMPLE / "images" / row["path"]) as picture:
                picture.load()
                assert (picture.mode, picture.size) == ("L" if row["channel"] else "RGBA", (96, 96))
                assert row["channel"] in ("", *CHANNELS)
                assert row["source"].startswith("drawn: ")  # and nowhere called anything else


def test_prepared_subsets_are_as_listed(prepared):
    manifest, _ = prepared
    assert manifest.totals["groups"] == Counter(protein["subset"] for protein in PROTEINS)


def test_rejections_are_as_listed(prepared):
    """Every reason of the README's table, as often as it says, and no other."""
    _, rejected = prepared
    seen = {(each["reason"], each["key"]) for each in rejected if each["reason"] != "obsolete_term"}
    assert seen == {
        ("too_short", "P0DPI4"),
        ("bad_letters", "EXERCISE_LETTERS"),
        ("empty_sequence", "EXERCISE_EMPTY"),
        ("sequence_conflict", "P00374"),
        ("low_identity", "P00918"),
        ("no_atoms", "reject_no_atoms.cif"),
        ("empty_file", "reject_empty.pdb"),
        ("truncated_gzip", "reject_truncated.cif.gz"),
        ("missing_image", "P62258"),
        ("unreadable_image", "P62258"),
        ("unknown_term", "P07108"),
        ("negated_annotation", "P07108"),
        ("contradicted_annotation", "P07108"),
        ("short_chain", "pdb_4zhl_P"),
    }
    obsolete = Counter(each["key"] for each in rejected if each["reason"] == "obsolete_term")
    assert obsolete == {"O13329": 4, "O13297": 1, "P07108": 1}
    assert all(f"`{each['reason']}`" in README for each in rejected)
