"""What a wheel must carry: every module, the configurations where `pretrain.config` looks for them, the sample."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pretrain import config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def below(folder: str, pattern: str = "*") -> set[str]:
    files = (path for path in (ROOT / folder).rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_every_module_and_the_sample_are_inside(names: set[str]) -> None:
    modules = {"fourfold.py"} | below("pretrain", "*.py") | below("data_prep", "*.py") | below("cluster", "*.py")
    assert modules | below("data_prep/sample") <= names


def test_configurations_lie_where_they_are_looked_for(names: set[str]) -> None:
    place = config.SHIPPED[1].relative_to(config.ROOT.parent).as_posix()
    assert {f"{place}/{name.removeprefix('configs/')}" for name in below("configs", "*.toml")} <= names


def test_nothing_else_is_inside(names: set[str]) -> None:
    assert {name.partition("/")[0] for name in names} == {
        "cluster",
        "data_prep",
        "fourfold.py",
        "pretrain",
        "fourfold-0.1.0.dist-info",
    }
