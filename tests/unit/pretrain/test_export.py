"""Export: the weights of the newest whole checkpoint, everything it takes to load them, and nothing that lies."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from uuid import uuid4

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pretrain import checkpoint
from pretrain.checkpoint import disk
from pretrain.data.loader import DataConfig
from pretrain.evaluation.card import card
from pretrain.evaluation.history import History
from pretrain.export import chosen, export, mean_embeddings, training_samples
from pretrain.inference import load
from pretrain.places import Place
from pretrain.sample import Function, Modality, Sample, Term
from tests.unit.pretrain.conftest import VALIDATION
from tests.unit.pretrain.data.conftest import protein, write


def config_of(data, **settings) -> DataConfig:
    return DataConfig.model_validate({"path": str(data), "plan": {"samples": 4}, **settings})


def test_the_weights_are_the_checkpoints(trained_run, exported):
    stored = load_file(exported / "model.safetensors")
    found = checkpoint.latest(trained_run / "checkpoints")
    assert found is not None
    weights = found.weights()
    model = {name.removeprefix("model."): tensor for name, tensor in stored.items() if name.startswith("model.")}
    assert set(model) == {name for name in weights if not name.startswith("decoders.")}
    for name, tensor in model.items():
        assert torch.equal(tensor, weights[name]), name
    assert any(name.startswith("encoders.") for name in stored)
    assert not any("exp_avg" in name for name in stored)


def test_the_folder_says_what_it_is(exported):
    config = json.loads((exported / "config.json").read_text())
    assert (config["format"], config["step"], config["model"]["kind"]) == (1, 7, "amma")
    assert config["weights"]["bytes"] == (exported / "model.safetensors").stat().st_size
    stored = load_file(exported / "model.safetensors")
    count = sum(tensor.numel() for name, tensor in stored.items() if name.startswith("model."))
    assert config["parameters"]["model"] == count
    assert not [path for path in exported.parent.iterdir() if "partial" in path.name]


def test_the_card_is_plain_about_it(exported):
    card = (exported / "README.md").read_text()
    for part in [
        "trained on few",
        "license: apache-2.0",
        "Random weights:",
        "never trained",
        "| train | 32 | 31 | 31 | 1 | 0 |",
        "CC BY 4.0",
        "Note.",
        "| sequence – function | 0.350 | 0.300 | 0.400 | 0.250 | 40 | 17 |",
        "| reconstruction/sequence | 0.7500 |",
        "fourfold.load(",
        "Apache-2.0",
        "step 7",
    ]:
        assert part in card, part
    assert "/tmp" not in card


def test_the_card_says_which_checkpoint_it_is_of_and_tells_its_own_validation(exported):
    about = json.loads((exported / "config.json").read_text())
    assert about["checkpoint"] == {"chosen": "last", "best": None}
    assert "7 training steps; the run's newest checkpoint" in (exported / "README.md").read_text()
    records = tuple(
        {**VALIDATION, "step": step, "loss": loss, "losses": {"all": loss}} for step, loss in ((4, 1), (7, 2))
    )
    identity = {"data": {"name": "few", "manifest_sha256": "ef"}}
    for step, which, says in ((4, "best", "lowest validation loss (1.0000)"), (7, "7", "chosen by its step")):
        written = card(
            about | {"step": step, "checkpoint": {"chosen": which, "best": {"step": 4, "loss": 1.0}}},
            identity,
            {},
            History(validations=records),
        )
        assert says in written and f"Validation at step {step}," in written
    assert "No validation was logged" in card(about | {"step": 3}, identity, {}, History(validations=records))


def test_the_card_of_one_modality_names_the_sources_that_gave_it(exported):
    about = json.loads((exported / "config.json").read_text()) | {"modalities": ["structure"]}
    sources = [
        {"kind": "fasta", "path": "a.fasta", "records": {"entry": 3, "sequence": 3}, "licence": "CC BY 4.0"},
        {"kind": "structures", "path": "b.cif", "records": {"structure": 2, "sequence": 2}, "licence": "CC0"},
        {"kind": "mine", "path": "c", "records": "unknown", "licence": "MIT"},
    ]
    identity = {"data": {"name": "few", "manifest_sha256": "ef"}}
    records = ({**VALIDATION, "step": 7, "losses": {"residue": 2.0}},)
    written = card(about, identity, {"splits": {}, "sources": sources}, History(validations=records))
    assert "(structure), trained on few" in written and "A protein model of one modality: structure." in written
    assert "tags: [protein, structure, " in written and "Any of them may be absent" not in written
    assert "b.cif" in written and "| mine | c |" in written and "a.fasta" not in written
    assert "nothing that this model takes, and are left out here: 1." in written
    assert "came under CC0 and MIT" in written
    assert "Perplexity of hidden residues: 7.39" in written


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("best", "was not validated before its newest checkpoint"),
        ("lats", "'lats' is none of last, best and a step's number"),
        ("8", r"no whole checkpoint of step 8 \(8\); it has those of steps 7"),
        (-7, "is none of"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_told(trained_run, which, says):
    assert chosen(trained_run).step == chosen(trained_run, 7).step == chosen(trained_run, "7").step == 7
    with pytest.raises(ValueError, match=says):
        chosen(trained_run, which)


def test_centres_are_means_of_training_proteins(exported, samples):
    model = load(exported)
    centres = mean_embeddings(model, samples)
    found = model.embed(samples)
    for modality, centre in centres.items():
        rows = [found.alone[modality][i] for i in range(len(samples)) if modality in samples[i].modalities]
        assert np.abs(np.mean(rows, axis=0) - centre.numpy()).max() < 1e-6
    assert set(centres) == {modality for sample in samples for modality in sample.modalities}
    assert mean_embeddings(model, []) == {}


def test_a_protein_that_the_model_does_not_see_is_told_from_one_that_it_does(exported):
    model = load(exported)
    assert model.sees(Sample("A", sequence="MK"))
    assert not model.sees(Sample("B", function=Function((Term("GO:0005524", "IDA"),))))  # terms alone are no text


def test_centres_do_without_a_damaged_sample(tmp_path, caplog):
    write(tmp_path, {"train": [protein(f"P{i}", Modality.SEQUENCE) for i in range(5)]}, partitions=1)
    (shard,) = tmp_path.rglob("*.tar")
    data = bytearray(shard.read_bytes())
    data[700] ^= 1  # in the first sample
    shard.write_bytes(data)
    assert [sample.key for sample in training_samples(config_of(tmp_path))] == ["P1", "P2", "P3", "P4"]
    assert "centred without a damaged sample" in caplog.text and "P0" in caplog.text


def test_without_its_data_a_model_is_not_centred(exported, tmp_path, caplog):
    assert json.loads((exported / "config.json").read_text())["centred_on"] == 0  # the fixture's has no shards
    assert training_samples(config_of(tmp_path)) == []
    assert "compares them as they are" in caplog.text


def test_a_data_set_on_a_store_is_read_through_the_cache_of_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pretrain.export.default_folder", lambda: tmp_path / "default")
    monkeypatch.setattr("pretrain.data.loader.default_folder", lambda: tmp_path / "default")
    folder, place = tmp_path / "data", Place(f"memory://{uuid4().hex}/data")
    write(folder, {"train": [protein(f"P{i}", Modality.SEQUENCE) for i in range(9)]}, partitions=2)
    for path in folder.rglob("*.*"):
        place.write(path.relative_to(folder).as_posix(), path.read_bytes())
    wanted = [sample.key for sample in training_samples(config_of(folder))]
    config = config_of(place, cache=str(tmp_path / "own"))
    assert [sample.key for sample in training_samples(config)] == wanted and len(wanted) == 9
    shards = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.tar")}
    assert shards <= {path.name for path in (tmp_path / "own").iterdir()} and not (tmp_path / "default").exists()
    assert not caplog.text
    (tmp_path / "file").write_text("")  # a folder that cannot be here
    config = config_of(place, cache=str(tmp_path / "file" / "cache"))
    assert [sample.key for sample in training_samples(config)] == wanted
    assert shards <= {path.name for path in (tmp_path / "default").iterdir()}
    assert f"data.cache, {tmp_path}/file/cache, cannot be used here, so {tmp_path}/default is" in caplog.text


def test_bfloat16_halves_the_file(trained_run, exported, tmp_path):
    half = export(trained_run, tmp_path / "half", dtype="bfloat16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, exported)]
    assert sizes[0] < 0.6 * sizes[1]
    assert json.loads((half / "config.json").read_text())["weights"]["dtype"] == "bfloat16"


def test_twice_gives_the_same_bytes(trained_run, exported, tmp_path):
    again = export(trained_run, tmp_path / "again")
    names = sorted(path.relative_to(exported) for path in exported.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name


def test_nothing_is_overwritten(trained_run, exported):
    before = (exported / "config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="never overwrites"):
        export(trained_run, exported)
    assert (exported / "config.json").stat().st_mtime_ns == before


def test_a_broken_checkpoint_is_no_checkpoint(trained_run, tmp_path, caplog):
    run = shutil.copytree(trained_run, tmp_path / "run")
    file = next((run / "checkpoints").rglob("rank-00000.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no checkpoint that is committed and whole"):
        export(run, tmp_path / "out")
    assert "broken" in caplog.text and not (tmp_path / "out").exists()


def test_missing_runs_and_unknown_types_are_named(trained_run, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        export(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no checkpoint"):
        export(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="float16"):
        export(trained_run, tmp_path / "out", dtype="float16")  # type: ignore[arg-type]


def test_other_encoders_than_in_training_are_refused(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    path = next((run / "checkpoints").rglob("checkpoint.json"))
    about = json.loads(path.read_text())
    about["state"]["identity"]["encoders"]["structure"]["sha256"] = "00" * 32
    text = json.dumps(about, indent=1).encode()
    path.write_bytes(text)
    commit = path.with_name("COMMIT.json")
    files = json.loads(commit.read_text())
    files["files"]["checkpoint.json"] = asdict(disk.Written(len(text), hashlib.sha256(text).hexdigest()))
    commit.write_text(json.dumps(files, indent=1))
    with pytest.raises(ValueError, match=r"the structure encoder was .* in training"):
        export(run, tmp_path / "out")


def test_neither_export_nor_loading_needs_deepspeed_or_ray(trained_run, tmp_path):
    """In a process where importing either is an error."""
    program = (
        "import sys\n"
        "sys.modules['deepspeed'] = sys.modules['ray'] = None\n"
        "from pathlib import Path\n"
        "from pretrain.export import export\n"
        "from pretrain.inference import load\n"
        "from pretrain.sample import Sample\n"
        f"folder = export(Path({str(trained_run)!r}), Path({str(tmp_path / 'out')!r}))\n"
        "print(load(folder).embed([Sample('a', sequence='MKV')]).fused.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 24)"
