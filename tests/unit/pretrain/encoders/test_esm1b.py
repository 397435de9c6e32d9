"""ESM-1b: learned positions and a norm before the layers, as in fair-esm and transformers; ESM-2 stays as it was."""

import argparse
from pathlib import Path
from typing import Any

import esm
import pytest
import torch
from esm.model.esm1 import ProteinBertModel
from esm.pretrained import load_model_and_alphabet_core
from torch import Tensor

from pretrain.batch import Sequences
from pretrain.encoders.bundle import Encoders, EncodersConfig
from pretrain.encoders.esm import HIDDEN, MASK, Esm, EsmConfig
from pretrain.sample import Modality
from tests.unit.pretrain.encoders.test_esm import HEADS, LAYERS, PRESENT, PROTEINS, WIDTH, residues, sequences, tokens

PLACES = 240
KINDS = {"esm1b": (True, True), "esm1v": (False, True), "no-dropout": (True, False)}  # norm before, token dropout


def saved(path: Path, norm_before: bool, token_dropout: bool) -> Path:
    """A random model under the names and the Namespace of the published file, its tied matrices stored once."""
    sizes = {"layers": LAYERS, "embed_dim": WIDTH, "ffn_embed_dim": 4 * WIDTH, "attention_heads": HEADS}
    about = {"arch": "roberta_large", "max_positions": PLACES, "token_dropout": token_dropout}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        asked = argparse.Namespace(**about, **sizes, emb_layer_norm_before=norm_before)
        model = ProteinBertModel(asked, esm.Alphabet.from_architecture("ESM-1b"))
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms: their defaults would hide a mistaken name
                torch.nn.init.normal_(parameter, std=0.3)
        for name, parameter in model.named_parameters():
            if name in ("embed_tokens.weight", "embed_positions.weight"):  # nor may padding's rows be 0
                torch.nn.init.normal_(parameter)
    prefix = {True: "encoder.", False: "encoder.sentence_encoder."}
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("contact_head")}
    named = {prefix[name.startswith("lm_head")] + name: tensor for name, tensor in state.items()}
    args = argparse.Namespace(**about, **{f"encoder_{name}": value for name, value in sizes.items()})
    torch.save({"args": args, "model": named}, path)
    return path


def loaded(path: Path) -> Any:
    """As fair-esm itself loads the file."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return load_model_and_alphabet_core(path.stem, torch.load(path, weights_only=True))[0].eval()


def build(path: Path, **fields: Any) -> Esm:
    return Esm.build(EsmConfig(weights=str(path), max_length=PLACES - 2, **fields)).eval().requires_grad_(False)


def masked() -> tuple[Sequences, Tensor]:
    """The proteins with some residues hidden, ours and padded as theirs."""
    given, padded = sequences(PROTEINS), tokens(PRESENT)
    hidden = torch.zeros(len(given.letters), dtype=torch.bool)
    hidden[::5] = hidden[1::7] = True
    for i, (protein, rows) in enumerate(zip(PRESENT, hidden.split([len(each) for each in PRESENT]), strict=True)):
        padded[i, 1 : 1 + len(protein)][rows] = MASK
    return Sequences(given.letters.masked_fill(hidden, HIDDEN), given.offsets), padded


def near(got: Tensor, expected: Tensor) -> None:
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Regression weights not found")
def test_features_and_logits_equal_fair_esm(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / f"{kind}.pt", *KINDS[kind])
    theirs, ours = loaded(path), build(path)
    for given, padded in ((sequences(PROTEINS), tokens(PRESENT)), masked()):
        with torch.no_grad():
            found = theirs(padded, repr_layers=[LAYERS])
        near(ours.logits(given), residues(found["logits"]))
        near(ours(given).values, residues(found["representations"][LAYERS]))
    assert (ours.config.places, ours.config.norm_before, ours.config.token_dropout) == (PLACES, *KINDS[kind])


@pytest.mark.parametrize("headless", [False, True])
def test_a_transformers_folder_gives_what_transformers_gives(tmp_path: Path, headless: bool) -> None:
    from transformers import EsmConfig as TheirConfig
    from transformers import EsmForMaskedLM, EsmModel

    about = TheirConfig(
        vocab_size=33,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        position_embedding_type="absolute",
        max_position_embeddings=PLACES + 2,
        token_dropout=True,
        emb_layer_norm_before=True,
        layer_norm_eps=1e-5,
        mask_token_id=32,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = EsmModel(about, add_pooling_layer=False) if headless else EsmForMaskedLM(about)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(tmp_path)
    ours = build(tmp_path)
    for given, padded in ((sequences(PROTEINS), tokens(PRESENT)), masked()):
        with torch.no_grad():
            found = model(input_ids=padded, attention_mask=padded.ne(1).long())
        if headless:
            near(ours(given).values, residues(found.last_hidden_state))
        else:
            near(ours.logits(given), residues(found.logits))


def test_the_table_ends_where_the_published_one_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "esm1b.pt", *KINDS["esm1b"])
    letters = "ACDEFGHIKLMNPQRSTVWY" * 12
    assert build(path)(sequences([letters[: PLACES - 2]])).values.isfinite().all()
    with pytest.raises(
        ValueError, match=r"max_length = 1022, BOS and EOS exceed the 240 positions .*; 238 are the most"
    ):
        Esm.build(EsmConfig(weights=str(path)))


def test_a_protein_does_not_depend_on_its_batch_mates_and_none_give_no_rows(tmp_path: Path) -> None:
    ours = build(saved(tmp_path / "esm1b.pt", *KINDS["esm1b"]))
    together = ours(sequences(PROTEINS))
    for b, protein in enumerate(PROTEINS):
        own = together.values[together.offsets[b] : together.offsets[b + 1]]
        torch.testing.assert_close(own, ours(sequences([protein])).values, atol=1e-6, rtol=0)
    assert ours(sequences([])).values.shape == ours(sequences(["", ""])).values.shape == (0, WIDTH)


def test_settings_name_what_weights_do_not_show_and_those_of_esm2_stay() -> None:
    def identity(**fields: Any) -> dict[str, Any]:
        config = EncodersConfig(sequence=EsmConfig(weights="some.pt", layers=2, width=16, heads=2, **fields))
        assert config.sequence is not None
        encoder = Esm(config.sequence)
        for parameter in encoder.parameters():
            torch.nn.init.constant_(parameter, 0.5)
        return Encoders(config, {Modality.SEQUENCE: encoder}).identity()["sequence"]

    before = identity()  # what it was before there was ESM-1b
    assert before["sha256"] == "c8762bfde1be19f3c2d9b05a77eb778cecf4bfc22f1ef515c191a398668fda6d"
    assert before["features"] == "esm-96745d881c63a4c3"
    others = [identity(places=1024), identity(norm_before=True), identity(places=1024, norm_before=True)]
    assert len({each["features"] for each in (before, *others)}) == 4


def test_random_weights_can_have_its_geometry_and_every_parameter_learns() -> None:
    config = EsmConfig(weights="random", layers=2, width=16, heads=2, places=1024, norm_before=True)
    encoder = Esm.build(config)
    encoder.logits(sequences(PROTEINS)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())
    copy = Esm.skeleton(encoder.config, Path())
    copy.load_state_dict(encoder.state_dict())
    assert torch.equal(copy(sequences(PROTEINS)).values, encoder(sequences(PROTEINS)).values)
    swapped = encoder(sequences(["AC", "CA"])).values
    assert not torch.allclose(swapped[0], swapped[3], atol=1e-3), "positions matter"
