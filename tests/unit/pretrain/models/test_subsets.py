"""Every model, and every subset of its modalities: losses, gradients and embeddings, from the model and its export."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import checkpoint, models
from pretrain.batch import Embeddings
from pretrain.checkpoint import CheckpointConfig
from pretrain.config import dump, validate
from pretrain.encoders.bundle import Encoders
from pretrain.export import export
from pretrain.inference import load
from pretrain.run import RunConfig
from pretrain.sample import Modality, Sample, Text
from tests.models import MODELS, batch_of, build, config_of, encoders_config, sample, subsets
from tests.unit.datasets import write
from tests.unit.pretrain.conftest import Trained


@pytest.mark.parametrize("name", MODELS)
def test_every_subset_goes_forward_and_backward(name: str) -> None:
    model, encoders = build(name)
    for has in subsets(model.modalities):
        batch = batch_of([sample(i, *has) for i in range(3)], encoders)
        features = encoders(batch)
        model.zero_grad()
        losses = model(features, batch)
        assert isinstance(losses, dict) and tuple(losses) == model.loss_names()
        assert {loss: each.count for loss, each in losses.items()} == model.counts(batch), has
        assert all(each.sum.isfinite() and (each.count or each.sum.item() == 0) for each in losses.values()), has
        torch.stack([each.sum for each in losses.values()]).sum().backward()
        wrong = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.isnan().any())]
        assert not wrong, (has, wrong)
        with torch.no_grad():
            found = model(features, batch, task="embeddings")
        assert isinstance(found, Embeddings) and found.fused.isfinite().all(), has
        assert {m: bool(found.present[m].all()) for m in model.modalities} == {m: m in has for m in model.modalities}
        assert all(not found.values[m].any() for m in model.modalities if m not in has), has


@pytest.mark.parametrize("name", MODELS)
def test_a_micro_batch_may_be_empty(name: str) -> None:
    """As a rank's is, where a step has fewer proteins than there are ranks."""
    model, encoders = build(name)
    batch = batch_of([], encoders)
    losses = model(encoders(batch), batch)
    assert isinstance(losses, dict) and {loss: each.count for loss, each in losses.items()} == model.counts(batch)
    torch.stack([each.sum for each in losses.values()]).sum().backward()
    with torch.no_grad():
        found = model(encoders(batch), batch, task="embeddings")
    assert isinstance(found, Embeddings) and len(found.fused) == 0
    assert all(len(rows) == 0 for rows in found.values.values())


def _said_twice(one: Sample) -> Sample:
    """With a paraphrase, where it has a text."""
    if one.function is None:
        return one
    texts = (*one.function.texts, Text(f"also {one.key}", "uniprot"))
    return replace(one, function=replace(one.function, texts=texts))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_of_which_proteins_it_learns(name: str) -> None:
    """Of those alone it has losses, at some step."""
    config, (model, encoders) = config_of(name), build(name)
    for has in subsets(tuple(Modality)):
        proteins = [_said_twice(sample(i, *has)) for i in range(4)]
        batches = (batch_of(proteins, encoders, step) for step in range(4))
        learns = any(sum(model.counts(batch).values()) for batch in batches)
        assert learns == models.teaches(config, has), has


@pytest.mark.parametrize("autocast", [False, True], ids=["parameters", "autocast"])
@pytest.mark.parametrize("name", MODELS)
def test_every_subset_in_bf16(name: str, autocast: bool) -> None:
    """With parameters in bf16, as at stages 1 to 3, and under autocast, as at stage 0; losses are float32."""
    model, encoders = build(name)
    for has in subsets(model.modalities):
        batch = batch_of([sample(i, *has) for i in range(3)], encoders)
        features = encoders(batch)
        model = model.zero_grad() or (model if autocast else model.bfloat16())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model(features, batch)
        assert all(each.sum.isfinite() and each.sum.dtype == torch.float32 for each in losses.values()), has
        torch.stack([each.sum for each in losses.values()]).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), has
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model(features, batch, task="embeddings")
        assert isinstance(found, Embeddings) and found.fused.isfinite().all() and found.fused.dtype == torch.float32


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_embeds_every_subset(name: str, tmp_path: Path) -> None:
    """As the model did in training, whoever the batch mates are."""
    model, encoders = build(name)
    every = [sample(i, *has) for i, has in enumerate(subsets(model.modalities))]
    loaded = load(exported(name, model, encoders, every, tmp_path))
    _tells_what_trained(tmp_path / "exported", model, encoders)
    together = loaded.embed(every)
    assert torch.from_numpy(together.fused).isfinite().all()
    for i, one in enumerate(every):
        alone = loaded.embed([one])
        assert abs(alone.fused[0] - together.fused[i]).max() < 1e-5, one.modalities
    short = [one for one in every if not one.structures and len(one.images) < 2]  # of these nothing is drawn
    if short:
        with torch.no_grad():
            batch = batch_of(short, encoders)
            trained = model.eval()(encoders(batch), batch, task="embeddings")
        rows = [every.index(one) for one in short]
        assert (torch.from_numpy(together.fused[rows]) - trained.fused.float()).abs().max() < 1e-5


def exported(
    name: str, model: models.Model, encoders: Encoders, every: list[Sample], tmp_path: Path, **how: Any
) -> Path:
    """What `export` makes of a checkpoint of the model, as if trained on these proteins."""
    data = write(tmp_path / "data", {"train": every})
    tree = {
        "out": str(tmp_path / "run"), "steps": 9, "data": {"path": str(data), "plan": {"samples": 4}},
        "encoders": dump(encoders_config(name)), "model": MODELS[name][0],
    }  # fmt: skip
    config = validate(RunConfig, tree, "test")
    state = {
        "position": {}, "config": dump(config),
        "identity": {
            "data": {"name": "tiny", "manifest_sha256": "ef" * 32}, "model": dump(config.model),
            "encoders": json.loads(json.dumps(encoders.identity())),
        },
    }  # fmt: skip
    checkpoint.save(config.out / "checkpoints", Trained(model), 7, state, CheckpointConfig())  # type: ignore[arg-type]
    (config.out / "log.jsonl").write_text("")
    return export(config.out, tmp_path / "exported", **how)


def _tells_what_trained(exported: Path, model: torch.nn.Module, around: Encoders) -> None:
    """The card and the configuration of an exported model, of encoders that trained and of those that did not."""
    told, text = json.loads((exported / "config.json").read_text()), (exported / "README.md").read_text()
    inside = getattr(model, "trained", None)
    several = dict(inside.items()) if isinstance(inside, torch.nn.ModuleDict) else {"": inside}
    inside = {} if inside is None else several
    learned = {
        name or model.modalities[0]: sum(p.numel() for p in each.parameters() if p.requires_grad)  # type: ignore[index]
        for name, each in inside.items()
    }
    for modality, one in told["identity"].items():
        before = around.identity()[modality]["weights"]
        assert one["weights"] == (f"trained, from {before}" if learned.get(modality) else before)
        assert f"| {modality} | {one['kind']} | {one['weights']} |" in text
    assert told["parameters"]["model"] >= sum(learned.values()) > 0 or not learned
    assert f"and {told['parameters']['encoders']:,} frozen ones" in text
    assert bool(told["parameters"]["encoders"]) == (not all(learned.get(modality) for modality in told["identity"]))
