"""The pack of real public data: what its files hold is in the data set or among the rejected, counted independently.

The inputs are counted here with nothing but regular expressions and line counts. What came of them stands below as
numbers: a change that adds or loses a single protein, chain, text or image has to change them too.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.prepare import PrepareConfig, prepare
from data_prep.shards import Manifest
from data_prep.validate import validate
from pretrain.config import load
from pretrain.data.dataset import Dataset
from tests.pack import PACK

ROOT = Path(__file__).resolve().parents[2]
needs_pack = pytest.mark.skipif(
    not (PACK / "uniprot").is_dir(), reason="FOURFOLD_PACK does not name the pack (benchmarks/pack.toml)"
)
STRUCTURES = ("beyond_max_structures", "duplicate_structure", "low_coverage", "low_identity")
IMAGES = ("beyond_max_images", "duplicate_image")


def lines(pattern: str) -> Iterator[str]:
    """Of all files in the pack that match."""
    paths = sorted(PACK.glob(pattern))
    assert paths, f"the pack has no {pattern}"
    for path in paths:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            yield from file


def matches(regex: str, *patterns: str) -> int:
    return sum(len(re.findall(regex, line)) for pattern in patterns for line in lines(pattern))


def blocks(pattern: str, column: int) -> int:
    """Stretches of lines with the same value in a column; headers and comments are none."""
    values = [
        line.split("\t")[column] for line in lines(pattern) if line[0] != "!" and not line.startswith("uniprot\t")
    ]
    return sum(value != before for value, before in zip(values, ["", *values], strict=False))


def entries() -> int:
    """Of UniProt, with the isoforms whose sequences they describe."""
    flat = matches(r"^ID   ", "uniprot/uniprot_entries.dat") + matches(r"Sequence=VSP", "uniprot/uniprot_entries.dat")
    return flat + matches(r"<entry[ >]|<sequence type=\"described\"", "uniprot/xml/*.xml")


def cells(pattern: str) -> int:
    rows = [line.rstrip("\n").split("\t") for line in lines(pattern)]
    at = [rows[0].index(name) for name in ("uniprot", "cell")]
    return len({tuple(row[i] for i in at) for row in rows[1:]})


def balanced(manifest: Manifest) -> None:
    """Every record is in a sample, rejected, or counted as being the same as another."""
    given: Counter[str] = sum((Counter(source["records"]) for source in manifest.sources), Counter())
    rejected, totals = Counter(manifest.rejected), manifest.totals
    assert given["sequence"] == totals["facets"]["sequence"] + manifest.joined["same_sequence"] + sum(
        rejected[reason] for reason in ("sequence_conflict", "empty_sequence", "too_short", "too_long", "bad_letters")
    )
    assert given["structure"] == totals["structures"] + sum(rejected[reason] for reason in STRUCTURES)
    assert given["image"] == totals["images"] + sum(rejected[reason] for reason in IMAGES)


def spot_checked(folder: Path, manifest: Manifest) -> None:
    """Everything is as the manifest says; samples here and there are what they should be."""
    assert not validate(str(folder), quiet=True).damage
    rejections = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert all(each["reason"] and each["source"] and each["position"] for each in rejections)
    assert sum((Counter({each["reason"]: each.get("count", 1)}) for each in rejections), Counter()) == manifest.rejected
    dataset = Dataset.open(folder)
    for split, groups in dataset.splits.items():
        for name, group in groups.items():
            for i in range(0, len(group), 97):
                sample = dataset.read(split, name, i)
                assert sample.key == group.key(i)
                for structure in sample.structures:
                    assert structure.states is not None and len(structure.states) == len(structure)
                    if sample.sequence:
                        assert structure.identity is not None and structure.identity >= 0.95
                        assert structure.mismatch(sample.sequence).mean() <= 0.05


def records(manifest: Manifest) -> list[dict[str, Any]]:
    return [source["records"] for source in manifest.sources]


@needs_pack
@pytest.mark.timeout(600)
def test_a_part_of_the_pack(tmp_path: Path) -> None:
    settings = load(PrepareConfig, ROOT / "benchmarks" / "part.toml", [f"root={PACK}", "workers=0"])
    manifest = prepare(settings, tmp_path / "data", quiet=True)
    yeast = "uniprot/proteomes/saccharomyces_cerevisiae_*.fasta.gz"
    models = len([*PACK.glob("afdb/AF-*-model*"), *PACK.glob("structures/afdb/AF-*-model*")])
    counted = records(manifest)
    assert counted[0]["sequence"] == entries() == 360
    assert counted[1]["sequence"] == matches("^>", yeast) == 6059
    assert counted[2]["sequence"] == matches("^>", "uniprot/image_*.fasta", "uniprot/afdb_*.fasta") == 120
    assert counted[3]["structure"] == models + 11 == 137  # seven PDB entries have one protein chain, two have two
    assert counted[4]["structure"] == len(list(PACK.glob("structures/multiconf/*/*/*.pdb.gz"))) == 192
    assert counted[5]["structure"] == len(list(PACK.glob("structures/pdb_mmcif/1*.cif.gz"))) == 519
    assert counted[6]["annotation"] == blocks("go/goa_yeast.gaf", 1) + blocks("go/gene_association*.gaf", 1) == 389
    assert counted[7]["annotation"] == blocks("go/goa_yeast.gpa.59.gpa", 1) == 89
    assert counted[9]["text"] == sum(1 for _ in lines("structures/labels/yeast_function_text_sgd.tsv.gz")) - 1
    assert counted[10]["image"] == cells("images/manifest.tsv") == 296
    assert counted[11]["image"] == 2
    balanced(manifest)
    assert manifest.rejected == {
        "beyond_max_images": 200,
        "duplicate_structure": 16,
        "isoform_without_sequence": 1,
        "obsolete_term": 3054,
        "too_short": 1,
        "unmapped_channel": matches(r"\trfp\t", "images/manifest.tsv"),
    }
    assert manifest.totals["facets"] == {"sequence": 6506, "structure": 734, "terms": 10848, "text": 15886, "image": 8}
    assert manifest.totals["overhead_bytes_per_sample"] <= 1500
    assert manifest.totals["structure_bytes_per_residue"] <= 24
    spot_checked(tmp_path / "data", manifest)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_pack
def test_the_whole_pack(tmp_path: Path) -> None:
    expanded = Path(os.environ.get("FOURFOLD_EXPANDED") or tmp_path / "chains")
    if not expanded.is_dir():
        subprocess.run([sys.executable, f"{PACK}/structures/expand.py", str(expanded)], check=True)
    settings = [f"root={PACK}", f"roots.expanded={expanded}", "workers=2"]
    manifest = prepare(load(PrepareConfig, ROOT / "benchmarks" / "pack.toml", settings), tmp_path / "data", quiet=True)
    counted = records(manifest)
    assert [each.get("sequence") for each in counted[:4]] == [
        entries(),
        matches("^>", "uniprot/proteomes/*.fasta.gz"),
        matches("^>", "structures/sequences/*.fasta.gz"),
        matches("^>", "uniprot/*.fasta", "uniprot/*.fasta.gz"),
    ]
    assert [each["structure"] for each in counted[4:7]] == [137, 192, len(list(expanded.glob("*.cif.gz")))]
    annotations = "go/human_gene2go_from_org.Hs.eg.db.gaf.gz", "go/swissprot_2014_go.tsv.gz"
    assert counted[8]["annotation"] == blocks(annotations[0], 1) == 31314
    assert counted[10]["annotation"] == blocks(annotations[1], 0) + blocks("structures/sequences/*_go.tsv.gz", 0)
    balanced(manifest)
    totals = manifest.totals
    assert totals["facets"]["sequence"] > 44_000 and totals["facets"]["structure"] > 15_000
    assert totals["groups"]["sequence_structure_function"] > 10_000
    assert totals["overhead_bytes_per_sample"] <= 1500 and totals["structure_bytes_per_residue"] <= 24
    spot_checked(tmp_path / "data", manifest)
