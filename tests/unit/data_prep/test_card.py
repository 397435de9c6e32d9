"""The card and the Croissant description: made of the manifest alone, true, and read by the tools they are for."""

import hashlib
import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import shards
from data_prep.shards import Manifest
from data_prep.views.card import CARD, CROISSANT, card, groups, summary
from data_prep.views.croissant import LISTED, croissant
from pretrain.sample import Function, Image, Sample, Structure, Term, Text

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0000003010100"
    "18dd8db00000000049454e44ae426082"
)
SOURCE = {
    "kind": "uniprot", "path": ["a|b.dat", "c.dat"], "name": "mine", "release": "2026_04", "licence": "CC BY 4.0",
    "note": "Drawn.", "files": 2, "bytes": 10, "sha256": "0" * 64, "records": {"entry": 2, "text": 1},
}  # fmt: skip


def protein(key: str, image: bool = False) -> Sample:
    chain = Structure(
        id="1abc_A",
        coordinates=np.ones((3, 3, 3), dtype=np.float32),
        mask=np.ones((3, 3), dtype=bool),
        residue=np.arange(3, dtype=np.int32),
        letters="MKT",
        identity=1.0,
    )
    function = Function((Term("GO:0000001", "IDA"),), (Text("Binds.", "uniprot:function"),))
    return Sample(key, "MKT", (chain,), function, (Image("i", PNG, ("protein",)),) * image)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card")
    written = [
        shards.write(out, "train", 0, [protein("A1"), protein("A2")]),
        shards.write(out, "test", 1, [protein("B1", True)]),
    ]
    rejected = '{"detail":"","key":"X","position":"","reason":"too_short","source":"a"}\n'
    (out / "rejected.jsonl").write_text(rejected)
    manifest = Manifest(
        name='mine & "yours"',
        partitions=2,
        splits=shards.tree(written),
        totals=shards.totals(written),
        rejected={"too_short": 1},
        joined={"evidence/IDA": 3, "duplicate": 1},
        files={"rejected.jsonl": hashlib.sha256(rejected.encode()).hexdigest()},
        sources=[SOURCE],
        go={},
        split={"method": "hash", "components": 2},
        input="0",
        config={"split": {"method": "hash", "seed": 0}, "filters": {"min_length": 3}},
        versions={"fourfold": "1"},
    )
    text = manifest.to_bytes()
    (out / "manifest.json").write_bytes(text)
    tree = json.loads(text)
    (out / CARD).write_text(card(tree))
    (out / CROISSANT).write_bytes(croissant(tree, hashlib.sha256(text).hexdigest()))
    return out


def tree(data: Path) -> dict[str, Any]:
    return json.loads((data / "manifest.json").read_text())


def test_the_card_tells_what_the_manifest_says(data: Path) -> None:
    text = card(tree(data))
    rows = [re.sub(r" *(?<!\\)\| *", "|", line).strip("|") for line in text.splitlines() if line.startswith("|")]
    assert "modalities|train|test|all|residues" in rows
    assert "sequence + structure + function|2|0|2|6" in rows
    assert "sequence + structure + function + image|0|1|1|3" in rows and "**all**|2|1|3|9" in rows
    assert "too short|1" in rows and "duplicate|1" in rows and "IDA 3" in text and "- components = `2`" in text
    assert f"mine (uniprot)|`a\\|b.dat`, `c.dat` (2)|2026_04|2 entries, 1 text|CC BY 4.0|`{'0' * 64}`" in rows
    assert "keeps no relatives apart" in text and "- mine: Drawn." in text and "- mine: CC BY 4.0" in text
    assert (
        summary(tree(data)).startswith("3 proteins for multimodal pretraining") and "1 with microscope images" in text
    )
    assert text.startswith('---\npretty_name: "mine & \\"yours\\""\n') and text.count("\n---\n") == 1


def test_equal_manifests_give_equal_texts(data: Path) -> None:
    manifest = tree(data)
    shuffled = json.loads(json.dumps(manifest), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    before = deepcopy(manifest)
    assert croissant(manifest, "0") == croissant(shuffled, "0") and manifest == before
    assert card(manifest) == card(json.loads(json.dumps(manifest)))


def test_the_cards_programs_run(data: Path, tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", (data / CARD).read_text(), re.DOTALL)
    assert len(programs) == 3
    tells = ["print(sample.key, len(sample.structures))", "", "print(about['key'], sorted(tensors))"]
    said = []
    for program, tell in zip(programs, tells, strict=True):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program.replace("PATH", str(data)) + tell],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == "A1 1\n"
    assert said[1].splitlines()[0].startswith("A1 ['__key__'") and "'safetensors'" in said[1]
    assert said[2] == "A1 ['0.xyz', 'sequence']\n"


READ = """
import mlcroissant, sys
data = mlcroissant.Dataset(sys.argv[1])
assert not data.metadata.ctx.issues.errors
print(*sorted(data.metadata.ctx.issues.warnings), sep="\\n", file=sys.stderr)
def told(value):
    return value.decode() if isinstance(value, bytes) and len(value) < 100 else type(value).__name__
for name in sys.argv[2:]:
    for record in data.records(name):
        print(name, *(value if isinstance(value, int | str) else told(value) for _, value in sorted(record.items())))
"""


def mlcroissant(path: Path, cache: Path, *names: str) -> tuple[list[str], list[str]]:
    """(records, warnings) as its own reader has them. It keeps what it unpacks by path, so each test has a cache."""
    pytest.importorskip("mlcroissant")
    import os

    around = {**os.environ, "CROISSANT_CACHE": str(cache), "HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", READ, str(path), *names], capture_output=True, text=True, env=around)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines(), [line for line in done.stderr.splitlines() if line.startswith("[Metadata(")]


def test_croissants_own_reader_reads_all_records(data: Path, tmp_path: Path) -> None:
    names = ("coverage", "splits", "tensors", "rejected", "train", "test", "test_images")
    said, warnings = mlcroissant(data / CROISSANT, tmp_path, *names)
    assert all(any(name in warning for name in ("citeAs", "datePublished", "version")) for warning in warnings)
    records = {name: [line.removeprefix(f"{name} ") for line in said if line.startswith(f"{name} ")] for name in names}
    assert (
        records["coverage"] == ["sequence+structure+function 6 2 train", "sequence+structure+function+image 3 1 test"]
        or len(records["coverage"]) == 2
    )
    assert records["train"] == ["A1 bytes", "A2 bytes"] and records["test"] == ["B1 bytes"]
    (image,) = records["test_images"]
    assert image == "PngImageFile B1 0"
    assert len(records["tensors"]) == 8 and len(records["splits"]) == 2
    (rejected,) = records["rejected"]
    assert rejected.split() == ["X", "too_short", "a"]


def test_files_have_the_hashes_that_are_told(data: Path) -> None:
    files = [each for each in json.loads((data / CROISSANT).read_text())["distribution"] if "sha256" in each]
    assert {each["@id"] for each in files} == {
        "manifest.json", "rejected.jsonl", "train/sequence_structure_function/00000.tar",
        "test/sequence_structure_function_image/00001.tar",
    }  # fmt: skip
    for each in files:
        assert hashlib.sha256((data / each["contentUrl"]).read_bytes()).hexdigest() == each["sha256"]


def test_a_large_data_sets_shards_are_told_by_pattern(data: Path, tmp_path: Path) -> None:
    manifest = tree(data)
    table = manifest["splits"]["train"]["sequence_structure_function"]
    table["shards"] = [
        {**table["shards"][0], "path": f"train/sequence_structure_function/{n:05d}.tar"} for n in range(LISTED + 1)
    ]
    text = croissant(manifest, "0" * 64)
    assert len(text) < 40_000 and b"train/*/*.tar" in text
    (tmp_path / CROISSANT).write_bytes(text)
    said, _ = mlcroissant(tmp_path / CROISSANT, tmp_path, "coverage")
    assert len(said) == 2


def test_groups_stand_in_the_order_of_modalities() -> None:
    names = ["image", "sequence_image", "function", "sequence", "sequence_structure", "structure"]
    splits = {"train": {name: {} for name in names}}
    assert groups(splits) == ["sequence", "structure", "function", "image", "sequence_structure", "sequence_image"]
