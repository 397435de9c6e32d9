"""ESM-2: the published arithmetic, whatever the batch; the files it is read from; what it refuses."""

import argparse
import json
from pathlib import Path

import esm
import pytest
import torch
from esm.model.esm2 import ESM2
from torch import Tensor

from pretrain.batch import Sequences, offsets_of
from pretrain.config import validate
from pretrain.encoders.esm import ALPHABET, HIDDEN, MASK, Esm, EsmConfig

LAYERS, WIDTH, HEADS = 3, 64, 4
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "", "ACDEFGHIKLMNPQRSTVWYXBUZO" * 9, "A", "MSDERVV"]
PRESENT = [protein for protein in PROTEINS if protein]


def sequences(proteins: list[str]) -> Sequences:
    letters = torch.tensor([ord(letter) for protein in proteins for letter in protein], dtype=torch.uint8)
    return Sequences(letters, offsets_of(torch.tensor([len(protein) for protein in proteins], dtype=torch.int64)))


def tokens(proteins: list[str]) -> Tensor:
    """Padded as fair-esm's own converter does it."""
    convert = esm.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    return convert([(str(i), protein) for i, protein in enumerate(proteins)])[2]


def residues(padded: Tensor) -> Tensor:
    return torch.cat([padded[i, 1 : 1 + len(protein)] for i, protein in enumerate(PRESENT)])


@pytest.fixture(scope="module")
def theirs() -> ESM2:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ESM2(LAYERS, WIDTH, HEADS, esm.Alphabet.from_architecture("ESM-1b")).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms: their defaults would hide a mistaken name
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def file(theirs: ESM2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.pt` file with the names and the Namespace of the published ones."""
    path = tmp_path_factory.mktemp("fair") / "esm2_tiny.pt"
    prefix = {True: "encoder.", False: "encoder.sentence_encoder."}
    model = {prefix[name.startswith("lm_head")] + name: tensor for name, tensor in theirs.state_dict().items()}
    about = {"encoder_layers": LAYERS, "encoder_embed_dim": WIDTH, "encoder_attention_heads": HEADS}
    torch.save({"cfg": {"model": argparse.Namespace(**about, token_dropout=True)}, "model": model}, path)
    return path


@pytest.fixture(scope="module")
def ours(file: Path) -> Esm:
    return Esm.build(EsmConfig(weights=str(file))).eval().requires_grad_(False)


def test_the_alphabet_is_theirs() -> None:
    assert list(ALPHABET) == esm.Alphabet.from_architecture("ESM-1b").all_toks


def test_logits_and_hidden_states_equal_fair_esm(theirs: ESM2, ours: Esm) -> None:
    with torch.no_grad():
        found = theirs(tokens(PRESENT), repr_layers=[LAYERS])
    expected, hidden = residues(found["logits"]), residues(found["representations"][LAYERS])
    assert (ours.logits(sequences(PROTEINS)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    got = ours(sequences(PROTEINS))
    torch.testing.assert_close(got.values, hidden, atol=1e-5 * float(hidden.abs().max()), rtol=0)
    assert got.positions.tolist() == [i for protein in PROTEINS for i in range(len(protein))]
    assert got.lengths.tolist() == [len(protein) for protein in PROTEINS]


def test_tiers_are_hidden_states_of_evenly_spaced_layers(theirs: ESM2, file: Path) -> None:
    """Earlier ones brought to mean 0 and variance 1, the last as it is without tiers."""
    encoder = Esm.build(EsmConfig(weights=str(file), tiers=LAYERS)).eval().requires_grad_(False)
    assert (encoder.width, encoder.depth) == (LAYERS * WIDTH, LAYERS)
    with torch.no_grad():
        found = theirs(tokens(PRESENT), repr_layers=list(range(1, LAYERS + 1)))["representations"]
    parts = encoder(sequences(PROTEINS)).values.split(WIDTH, 1)
    for layer, part in enumerate(parts, 1):
        rows = residues(found[layer])
        wanted = rows if layer == LAYERS else torch.nn.functional.layer_norm(rows, (WIDTH,))
        torch.testing.assert_close(part, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
    with pytest.raises(ValueError, match=rf"tiers = {LAYERS + 1} must divide its {LAYERS} layers"):
        Esm.build(EsmConfig(weights=str(file), tiers=LAYERS + 1))


def test_what_is_hidden_is_hidden_as_in_fair_esm(theirs: ESM2, ours: Esm) -> None:
    """Masked tokens are zero vectors, and the others grow by what is missing, each sequence by its own share."""
    given, padded = sequences(PROTEINS), tokens(PRESENT)
    hidden = torch.zeros(len(given.letters), dtype=torch.bool)
    hidden[::5] = hidden[1::7] = True
    begin = 0
    for i, protein in enumerate(PRESENT):
        rows = hidden[begin : begin + len(protein)]
        padded[i, 1 : 1 + len(protein)][rows] = MASK
        begin += len(protein)
    masked = Sequences(given.letters.masked_fill(hidden, HIDDEN), given.offsets)
    with torch.no_grad():
        expected = residues(theirs(padded)["logits"])
    assert (ours.logits(masked) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours.logits(given) - expected).abs().max() > 1e-2 * expected.abs().max()


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
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        mask_token_id=32,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = EsmModel(about, add_pooling_layer=False) if headless else EsmForMaskedLM(about)
    model.eval().save_pretrained(tmp_path)
    ours = Esm.build(EsmConfig(weights=str(tmp_path))).eval()
    padded = tokens(PRESENT)
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=padded.ne(1).long())
        expected = residues(found.last_hidden_state if headless else found.logits)
        got = ours(sequences(PROTEINS)).values if headless else ours.logits(sequences(PROTEINS))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    if headless:
        with pytest.raises(ValueError, match="no language-model head"):
            ours.logits(sequences(PROTEINS))


def test_a_protein_does_not_depend_on_its_batch_mates(ours: Esm) -> None:
    together = ours(sequences(PROTEINS))
    for b, protein in enumerate(PROTEINS):
        alone = ours(sequences([protein])).values
        own = together.values[together.offsets[b] : together.offsets[b + 1]]
        torch.testing.assert_close(own, alone, atol=1e-6, rtol=0)


def test_letters_it_does_not_know_are_x(ours: Esm) -> None:
    torch.testing.assert_close(ours(sequences(["AJ*k"])).values, ours(sequences(["AXXX"])).values, atol=0, rtol=0)


@pytest.mark.parametrize("proteins", [[], ["", ""]])
def test_no_rows_give_no_rows(ours: Esm, proteins: list[str]) -> None:
    got = ours(sequences(proteins))
    assert got.values.shape == (0, WIDTH) and len(got.offsets) == len(proteins) + 1 and len(got.positions) == 0
    assert ours.logits(sequences(proteins)).shape == (0, len(ALPHABET))


def test_a_sequence_longer_than_the_maximum_is_our_mistake() -> None:
    encoder = Esm.build(EsmConfig(weights="random", layers=1, width=8, heads=2, max_length=5))
    with pytest.raises(AssertionError, match="6 residues, 5 allowed"):
        encoder(sequences(["AAAAAA"]))


def test_random_weights_follow_their_seed_alone_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    def built(seed: int) -> Tensor:
        encoder = Esm.build(EsmConfig(weights="random", seed=seed, layers=2, width=16, heads=2))
        return torch.cat([parameter.flatten() for parameter in encoder.parameters()])

    first = built(1)
    assert "random weights (seed 1)" in caplog.text and caplog.records[0].levelname == "WARNING"
    torch.randn(3)
    state = torch.random.get_rng_state()
    assert torch.equal(built(1), first) and not torch.equal(built(2), first)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not ours to use"


def test_gradients_reach_every_parameter_of_an_unfrozen_one() -> None:
    encoder = Esm.build(EsmConfig(weights="random", layers=2, width=16, heads=2))
    encoder.logits(sequences(PROTEINS)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_what_is_wrong_with_weights_is_said(file: Path, tmp_path: Path) -> None:
    def build(**fields: object) -> Esm:
        return Esm.build(validate(EsmConfig, fields, "test"))

    with pytest.raises(ValueError, match=r'looked for weights at .*nowhere.pt.*`weights = "random"`'):
        build(weights=str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match="'no_such_package', which is not installed"):
        build(weights="package:no_such_package/model")
    with pytest.raises(ValueError, match=r"asks for width = 320, .* has 64"):
        build(weights=str(file), width=320)
    with pytest.raises(ValueError, match="need `layers`, `width` and `heads`"):
        build(weights="random")
    with pytest.raises(ValueError, match="must be an even number per head"):
        build(weights="random", layers=1, width=9, heads=3)
    (tmp_path / "config.json").write_text(
        '{"model_type": "esm", "position_embedding_type": "relative_key", "vocab_size": 33, "layer_norm_eps": 1e-5}'
    )
    with pytest.raises(ValueError, match="no ESM-2 or ESM-1b: position_embedding_type = 'relative_key'"):
        build(weights=str(tmp_path))
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="does not load as a PyTorch weights file"):
        build(weights=str(truncated))
    config = {"model_type": "esm", "position_embedding_type": "rotary", "vocab_size": 33, "layer_norm_eps": 1e-5}
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    with pytest.raises(ValueError, match=r"has no \.safetensors file"):
        build(weights=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="does not load as a safetensors file"):
        build(weights=str(tmp_path))
    old = tmp_path / "esm1b.pt"
    torch.save({"args": argparse.Namespace(arch="roberta_large"), "model": {}}, old)
    with pytest.raises(
        ValueError, match=r"no ESM-2 or ESM-1b file of fair-esm .no 'layers'; its keys are .'args', 'mod"
    ):
        build(weights=str(old))
    torch.save({"args": argparse.Namespace(arch="protein_bert_base"), "model": {}}, old)
    with pytest.raises(
        ValueError, match=r"esm1b\.pt is of fair-esm's architecture 'protein_bert_base'; those of ESM-2"
    ):
        build(weights=str(old))
    data = torch.load(file, weights_only=False)
    del data["model"]["encoder.sentence_encoder.layers.1.fc1.bias"]
    torch.save(data, old)
    with pytest.raises(ValueError, match=r"layers\.1\.up\.bias, absent there and \(256,\)"):
        build(weights=str(old))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"cfg": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(
        ValueError, match=r"is no file of tensors and plain values; .* Save the tensors as \.safetensors$"
    ):
        Esm.build(EsmConfig(weights=str(tmp_path / "trap.pt")))
    assert not (tmp_path / "sprung").exists()
