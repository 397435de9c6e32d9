"""Inference: a protein's embedding is its own affair; what cannot be read is refused by name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import fourfold
from pretrain.embeddings import Embeddings
from pretrain.export import export
from pretrain.inference import load
from pretrain.sample import Function, Modality, Sample, Term, Text

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


@pytest.fixture(scope="module")
def embeddings(model, samples):
    return model.embed(samples, per_residue=True)


def test_a_protein_alone_is_the_same_as_in_a_batch(model, samples, embeddings):
    """The contract: 1e-6 in float32, whatever stands beside it and however the batch is cut."""
    for i, sample in enumerate(samples):
        alone = model.embed([sample], per_residue=True)
        assert np.abs(alone.fused[0] - embeddings.fused[i]).max() <= 1e-6
        for modality in Modality:
            assert alone.present[modality][0] == embeddings.present[modality][i]
            assert np.abs(alone.alone[modality][0] - embeddings.alone[modality][i]).max() <= 1e-6
        assert np.abs(alone.residues.of(0) - embeddings.residues.of(i)).max(initial=0) <= 1e-6
    cut = model.embed(samples[::-1], batch=40)
    assert cut.keys == embeddings.keys[::-1]
    assert np.abs(cut.fused[::-1] - embeddings.fused).max() <= 1e-6


def test_nothing_is_drawn(model, samples, embeddings):
    torch.manual_seed(1)
    again = model.embed(samples, per_residue=True)
    assert np.array_equal(again.fused, embeddings.fused)
    assert again.residues and embeddings.residues and np.array_equal(again.residues.values, embeddings.residues.values)


def test_first_structure_and_first_text_are_taken(model, samples, embeddings):
    i = next(i for i, s in enumerate(samples) if len(s.structures) > 1 and s.function)
    sample = samples[i]
    first = replace(sample, structures=sample.structures[:1], function=Function(texts=sample.function.texts[:1]))
    other = replace(sample, structures=sample.structures[1:])
    found = model.embed([first, replace(other, key="other")])
    assert np.abs(found.fused[0] - embeddings.fused[i]).max() <= 1e-6
    assert np.abs(found.alone[STRUCTURE][1] - embeddings.alone[STRUCTURE][i]).max() > 1e-3


def test_presence_and_shape(samples, embeddings):
    for i, sample in enumerate(samples):
        has = {modality for modality in Modality if embeddings.present[modality][i]}
        assert has == set(sample.modalities)
        length = len(sample.sequence or "") or (len(sample.structures[0]) if sample.structures else 0)
        assert embeddings.residues.of(i).shape == (length, embeddings.fused.shape[1])
        for modality in Modality:
            assert bool(np.any(embeddings.alone[modality][i])) == (modality in has)


def test_residues_of_a_structure_keep_its_positions(samples, embeddings):
    i = next(i for i, s in enumerate(samples) if s.structures and not s.sequence)
    start, stop = embeddings.residues.offsets[i : i + 2]
    assert embeddings.residues.positions[start:stop].tolist() == samples[i].structures[0].residue.tolist()


def test_embeddings_go_to_disk_and_back(tmp_path, model, samples, embeddings):
    embeddings.save(tmp_path / "e.safetensors")
    found = Embeddings.load(tmp_path / "e.safetensors")
    assert found.residues and np.array_equal(found.residues.values, embeddings.residues.values)
    assert model.search(samples[3], found) == model.search(samples[3], embeddings)


def test_long_proteins_are_cut_and_named(model, caplog):
    limit = model.encoders.spec().sequence_max
    long, short = Sample("LONG1", sequence="MKV" * limit), Sample("SHORT1", sequence=("MKV" * limit)[:limit])
    found = model.embed([long, short], per_residue=True)
    assert found.truncated == ("LONG1",)
    assert "LONG1" in caplog.text and "SHORT1" not in caplog.text and f"first {limit:,}" in caplog.text
    assert np.abs(found.fused[0] - found.fused[1]).max() <= 1e-6
    assert len(found.residues.of(0)) == limit


def test_training_crops_do_not_cut_here(model, embeddings, samples, caplog):
    """A model is trained on windows; an embedding is of the whole protein."""
    assert embeddings.truncated == () and not caplog.text
    longest = max((s for s in samples if s.sequence), key=lambda s: len(s.sequence or ""))
    assert len(embeddings.residues.of(samples.index(longest))) == len(longest.sequence)


def test_a_protein_finds_itself(model, samples, embeddings):
    for sample in samples:
        best = model.search(sample, embeddings, k=3)
        assert len(best) == 3 and best[0].key == sample.key
        assert best[0].score == pytest.approx(1, abs=1e-5) and best[1].score <= best[0].score


def test_a_text_is_compared_with_what_proteins_are(model, samples, embeddings):
    hits = model.search("binds ion 3", embeddings, k=100)
    bodies = {s.key for s in samples if set(s.modalities) != {FUNCTION}}
    assert {hit.key for hit in hits} == bodies
    query = Sample("query", function=Function(texts=(Text("binds ion 3", "query"),)))
    among_texts = model.search(query, embeddings, k=100, by=[FUNCTION])
    assert among_texts[0].key == "P003" and among_texts[0].score == pytest.approx(1, abs=1e-5)


def test_a_model_without_function_says_that_it_reads_no_texts(model, embeddings, monkeypatch):
    monkeypatch.setattr(model.model, "modalities", (SEQUENCE, STRUCTURE))
    with pytest.raises(ValueError, match="reads no texts, only sequence, structure"):
        model.search("binds zinc", embeddings)


def test_attention_from_function_to_residues(model, samples):
    whole = next(sample for sample in samples if set(sample.modalities) == {SEQUENCE, STRUCTURE, FUNCTION})
    found = model.attention(whole)
    assert found.values.shape == (min(30, len(whole.sequence)), model.model.config.depth)
    assert (found.values > 0).all() and (found.values.sum(0) < 1).all()
    other = replace(whole, function=Function(texts=(Text("folds something else", "a"),)))
    assert not np.allclose(model.attention(other).values, found.values)
    with pytest.raises(ValueError, match="Q has no function; attention from function to sequence needs both"):
        model.attention(Sample("Q", whole.sequence))


def test_attention_needs_a_model_that_joins_both(model, samples, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "modalities", (SEQUENCE, STRUCTURE))
        with pytest.raises(ValueError, match=r"kind amma that has both .* amma \(reconstruction\) with seq"):
            model.attention(samples[0])
    config = model.model.config.model_copy(update={"variant": "contrastive"})
    monkeypatch.setattr(model.model, "config", config)
    with pytest.raises(ValueError, match=r"learnt by reconstruction; this one is amma \(contrastive\)"):
        model.attention(samples[0])


@pytest.mark.parametrize("query, message", [("  ", "is empty"), ("MKVLAAGIVGLCAKAYMKVLAAG", "looks like a sequence")])
def test_texts_that_are_none(model, embeddings, query, message):
    with pytest.raises(ValueError, match=message):
        model.search(query, embeddings)


def test_embeddings_of_another_model_are_refused(model, embeddings):
    with pytest.raises(ValueError, match="their spaces differ"):
        model.search("zinc", replace(embeddings, model="00" * 32))


def test_what_cannot_be_embedded_is_named(model, samples):
    with pytest.raises(ValueError, match="no proteins"):
        model.embed([])
    with pytest.raises(ValueError, match=r"P001 come more than once"):
        model.embed([samples[1], samples[2], samples[1]])
    terms_only = Sample("TERMS", function=Function(terms=(Term("GO:0005524", "IDA"),)))
    with pytest.raises(ValueError, match=r"TERMS: nothing that this model sees"):
        model.embed([samples[1], terms_only])


def test_embeddings_that_are_not_finite_are_refused(exported, samples):
    model = load(exported)
    with torch.no_grad():
        next(model.model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"P001.*not finite"):
        model.embed(samples[1:2])


def test_what_is_no_protein_is_named(exported):
    model = load(exported)
    says = r"is no protein \(Sample\); fourfold\.read makes proteins of a file"
    with pytest.raises(ValueError, match=says):
        model.embed("proteins.fasta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=says):
        model.attention("proteins.fasta")  # type: ignore[arg-type]


def damage(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / "config.json").unlink(), "is no exported model"),
        (lambda f: (f / "config.json").write_text("{"), "is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "is damaged"),
        (
            lambda f: ((f / "model.safetensors").unlink(), (f / "log.jsonl").touch()),
            "is a run; name OUT, the model that",
        ),
        (lambda f: damage(f, lambda c: c.pop("weights")), "is damaged"),
        (lambda f: damage(f, lambda c: c.update(format=2)), "format 2; .*update it"),
        (lambda f: damage(f, lambda c: c["model"].update(depht=3)), "did you mean 'depth'"),
        (lambda f: damage(f, lambda c: c["model"].update(depth=3)), "do not fit config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "SHA-256 differs"),
    ],
)
def test_folders_that_are_no_model_are_named(exported, tmp_path, change, message):
    folder = shutil.copytree(exported, tmp_path / "model")
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(ValueError, match="is no exported model"):
        load(tmp_path / "nowhere")


def test_a_model_stored_in_bfloat16_loads_and_is_near(trained_run, tmp_path, samples, embeddings):
    half = load(export(trained_run, tmp_path / "half", dtype="bfloat16")).embed(samples)
    assert half.fused.dtype == np.float32 and half.model != embeddings.model
    cosine = (half.fused * embeddings.fused).sum(1) / np.linalg.norm(half.fused, axis=1)
    assert (cosine / np.linalg.norm(embeddings.fused, axis=1) > 0.99).all()


def test_the_front_door_takes_a_folder_and_a_file(model, exported, tmp_path):
    path = tmp_path / "proteins.fasta"
    path.write_text(">sp|P12345|X\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMSTNPKPQRKTKRNTNRRPQDVKFPGG\n")
    by_folder = fourfold.embed(exported, path)
    assert by_folder.keys == ("P12345", "b")
    own = [Sample("P12345", sequence="MKTAYIAKQRQISFVKSHFSRQ")]
    assert np.abs(fourfold.embed(model, own).fused[0] - by_folder.fused[0]).max() <= 1e-6
