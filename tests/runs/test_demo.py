"""`fourfold demo`, whole, as a person runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_does_what_it_claims(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "demo", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "resumed at step" in done.stderr and "all of it" in done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run", "model", "report.html"}
