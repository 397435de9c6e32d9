"""Every configuration that ships loads as what it is, from the checkout and by its short name."""

from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig
from data_prep.remote.wanted import FetchConfig
from pretrain import config
from pretrain.config import Config
from pretrain.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[str, type[Config]] = {
    "fetch": FetchConfig,
    "fourfold": RunConfig,
    "prepare": PrepareConfig,
    "amma": RunConfig,
    "bihierarchical": RunConfig,
    "align_pro": RunConfig,
    "ssgi": RunConfig,
    "two_tower": RunConfig,
    "unimodal": RunConfig,
}
SHIPPED = sorted((ROOT / "configs").rglob("*.toml"))


def test_there_are_configurations_and_each_folder_has_a_kind() -> None:
    folders = {file.relative_to(ROOT / "configs").parts[0] for file in SHIPPED}
    assert folders == set(KINDS)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(ROOT / "configs").as_posix())
def test_a_shipped_configuration_loads(file: Path) -> None:
    name = file.relative_to(ROOT / "configs")
    loaded = config.load(KINDS[name.parts[0]], name)
    assert config.validate(type(loaded), config.dump(loaded), str(name)) == loaded


def test_the_packs_configuration_loads() -> None:
    assert config.load(PrepareConfig, ROOT / "benchmarks" / "pack.toml")
