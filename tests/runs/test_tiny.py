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
SURE = ("fourfold", "ssgi")
ALSO = ("align_pro", "amma", "two_tower")
FEW = (
    "steps=6", "checkpoint.every=3", "validation.every=3", "validation.samples=16", "validation.batch=8",
    "data.plan.samples=4", "encoders.crop=64", "log.every=1", "log.tensorboard=false",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", SYSTEMS)
def test_it_learns_resumes_to_the_bit_and_embeds(system: str, sample_data: Path, tmp_path: Path) -> None:
    asked = {"config": f"configs/{system}/tiny.toml", "small": ("log.every=1", "log.tensorboard=false")}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(sample_data, whole, 1, **asked), whole, wait=600)  # type: ignore[arg-type]
    told = _killed(sample_data, cut, **asked)
    assert losses(cut) == losses(whole)
    want = [record for record in log(whole) if record["event"] == "validation"]
    assert told[-1]["loss"] == want[-1]["loss"]
    assert len(told) > 2 and told[-1]["loss"] < told[0]["loss"]
    pairs = told[-1]["retrieval"].values()
    if system in SURE:
        assert max(_errors_above_chance(**pair) for pair in pairs) > 3
    if system in ALSO:
        assert np.mean([pair["recall"] - pair["chance"] for pair in pairs]) > 0


@pytest.mark.parametrize("system", SYSTEMS[1:])  # AMMA's runs are tested all over
def test_a_few_steps_go_on_after_a_kill_and_embed(system: str, sample_data: Path, tmp_path: Path) -> None:
    told = _killed(sample_data, tmp_path / "cut", config=f"configs/{system}/tiny.toml", small=FEW)
    assert {record["step"] for record in told} == {3, 6}


def _errors_above_chance(recall: float, chance: float, n: int, **_: Any) -> float:
    if chance == 1:  # so few that k takes them all: nothing can be above
        return 0.0
    return (recall - chance) / (chance * (1 - chance) / n) ** 0.5


def _killed(data: Path, out: Path, **asked: Any) -> list[dict[str, Any]]:
    """The validations of a run that is killed after its first checkpoint, and goes on from there; its export embeds."""
    running = start(data, out, 1, **asked)
    while not (found := [record for record in log(out) if record["event"] == "checkpoint"]):
        assert all(process.poll() is None for process in running), out.with_suffix(".txt").read_text()[-4000:]
        time.sleep(0.02)
    kill(running)
    finish(start(data, out, 1, **asked), out, wait=600)
    assert [record["step"] for record in log(out) if record["event"] == "resume"] == [found[0]["step"]]

    model = fourfold.load(export(out, out.with_name("model")))
    proteins = fourfold.read(SAMPLE / "uniprot" / "more.fasta")[:24]
    embedded = model.embed(proteins)
    assert embedded.fused.shape[0] == len(proteins) and np.isfinite(embedded.fused).all()
    assert embedded.fused.std(0).min() > 0
    return [record for record in log(out) if record["event"] == "validation"]
