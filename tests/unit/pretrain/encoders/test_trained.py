"""The small encoders that the package brings: they load, are what their cards say, and have learnt something."""

import json
import logging
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fourfold
from pretrain.batch import Sequences
from pretrain.data.collate import collate
from pretrain.encoders.bundle import Encoders, EncodersConfig, as_asked
from pretrain.encoders.esm import HIDDEN, Esm, tokens_of
from pretrain.encoders.letters import KINDS as LETTERS
from pretrain.encoders.letters import kinds
from pretrain.layers.residues import UNKNOWN
from pretrain.sample import Modality, Sample, letter_codes

FOLDER = Path(fourfold.__file__).parent / "pretrain" / "encoders" / "trained"
SAMPLE = Path(fourfold.__file__).parent / "data_prep" / "sample"
KINDS = {"esm": Modality.SEQUENCE, "gearnet": Modality.STRUCTURE, "gvp": Modality.STRUCTURE}
MOST = 20e6  # bytes of all together


@pytest.fixture(scope="module")
def proteins() -> list[Sample]:
    paths = sorted((SAMPLE / "structures").glob("*_*.gz"))[:24]
    return [one for path in paths for one in fourfold.read(path)]


def test_there_are_these_and_they_are_small() -> None:
    assert {path.name for path in FOLDER.iterdir()} == KINDS.keys()
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < MOST


@pytest.mark.parametrize("name", KINDS)
def test_each_embeds_and_its_card_says_what_it_saw(name: str, proteins: list[Sample]) -> None:
    model = fourfold.load(FOLDER / name)
    assert model.modalities == (KINDS[name],) and model.config["weights"]["dtype"] == "bfloat16"
    found = model.embed(proteins)
    assert found.present[KINDS[name]].all() and found.fused.std(0).min() > 0
    card = (FOLDER / name / "README.md").read_text()
    for part in ("pack-held", "Perplexity of hidden residues: ", "CC BY 4.0", "Apache-2.0", "| train | "):
        assert part in card, part
    assert "random weights" not in card.lower() and "/tmp" not in card + json.dumps(model.config)


@pytest.mark.parametrize("name", KINDS)
def test_a_configuration_names_it_by_package_and_no_more(name: str, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"kind": name, "weights": f"package:pretrain/encoders/trained/{name}"}
    with caplog.at_level(logging.WARNING):
        config = EncodersConfig.model_validate({KINDS[name].value: asked})
        encoders = Encoders.build(config)
        spelt = Encoders.build(EncodersConfig.model_validate(as_asked(config)))  # as a checkpoint holds it
    assert not caplog.records and spelt.identity() == encoders.identity()
    inside = fourfold.load(FOLDER / name).encoders.state_dict()
    assert encoders.state_dict().keys() == inside.keys()
    assert all(torch.equal(tensor, inside[key]) for key, tensor in encoders.state_dict().items())


@pytest.mark.parametrize(("name", "field", "value"), [("gvp", "nearest", 30), ("gearnet", "hidden", 512)])
def test_what_it_is_not_is_refused_also_where_that_is_the_default(name: str, field: str, value: int) -> None:
    asked = {"kind": name, "weights": f"package:pretrain/encoders/trained/{name}", field: value}
    with pytest.raises(ValueError, match=rf"the configuration asks for {field} = {value}, .* has \d+"):
        Encoders.build(EncodersConfig.model_validate({"structure": asked}))


def test_how_much_is_seen_and_how_deep_is_the_configurations_to_say() -> None:
    asked = {"kind": "esm", "weights": "package:pretrain/encoders/trained/esm", "max_length": 1022, "tiers": 3}
    encoders = Encoders.build(EncodersConfig.model_validate({"sequence": asked}))
    assert encoders.spec().sequence_max == 1022 and encoders.widths()[Modality.SEQUENCE] == 3 * 192


def test_the_language_model_tells_hidden_residues_better_than_their_frequencies() -> None:
    encoder = Encoders.build(
        EncodersConfig.model_validate({"sequence": {"weights": "package:pretrain/encoders/trained/esm"}})
    ).sequence
    assert isinstance(encoder, Esm)
    proteins = fourfold.read(SAMPLE / "uniprot" / "more.fasta")
    letters = [torch.from_numpy(letter_codes((one.sequence or "")[:512]).copy()) for one in proteins]
    counts = Counter(torch.cat(letters).tolist())
    generator = torch.Generator().manual_seed(0)
    model = guess = asked = 0.0
    for given in letters:
        hidden = torch.rand(len(given), generator=generator) < 0.15
        shown = torch.where(hidden, torch.full_like(given, HIDDEN), given)
        with torch.no_grad():
            told = encoder.logits(Sequences(shown, torch.tensor([0, len(given)]))).log_softmax(1)
        model -= float(told[hidden].gather(1, tokens_of(given[hidden]).unsqueeze(1)).sum())
        guess -= sum(math.log(counts[letter] / counts.total()) for letter in given[hidden].tolist())
        asked += float(hidden.sum())
    assert math.exp(model / asked) < 0.98 * math.exp(guess / asked)  # the sample's own


@pytest.mark.parametrize("name", ["gearnet", "gvp"])
def test_the_graph_networks_tell_hidden_letters_better_than_untrained_ones(name: str, proteins: list[Sample]) -> None:
    """By a small network over their rows, of proteins that it was not trained on."""
    weights = f"package:pretrain/encoders/trained/{name}"
    trained = Encoders.build(EncodersConfig.model_validate({"structure": {"kind": name, "weights": weights}}))
    as_large = {**trained.structure.config.model_dump(), "weights": "random"}  # type: ignore[union-attr]
    untrained = Encoders.build(EncodersConfig.model_validate({"structure": as_large}))
    perplexity = [_of_hidden_letters(encoders, proteins) for encoders in (trained, untrained)]
    assert perplexity[0] < 0.97 * perplexity[1]


def _of_hidden_letters(encoders: Encoders, proteins: list[Sample]) -> float:
    """Every letter is hidden once, with a sixth of its chain's; two thirds of the proteins train the network."""
    rows, letters = [], []
    for i, one in enumerate(proteins):
        given = collate([one], [0], 0, 0, encoders.spec()).structure
        order = torch.randperm(len(given.letters), generator=torch.Generator().manual_seed(i))
        found = torch.zeros(len(order), encoders.structure.width)  # type: ignore[union-attr]
        for hidden in order.chunk(6):
            shown = given.letters.index_fill(0, hidden, UNKNOWN)
            with torch.no_grad():
                found[hidden] = encoders.structure(replace(given, letters=shown)).values[hidden]  # type: ignore[misc]
        rows.append(found)
        letters.append(kinds(given.letters))
    cut = 2 * len(proteins) // 3
    (seen, asked), (answers, wanted) = ((torch.cat(each[:cut]), torch.cat(each[cut:])) for each in (rows, letters))
    seen, asked = ((each - seen.mean(0)) / (seen.std(0) + 1e-6) for each in (seen, asked))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(seen.shape[1], 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, LETTERS))
        optimizer, best = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1.0), math.inf
        for _ in range(20):
            for some in torch.randperm(len(seen)).split(128):
                optimizer.zero_grad()
                cross_entropy(network.train()(seen[some]), answers[some]).backward()
                optimizer.step()
            with torch.no_grad():
                best = min(best, cross_entropy(network.eval()(asked), wanted).exp().item())
    return best
