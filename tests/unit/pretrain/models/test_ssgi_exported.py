"""An exported self-SSGI: it knows its terms by their ids, without an ontology beside it, and says which it does not."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain import checkpoint
from pretrain.checkpoint import CheckpointConfig
from pretrain.config import dump, validate
from pretrain.data.dataset import Dataset
from pretrain.encoders.bundle import Encoders
from pretrain.export import export
from pretrain.inference import Exported, load
from pretrain.run import RunConfig, check_identity, identity_of
from pretrain.sample import Function, Modality, Sample, Term, Text
from tests.models import ABOVE, MODELS, TERMS, batch_of, build, encoders_config, sample
from tests.unit.datasets import write
from tests.unit.pretrain.conftest import Trained

FUNCTION = Modality.FUNCTION


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with one checkpoint; its data are gone."""
    folder = tmp_path_factory.mktemp("ssgi")
    tree = {
        "out": str(folder / "run"), "steps": 9, "data": {"path": str(folder / "gone"), "plan": {"samples": 4}},
        "encoders": dump(encoders_config("ssgi")), "model": MODELS["ssgi"][0],
    }  # fmt: skip
    config = validate(RunConfig, tree, "test")
    model, encoders = build("ssgi")
    state = {
        "position": {}, "config": dump(config),
        "identity": {
            "data": {"name": "tiny", "manifest_sha256": "ef" * 32}, "model": dump(config.model),
            "encoders": json.loads(json.dumps(encoders.identity())),
        },
    }  # fmt: skip
    engine: Any = Trained(model)
    checkpoint.save(config.out / "checkpoints", engine, 7, state, CheckpointConfig())
    (config.out / "log.jsonl").write_text("")
    return config


@pytest.fixture(scope="module")
def exported(run: RunConfig) -> Path:
    return export(run.out, run.out.parent / "model")


@pytest.fixture(scope="module")
def loaded(exported: Path) -> Exported:
    return load(exported)


def annotated(key: str, *ids: str, texts: tuple[Text, ...] = ()) -> Sample:
    return Sample(key, function=Function(tuple(Term(id, "IDA") for id in ids), texts))


def test_terms_without_a_text_are_embedded_as_the_model_did_in_training(loaded: Exported) -> None:
    samples = [annotated("A", "GO:0000004"), annotated("B", "GO:0000005", "GO:0000002")]
    assert all(map(loaded.sees, samples))
    found = loaded.embed(samples)
    model, encoders = build("ssgi")
    batch = batch_of(samples, encoders)
    with torch.no_grad():
        trained = model.eval()(encoders(batch), batch, task="embeddings")
    assert found.present[FUNCTION].all()
    torch.testing.assert_close(torch.from_numpy(found.alone[FUNCTION]), trained.values[FUNCTION], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(found.fused), trained.fused, atol=1e-5, rtol=1e-4)
    assert abs(found.alone[FUNCTION][0] - found.alone[FUNCTION][1]).max() > 1e-2


def test_a_term_that_the_model_does_not_know_is_named(loaded: Exported, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pretrain.inference"):
        both = loaded.embed([annotated("A", "GO:0000004", "GO:7777777")])
    assert "GO:7777777: not among the GO terms that this model was trained with" in caplog.text
    assert (both.fused == loaded.embed([annotated("A", "GO:0000004")]).fused).all()
    stranger = annotated("B", "GO:7777777")
    assert not loaded.sees(stranger)
    with pytest.raises(ValueError, match=r"B: nothing that this model sees; .*\(function as texts or GO terms\)"):
        loaded.embed([stranger])


def test_the_folder_carries_the_terms_and_nothing_of_training(exported: Path, loaded: Exported) -> None:
    tensors = load_file(exported / "model.safetensors")
    assert tensors["model.proteins.ontology.numbers"].tolist() == [int(id[3:]) for id in sorted(ABOVE)]
    assert not [name for name in tensors if ".decoders." in name or name.startswith("model.trained")]
    assert any(name.startswith("encoders.sequence.") for name in tensors)
    terms = loaded.spec().terms
    assert terms is not None and terms.sha256 == TERMS.sha256


def test_half_precision_keeps_the_terms_exact(run: RunConfig) -> None:
    half = load(export(run.out, run.out.parent / "half", dtype="bfloat16"))
    terms = half.spec().terms
    assert terms is not None and terms.sha256 == TERMS.sha256
    assert half.embed([annotated("A", "GO:0000004")]).present[FUNCTION].all()


def test_a_text_finds_proteins_and_residues_have_latents(loaded: Exported) -> None:
    samples = [sample(i, *Modality) for i in range(4)]
    found = loaded.embed(samples, per_residue=True)
    assert found.residues is not None
    assert [len(found.residues.of(i)) for i in range(4)] == [len(one.sequence or "") for one in samples]
    assert len(loaded.search("binds zinc", found, k=3)) == 3


def test_another_ontology_is_another_run(run: RunConfig, tmp_path: Path) -> None:
    dataset = Dataset.open(write(tmp_path, {"train": [sample(0, *Modality)]}))
    encoders = Encoders.build(encoders_config("ssgi"))
    other = replace(TERMS, members=TERMS.members[::-1].copy())
    one, two = (identity_of(run, dataset, encoders, terms) for terms in (TERMS, other))
    assert one["terms"] == {"count": 5, "sha256": TERMS.sha256}
    assert "terms" not in identity_of(run, dataset, encoders) and "terms" not in one["limits"]
    found = checkpoint.Checkpoint(Path("r/c/step-00000001"), 1, 1, 1, {}, {"identity": one})
    check_identity(found, json.loads(json.dumps(one)))
    with pytest.raises(ValueError, match=r"another terms: terms\.sha256 was"):
        check_identity(found, two)
