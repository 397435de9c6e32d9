"""Every shipped configuration loads as what it is, from the checkout and by its short name; what ablations change."""

import tomllib
from pathlib import Path
from typing import Any

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
LACKS = "(is not there)"
ALPHA = "model.masking.alpha"
# Each ablation → what it changes in its system's paper.toml, the paper's alpha being (1, 2, 2).
ABLATIONS: dict[str, dict[str, Any]] = {
    "align_pro/ablations/hard_negatives.toml": {
        "data.plan.relatives": 4, "data.plan.lanes": 1, "data.plan.window": 1_000_000,
    },
    "align_pro/ablations/no_augmentation.toml": {"data.path": "data/plain"},
    "align_pro/ablations/no_intra.toml": {"model.intra": 0.0},
    "align_pro/ablations/sequence_function.toml": {"model.modalities": ["sequence", "function"]},
    "align_pro/ablations/sequence_structure.toml": {"model.modalities": ["sequence", "structure"]},
    "amma/ablations/alpha_1_1_1.toml": {f"{ALPHA}.structure": 1.0, f"{ALPHA}.function": 1.0},
    "amma/ablations/alpha_2_1_1.toml": {
        f"{ALPHA}.sequence": 2.0, f"{ALPHA}.structure": 1.0, f"{ALPHA}.function": 1.0,
    },
    "amma/ablations/alpha_2_1_2.toml": {f"{ALPHA}.sequence": 2.0, f"{ALPHA}.structure": 1.0},
    "amma/ablations/alpha_2_2_1.toml": {f"{ALPHA}.sequence": 2.0, f"{ALPHA}.function": 1.0},
    "amma/ablations/contrastive.toml": {"model.variant": "contrastive"},
    "amma/ablations/sequence_only.toml": {"model.sees": "sequence_only"},
    "amma/ablations/symmetric.toml": {"model.sees": "symmetric"},
}  # fmt: skip
SHIPPED = sorted((ROOT / "configs").rglob("*.toml"))


def test_there_are_configurations_and_each_folder_has_a_kind() -> None:
    folders = {file.relative_to(ROOT / "configs").parts[0] for file in SHIPPED}
    assert folders == set(KINDS)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(ROOT / "configs").as_posix())
def test_a_shipped_configuration_loads(file: Path) -> None:
    name = file.relative_to(ROOT / "configs")
    loaded = config.load(KINDS[name.parts[0]], name)
    assert config.validate(type(loaded), config.dump(loaded), str(name)) == loaded


def test_each_ablation_is_in_the_table() -> None:
    found = {file.relative_to(ROOT / "configs").as_posix() for file in SHIPPED if file.parent.name == "ablations"}
    assert found == set(ABLATIONS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    """Defaults that a file leaves out included. Where it writes to is its own."""
    parent = f"{name.split('/')[0]}/paper.toml"
    assert tomllib.loads((ROOT / "configs" / name).read_text())["extends"] == parent
    paper, ablation = (_dotted(config.dump(config.load(RunConfig, each))) for each in (parent, name))
    keys = {key for key in {*paper, *ablation} if paper.get(key, LACKS) != ablation.get(key, LACKS)}
    assert "out" in keys and {key: ablation.get(key, LACKS) for key in keys - {"out"}} == ABLATIONS[name]


def _dotted(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration's values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _dotted(value, f"{above}{key}.") if isinstance(value, dict) and value else {above + key: value}
    return found


def test_the_packs_configuration_loads() -> None:
    assert config.load(PrepareConfig, ROOT / "benchmarks" / "pack.toml")
