"""Every system's tiny configuration on the sample: it learns, a kill changes nothing, it is exported and embeds. As it
ships, which takes minutes; and a few steps of it."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fourfold
from pretrain.export import export
from tests.runs.training import finish, kill, log, losses, start

SAMPLE = Path(fourfold.__file__).parent / "data_prep" / "sample"
SYSTEMS = ("amma", "align_pro", "bihierarchical", "fourfold", "ssgi", "two_tower")
# Those whose retrieval on so few proteins no chance explains: some pair by three standard errors. The others' mean over
# pairs is above chance, by less than 26 to 35 proteins can tell.
SURE = ("align_pro", "fourfold", "ssgi")
ALSO = ("amma", "two_tower")
FEW = (
    "steps=6", "checkpoint.every=3", "validation.every=3", "validation.samples=16", "validation.batch=8",
    "data.plan.samples=4", "encoders.crop=64", "log.every=1", "log.tensorboard=false",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", SYSTEMS)
def test_it_learns_resumes_to_the_bit_and_embeds(system: str, sample_data: Path, tmp_path: Path) -> None:
    told = _resumes(system, sample_data, tmp_path, "log.every=1", "log.tensorboard=false")
    assert len(told) > 2 and told[-1]["loss"] < told[0]["loss"]
    pairs = told[-1]["retrieval"].values()
    if system in SURE:
        assert max(_errors_above_chance(**pair) for pair in pairs) > 3
    if system in ALSO:
        assert np.mean([pair["recall"] - pair["chance"] for pair in pairs]) > 0


@pytest.mark.parametrize("system", SYSTEMS[1:])  # AMMA's runs are tested all over
def test_a_few_steps_resume_to_the_bit_and_embed(system: str, sample_data: Path, tmp_path: Path) -> None:
    _resumes(system, sample_data, tmp_path, *FEW)


def _errors_above_chance(recall: float, chance: float, n: int, **_: Any) -> float:
    if chance == 1:  # so few that k takes them all: nothing can be above
        return 0.0
    return (recall - chance) / (chance * (1 - chance) / n) ** 0.5


def _resumes(system: str, data: Path, folder: Path, *settings: str) -> list[dict[str, Any]]:
    """The validations of a run; one that was killed after its first checkpoint is the same, and its export embeds."""
    whole, cut, asked = folder / "whole", folder / "cut", {"config": f"configs/{system}/tiny.toml", "small": settings}
    finish(start(data, whole, 1, **asked), whole, wait=600)  # type: ignore[arg-type]
    running = start(data, cut, 1, **asked)  # type: ignore[arg-type]
    while not (found := [record for record in log(cut) if record["event"] == "checkpoint"]):
        assert all(process.poll() is None for process in running), cut.with_suffix(".txt").read_text()[-4000:]
        time.sleep(0.02)
    kill(running)
    finish(start(data, cut, 1, **asked), cut, wait=600)  # type: ignore[arg-type]
    assert [record["step"] for record in log(cut) if record["event"] == "resume"] == [found[0]["step"]]
    assert losses(cut) == losses(whole)
    told = [record for record in log(whole) if record["event"] == "validation"]
    assert [record for record in log(cut) if record["event"] == "validation"][-1]["loss"] == told[-1]["loss"]

    model = fourfold.load(export(cut, folder / "model"))
    proteins = fourfold.read(SAMPLE / "uniprot" / "more.fasta")[:24]
    embedded = model.embed(proteins)
    assert embedded.fused.shape[0] == len(proteins) and np.isfinite(embedded.fused).all()
    assert embedded.fused.std(0).min() > 0
    return told
