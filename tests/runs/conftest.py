"""The sample inside the package, prepared once for all tests that run things."""

from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), out, quiet=True)
    return out
