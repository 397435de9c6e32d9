"""Every system's tiny configuration as it ships, on the sample: it learns, a kill changes nothing, it is exported."""

from pathlib import Path

import numpy as np
import pytest

import fourfold
from pretrain.export import export
from tests.runs.training import finish, kill, log, losses, start, wait_for_step

SAMPLE = Path(fourfold.__file__).parent / "data_prep" / "sample"
SYSTEMS = ("amma", "align_pro", "bihierarchical", "fourfold", "ssgi", "two_tower")
COMPARE = ("amma", "align_pro", "fourfold", "ssgi", "two_tower")  # have two towers or more


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", SYSTEMS)
def test_it_learns_resumes_to_the_bit_and_embeds(system: str, sample_data: Path, tmp_path: Path) -> None:
    whole, cut, config = tmp_path / "whole", tmp_path / "cut", f"configs/{system}/tiny.toml"
    asked = {"config": config, "small": ("log.every=1", "log.tensorboard=false")}
    finish(start(sample_data, whole, 1, **asked), whole, wait=600)
    told = [record for record in log(whole) if record["event"] == "validation"]
    assert len(told) > 2 and told[-1]["loss"] < told[0]["loss"]
    if system in COMPARE:
        assert max(one["recall"] - one["chance"] for one in told[-1]["retrieval"].values()) > 0

    first = min(record["step"] for record in log(whole) if record["event"] == "checkpoint")
    running = start(sample_data, cut, 1, **asked)
    wait_for_step(cut, first + 3, running)
    kill(running)
    finish(start(sample_data, cut, 1, **asked), cut, wait=600)
    assert [record["step"] for record in log(cut) if record["event"] == "resume"] == [first]
    assert losses(cut) == losses(whole)
    assert [record for record in log(cut) if record["event"] == "validation"][-1]["loss"] == told[-1]["loss"]

    model = fourfold.load(export(cut, tmp_path / "model"))
    proteins = fourfold.read(SAMPLE / "uniprot" / "more.fasta")
    found = model.embed(proteins)
    assert found.fused.shape[0] == len(proteins) and np.isfinite(found.fused).all() and found.fused.std(0).min() > 0
