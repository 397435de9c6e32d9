"""`fourfold inspect` on a prepared data set: every protein has a sheet, and pages and pictures are written."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import ontology
from data_prep.views.lookup import find
from data_prep.views.poster import poster
from data_prep.views.sheet import sheet
from pretrain.data.dataset import Dataset
from pretrain.places import Place

ROOT = Path(__file__).resolve().parents[2]


def keys(data: Path) -> list[str]:
    return sorted(
        group.key(i)
        for groups in Dataset.open(data).splits.values()
        for group in groups.values()
        for i in range(len(group))
    )


def test_every_protein_has_a_sheet(sample_data: Path) -> None:
    place = Place(str(sample_data))
    terms = ontology.read(place)
    all_keys = keys(sample_data)
    assert len(all_keys) == 118
    for number, key in enumerate(all_keys):
        found = find(place, key)
        lines = list(sheet(found, terms, 90))
        assert lines[0].startswith(f"{key}  ") and found.group.replace("_", " + ") in lines[0]
        assert not any("not in ontology.json" in line for line in lines)
        if number % 12 == 0:
            assert f"<h1>{key}</h1>" in poster(found, terms)


def test_the_command_prints_and_writes(sample_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "inspect", str(sample_data), "P00918"]
    wanted = [*command, "--html", str(tmp_path), "--png", str(tmp_path / "picture.png")]
    done = subprocess.run(wanted, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("P00918  sequence + structure + function + image\n")
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "P00918.html"), str(tmp_path / "picture.png")]
    assert "Carbonic anhydrase 2" in done.stdout and "zinc ion binding" in done.stdout
    assert (tmp_path / "P00918.html").read_text().count("<img") == 6
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_files_are_written_though_nobody_reads_the_sheet(sample_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "inspect", str(sample_data), "P00918", "--html", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.close()  # as `head` does
        assert b"Traceback" not in (process.stderr.read() if process.stderr else b"")
    assert (tmp_path / "P00918.html").read_text().endswith("</html>\n")


@pytest.mark.parametrize(("key", "says"), [("p00918", "did you mean P00918"), ("zzz", "no key in it is like that")])
def test_a_key_that_is_not_there_is_a_mistake(sample_data: Path, key: str, says: str) -> None:
    command = [sys.executable, "-m", "cluster.cli", "inspect", str(sample_data), key]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr and not done.stdout
