"""Runs that begin from what another run has found."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain import checkpoint, models
from pretrain.checkpoint import CheckpointConfig
from pretrain.config import dump, load, validate
from pretrain.data.ontology import Vocabulary
from pretrain.encoders.bundle import to_train
from pretrain.encoders.ontology import TermEmbedding
from pretrain.export import export
from pretrain.run import RunConfig
from pretrain.sample import Modality, Sample
from pretrain.setup import idle, prepare, take, trained_weights
from tests.models import MODELS, TERMS, build, config_of, encoders_config, sample
from tests.unit.datasets import protein, write
from tests.unit.pretrain.conftest import Trained


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module]:
    """(a run of heads over frozen encoders, its export, the model)."""
    return exported("align-pro", tmp_path_factory.mktemp("first"))


def exported(name: str, folder: Path) -> tuple[Path, Path, nn.Module]:
    """(a run, its export, the model)."""
    model, encoders = build(name)
    for parameter in model.parameters():
        parameter.data.add_(0.25)
    data = write(folder / "data", {"train": [sample(i, *model.modalities) for i in range(3)]})
    tree = {
        "out": str(folder / "run"), "steps": 9, "data": {"path": str(data), "plan": {"samples": 2}},
        "encoders": dump(encoders_config(name)), "model": MODELS[name][0],
    }  # fmt: skip
    run = validate(RunConfig, tree, "test")
    about = {"name": "tiny", "manifest_sha256": "ef" * 32}
    identity = {"data": about, "model": dump(run.model), "encoders": json.loads(json.dumps(encoders.identity()))}
    state = {"position": {}, "config": dump(run), "identity": identity}
    checkpoint.save(run.out / "checkpoints", Trained(model), 7, state, CheckpointConfig())  # type: ignore[arg-type]
    (run.out / "log.jsonl").write_text("")
    return run.out, export(run.out, folder / "exported"), model


@pytest.mark.parametrize("whole", [True, False], ids=["run", "export"])
def test_heads_are_taken_and_encoders_begin_as_configured(
    first: tuple[Path, Path, nn.Module], whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    origin, model, second = first[0] if whole else first[1], first[2], build("align-pro-trained")[0]
    before = {name: parameter.detach().clone() for name, parameter in second.named_parameters()}
    with caplog.at_level(logging.WARNING):
        take(second, trained_weights(origin), origin)
    theirs = dict(model.named_parameters())
    for name, parameter in second.named_parameters():
        taken = name.startswith("heads.") or (name.startswith("temperatures.") and whole)
        assert torch.equal(parameter, theirs[name] if taken else before[name]), name
        assert not taken or not torch.equal(parameter, before[name])
    said = caplog.messages[-1]
    assert f"start_from {origin}: taken are heads.function (6)" in said
    assert "as configured begin" in said and "trained.sequence (" in said and "of no use" not in said


def test_a_head_of_other_labels_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are of another number; all else is taken."""
    run, folder, model = exported("bihierarchical-supervised", tmp_path)
    asked, around = MODELS["bihierarchical-supervised"]
    other = {**asked, "objective": {"kind": "supervised", "task": "class", "classes": 5}}
    monkeypatch.setitem(MODELS, "five", (other, around))
    for origin in (run, folder):
        second = build("five")[0]
        before = {each: parameter.detach().clone() for each, parameter in second.named_parameters()}
        take(second, trained_weights(origin), origin)
        theirs, own = dict(model.named_parameters()), dict(second.named_parameters())
        last = [each for each in own if own[each].shape != theirs[each].shape]
        assert len(last) == 2 and all(each.startswith("objective.head.") for each in last)
        assert all(torch.equal(own[each], before[each]) for each in last)
        assert all(torch.equal(own[each], theirs[each]) for each in own if each not in last)


@pytest.mark.parametrize("name", ["align-pro-trained", "bihierarchical-gvp", "ssgi", "two-tower", "unimodal-gvp"])
def test_what_an_export_has_trained_is_taken_encoders_and_all(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As from the run itself, but for what no export keeps: the objective's own parts and temperatures."""
    run, folder, model = exported(name, tmp_path)
    theirs = dict(model.named_parameters())
    for origin in (run, folder):
        second = build(name)[0]
        before = {name: parameter.detach().clone() for name, parameter in second.named_parameters()}
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            take(second, trained_weights(origin), origin)
        left = {name for name, parameter in second.named_parameters() if torch.equal(parameter, before[name])}
        assert all(torch.equal(p, theirs[n]) for n, p in second.named_parameters() if n not in left)
        assert not any(name.startswith("trained.") for name in left) and "of no use" not in caplog.messages[-1]
        assert not left if origin == run else left < theirs.keys()


def test_an_export_without_its_configuration_is_named(first: tuple[Path, Path, nn.Module], tmp_path: Path) -> None:
    part = shutil.copytree(first[1], tmp_path / "part")
    (part / "config.json").unlink()
    with pytest.raises(ValueError, match=r"part/config\.json is missing: the folder was copied in part"):
        trained_weights(part)
    for text in ('{"model_type": "esm"}', "{", "[]", '{"identity": {"sequence": {}}}'):  # published weights, and damage
        (part / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"start_from: .*part/config\.json is not what an exported model has"):
            trained_weights(part)


def test_what_cannot_be_taken_is_named(first: tuple[Path, Path, nn.Module], tmp_path: Path) -> None:
    origin = first[0]
    found = trained_weights(origin)
    with pytest.raises(ValueError, match=r"has nothing that this model trains: it has heads\.function \(6\).* residue"):
        take(nn.ModuleDict({"residue": nn.Linear(2, 2)}), found, origin)
    name = "heads.sequence.1.weight"
    with pytest.raises(ValueError, match=rf"{name} is \[3, 3\] in .*run and \[16, 16\] in this model"):
        take(build("align-pro")[0], {**found, name: torch.zeros(3, 3)}, origin)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"start_from: .* is neither a run with a checkpoint .* nor an exported"):
            trained_weights(folder)
    broken = shutil.copytree(origin, tmp_path / "broken")
    (rank,) = broken.glob("checkpoints/*/rank-00000.safetensors")
    rank.write_bytes(rank.read_bytes()[:-1])
    with pytest.raises(ValueError, match="committed and whole"):
        trained_weights(broken)


def run_on(folder: Path, name: str, *proteins: Sample, **changed: Any) -> RunConfig:
    """A run of one of MODELS on these proteins; changed: in the model."""
    data = write(folder / "data", {"train": proteins, "valid": proteins})
    tree = {
        "out": str(folder / "run"), "steps": 9, "data": {"path": str(data), "plan": {"samples": 2}},
        "encoders": dump(encoders_config(name)), "model": {**MODELS[name][0], **changed},
    }  # fmt: skip
    return validate(RunConfig, tree, "test")


def test_a_run_that_would_learn_nothing_does_not_begin(tmp_path: Path) -> None:
    alone = [sample(i, Modality.SEQUENCE) for i in range(3)]
    run = run_on(tmp_path, "align-pro", *alone, intra=0.0)
    with pytest.raises(ValueError, match="learns nothing from proteins that have no more than sequence, which is all"):
        prepare(run)
    both = sample(5, Modality.SEQUENCE, Modality.STRUCTURE)
    parts = prepare(run_on(tmp_path / "more", "align-pro", *alone, both, intra=0.0))
    assert idle(run, parts.loader.plan) == ["sequence"]
    named = [protein(f"T{i}", Modality.SEQUENCE, Modality.FUNCTION, texts=0) for i in range(3)]  # GO terms alone
    with pytest.raises(ValueError, match="no more than sequence_function, which is all"):
        prepare(run_on(tmp_path / "named", "align-pro", *named, intra=0.0))


def test_states_that_are_to_be_told_must_be_there(tmp_path: Path) -> None:
    one = sample(0, *Modality)
    assert all(structure.states is None for structure in one.structures)
    with pytest.raises(ValueError, match=r"none of 1 proteins .* has 3Di states, which model\.structure = states asks"):
        prepare(run_on(tmp_path, "ssgi-states", one, terms=False))
    told = tuple(replace(structure, states="d" * len(structure)) for structure in one.structures)
    several = [*(sample(i, *Modality) for i in range(3)), replace(sample(3, *Modality), structures=told)]
    prepare(run_on(tmp_path / "told", "ssgi-states", *several, terms=False))  # those of one source have them


def test_a_shipped_run_may_be_told_to_tell_states() -> None:
    """Where its file has an encoder of geometry, which nothing then reads."""
    assert load(RunConfig, "ssgi/tiny.toml", ["model.structure=states"]).model.trains == ("sequence", "structure")


def test_vectors_of_go_terms_are_taken_by_term() -> None:
    """A newer ontology has terms in between and lacks others: places in the table mean nothing."""
    origin, config = build("ssgi")[0], config_of("ssgi")
    other = Vocabulary.of({"GO:0000000": (), **{f"GO:{i:07}": ("GO:0000000",) for i in (2, 4, 7)}})
    model = models.build(config, build("ssgi")[1].widths(), to_train(encoders_config("ssgi"), config.trains), other)
    (name,) = [name for name, part in model.named_modules() if isinstance(part, TermEmbedding)]
    before = dict(model.named_parameters())[f"{name}.own.weight"].detach().clone()
    found = origin.state_dict()
    take(model, found, Path("origin"))
    theirs = dict(zip(TERMS.numbers.tolist(), found[f"{name}.own.weight"], strict=True))
    after = dict(model.named_parameters())[f"{name}.own.weight"]
    for row, number in enumerate(other.numbers.tolist()):
        assert torch.equal(after[row], theirs.get(number, before[row])), number
    assert len(theirs.keys() & set(other.numbers.tolist())) == 2
    assert torch.equal(dict(model.named_buffers())[f"{name}.numbers"], torch.from_numpy(other.numbers))
