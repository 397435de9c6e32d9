"""The pack of real public data, whole: what is in it is in the data set, within the goals for size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load
from pretrain.data.index import Dataset

ROOT = Path(__file__).resolve().parents[2]
PACK = os.environ.get("FOURFOLD_PACK", "")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not PACK, reason="FOURFOLD_PACK does not name the pack (benchmarks/pack.toml)")
def test_the_whole_pack(tmp_path: Path) -> None:
    subprocess.run([sys.executable, f"{PACK}/structures/expand.py", str(tmp_path / "chains")], check=True)
    settings = [f"root={PACK}", f"roots.expanded={tmp_path / 'chains'}", "workers=2"]
    manifest = prepare(load(PrepareConfig, ROOT / "benchmarks" / "pack.toml", settings), tmp_path / "data", quiet=True)
    totals = manifest.totals
    assert totals["facets"]["sequence"] > 44_000 and totals["facets"]["structure"] > 15_000
    assert totals["groups"]["sequence_structure_function"] > 10_000
    assert totals["overhead_bytes_per_sample"] <= 1500 and totals["structure_bytes_per_residue"] <= 24
    dataset = Dataset.open(tmp_path / "data")
    for split, groups in dataset.splits.items():
        for name, group in groups.items():
            for i in range(0, len(group), 97):
                sample = dataset.read(split, name, i)
                assert sample.key == group.key(i)
                for structure in sample.structures if sample.sequence else ():
                    assert structure.identity is not None and structure.identity >= 0.95
                    assert structure.mismatch(sample.sequence or "").mean() <= 0.05
