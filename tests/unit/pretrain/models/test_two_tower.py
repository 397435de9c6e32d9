"""Two towers: losses by hand, what each may see, what unpaired proteins train, and a step however it is cut."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, normalize

from pretrain.batch import Batch, Embeddings, Features, Latents, Losses, Sequences
from pretrain.encoders.bundle import Encoders, EncodersConfig, to_train
from pretrain.encoders.esm import ALPHABET, HIDDEN, Esm, tokens_of
from pretrain.masking import hide
from pretrain.models import build
from pretrain.models.two_tower import CONTRASTIVE, TwoTower, TwoTowerConfig
from pretrain.objectives.contrastive import collect
from pretrain.objectives.masked import changed
from pretrain.sample import Function, Modality, Sample, Text
from tests import models
from tests.models import batch_of

SEQUENCE, STRUCTURE, FUNCTION, _ = Modality
BOTH = (SEQUENCE, FUNCTION)
HAS = [BOTH, BOTH, (SEQUENCE,), BOTH, (FUNCTION,), BOTH, (STRUCTURE,), BOTH]
SAID = ["binds zinc", "cuts peptides", "", "binds zinc", "folds others", "carries oxygen in blood", "", "cuts peptides"]


def proteins() -> list[Sample]:
    """Texts of the first and the fourth are the same, and of the second and the last."""
    found = []
    for i, (has, said) in enumerate(zip(HAS, SAID, strict=True)):
        told = Function(texts=(Text(said, "t"),)) if FUNCTION in has else None
        found.append(replace(models.sample(i, *has), function=told))
    return found


def made(name: str = "two-tower", **over: Any) -> tuple[TwoTower, Encoders]:
    model, encoders = models.build(name)
    assert isinstance(model, TwoTower)
    if over:
        torch.manual_seed(0)
        trained = to_train(models.encoders_config(name), (SEQUENCE,))
        model = TwoTower(model.config.model_copy(update=over), encoders.widths(), trained)
    return model, encoders


def given(encoders: Encoders, samples: list[Sample] | None = None, step: int = 0) -> tuple[Features, Batch]:
    batch = batch_of(proteins() if samples is None else samples, encoders, step)
    return encoders(batch), batch


def losses_of(model: TwoTower, features: Features, batch: Batch) -> Losses:
    found = model(features, batch)
    assert isinstance(found, dict)
    return found


def attended(block: Any, rows: Tensor, texts: Tensor) -> Tensor:
    """One block of cross attention, head by head and row by row."""
    part, norm = block.attention, lambda rows, of: layer_norm(rows, rows.shape[1:], of.weight, of.bias)
    normed, context = norm(rows, block.attention_norm), norm(texts, block.context_norm)
    query, key, value = (
        linear(x, p.weight, p.bias) for x, p in ((normed, part.query), (context, part.key), (context, part.value))
    )
    size, found = query.shape[1] // part.heads, []
    for row in query:
        heads = []
        for i in range(part.heads):
            own = slice(i * size, (i + 1) * size)
            weights = torch.softmax(torch.stack([row[own] @ each[own] / size**0.5 for each in key]), 0)
            heads.append(sum(w * each[own] for w, each in zip(weights, value, strict=True)))
        found.append(torch.cat(heads))  # type: ignore[arg-type]
    rows = rows + linear(torch.stack(found), part.out.weight, part.out.bias)
    up, _, down = block.mlp
    return rows + linear(gelu(linear(norm(rows, block.mlp_norm), up.weight, up.bias)), down.weight, down.bias)


def by_hand(model: TwoTower, features: Features, batch: Batch) -> dict[str, Tensor]:
    """Every term, protein by protein."""
    encoder, reading = model.trained, model.objective
    assert encoder is not None and encoder.head is not None and reading is not None
    texts = features[FUNCTION].values.split(features[FUNCTION].lengths.tolist())
    bounds, said = batch.sequence.offsets.tolist(), [words or None for words in SAID]
    found = {CONTRASTIVE: torch.zeros(()), "residue": torch.zeros(()), "fused": torch.zeros(())}
    sides: list[tuple[Tensor, Tensor] | None] = []
    for i, text in enumerate(texts):
        letters = batch.sequence.letters[bounds[i] : bounds[i + 1]]
        if not len(letters):
            sides.append(None)
            continue
        asked, draw = hide(torch.tensor([len(letters)]), batch.seed, batch.step, batch.slots[i : i + 1], 0.3)
        shown = changed(letters, asked, draw, HIDDEN, model.training)
        rows = encoder(Sequences(shown, torch.tensor([0, len(letters)]))).values
        targets = tokens_of(letters[asked])
        alone = torch.log_softmax(encoder.head(rows[asked], encoder.embed), 1)
        found["residue"] = found["residue"] - alone[range(len(targets)), targets].sum()
        if not len(text):
            sides.append(None)
            continue
        read = linear(rows[asked], reading.enter.weight, reading.enter.bias)
        for block in reading.blocks:
            read = attended(block, read, text)
        told = torch.log_softmax(reading.letter(read), 1)
        found["fused"] = found["fused"] - told[range(len(targets)), targets].sum()
        vectors = []
        for m, part in ((SEQUENCE, rows), (FUNCTION, text)):
            head: Any = model.heads[m.value]
            normed = layer_norm(part.mean(0), part.shape[1:], head[0].weight, head[0].bias)
            vectors.append(normalize(head[3](gelu(head[1](normed))), dim=0))
        sides.append((vectors[0], vectors[1]))
    heat, both = model.temperatures["contrastive"](), [i for i, each in enumerate(sides) if each is not None]
    for one, other in ((0, 1), (1, 0)):
        for i in both:
            scores = {j: sides[i][one] @ sides[j][other] / heat for j in both}  # type: ignore[index]
            total = torch.stack(list(scores.values())).logsumexp(0)
            logs = [scores[j] - total for j in both if said[j] == said[i]]
            found[CONTRASTIVE] = found[CONTRASTIVE] - torch.stack(logs).mean() / 2
    return found


@pytest.mark.parametrize("over", [{}, {"depth": 2, "heads": 4, "masked": 0.3}])
def test_losses_and_gradients_are_those_of_a_slow_twin(over: dict[str, Any]) -> None:
    model, encoders = made(**over)
    features, batch = given(encoders, step=2)
    losses, want = losses_of(model, features, batch), by_hand(model, features, batch)
    assert tuple(losses) == model.loss_names() == tuple(want)
    assert {name: each.count for name, each in losses.items()} == model.counts(batch)
    for name, loss in losses.items():
        assert loss.count >= 5 and loss.sum.item() == pytest.approx(want[name].item(), rel=1e-5), name
    parameters = list(model.parameters())
    ours = torch.autograd.grad(torch.stack([each.sum for each in losses.values()]).sum(), parameters)
    theirs = torch.autograd.grad(torch.stack(list(want.values())).sum(), parameters)
    scale = max(float(each.abs().max()) for each in theirs)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6 * scale)


def test_a_hidden_residues_letter_changes_only_what_it_is_held_against() -> None:
    """No latent, no logit of any loss, no vector that is compared."""
    model, encoders = made()
    one = models.sample(0, *BOTH)
    length = len(one.sequence or "")
    features, batch = given(encoders, [one])
    asked, draw = hide(torch.tensor([length]), batch.seed, batch.step, batch.slots, 0.3)
    letters, seen = batch.sequence.letters, []
    parts: list[Any] = [model.trained, model.trained.head, model.objective, model.heads["sequence"]]  # type: ignore[union-attr]
    for part in parts:
        part.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out.values))
    for row, told in ((int((asked & (draw < 0.8)).nonzero()[0]), True), (int((~asked).nonzero()[0]), False)):
        seen.clear()
        other = letters.clone()
        other[row] = ord("W") if letters[row] != ord("W") else ord("A")
        moved = replace(batch, sequence=replace(batch.sequence, letters=other))
        before, after = (losses_of(model, features, each) for each in (batch, moved))
        half = len(seen) // 2
        assert half == len(parts)
        assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True)) == told
        for name in ("residue", "fused"):
            assert before[name].sum != after[name].sum
        assert (before[CONTRASTIVE].sum == after[CONTRASTIVE].sum) or not told


def test_residues_read_their_own_proteins_text_and_no_other() -> None:
    model, encoders = made()
    features, batch = given(encoders)
    told: list[Tensor] = []
    assert model.objective is not None
    model.objective.register_forward_hook(lambda _, __, out: told.append(out))  # type: ignore[arg-type]
    losses_of(model, features, batch)
    text = features[FUNCTION]
    values = text.values.clone()
    values[text.owners == 3] += torch.randn(values.shape[1])
    losses_of(model, {FUNCTION: replace(text, values=values)}, batch)
    lengths = torch.tensor([len(each.sequence or "") for each in proteins()])
    asked, _ = hide(lengths, batch.seed, batch.step, batch.slots, 0.3)
    owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    own = owners[asked & (text.lengths > 0)[owners]] == 3
    moved = (told[0] != told[1]).any(1)
    assert torch.equal(moved, own) and own.any() and not own.all()


def test_unpaired_sequences_train_the_language_model_and_unpaired_texts_nothing() -> None:
    model, encoders = made()
    for has, trains in (((SEQUENCE,), True), ((FUNCTION,), False)):
        features, batch = given(encoders, [models.sample(i, *has) for i in range(3)])
        model.zero_grad()
        losses = losses_of(model, features, batch)
        assert {name for name, each in losses.items() if each.count} == ({"residue"} if trains else set())
        torch.stack([each.sum for each in losses.values()]).sum().backward()
        learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learns == ({"trained"} if trains else set())
        assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_micro_batches_sum_to_the_uncut_step(parts: int) -> None:
    """Nine parts of eight proteins: one is empty."""
    model, encoders = made()
    features, batch = given(encoders)
    whole = losses_of(model, features, batch)
    torch.stack([each.sum for each in whole.values()]).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    every = proteins()
    batches = [batch_of(every[part::parts], encoders, 0, range(len(every))[part::parts]) for part in range(parts)]
    with torch.no_grad():
        rows: Any = [model(encoders(each), each, task="negatives") for each in batches]
    negatives = collect(rows, [each.slots for each in batches])
    sums, counts = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0)
    for each in batches:
        losses: Any = model(encoders(each), each, negatives)
        assert {name: loss.count for name, loss in losses.items()} == model.counts(each)
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        for name, loss in losses.items():
            sums[name], counts[name] = sums[name] + loss.sum.item(), counts[name] + loss.count
    assert counts == {name: each.count for name, each in whole.items()}
    assert sums == pytest.approx({name: each.sum.item() for name, each in whole.items()}, rel=1e-5, abs=1e-6)
    scale = max(float(each.abs().max()) for each in expected.values())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-6 * scale, msg=name)


def test_a_batch_of_nothing_calls_every_module() -> None:
    """Or ranks that have something would wait for ever at ZeRO 3."""
    model, encoders = made()
    called: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    losses = losses_of(model, *given(encoders, []))
    assert all(not each.count and each.sum.item() == 0 and each.sum.requires_grad for each in losses.values())
    holders = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert holders <= called, holders - called


def test_weights_of_the_losses_are_those_of_the_configuration() -> None:
    model, encoders = made(alpha=2.0, beta=3.0, gamma=4.0)
    losses = losses_of(model, *given(encoders))
    assert [each.weight for each in losses.values()] == [2.0, 3.0, 4.0]


def test_embeddings_are_of_whole_proteins_have_length_one_and_latents_lead_to_them() -> None:
    model, encoders = made()
    features, batch = given(encoders)
    encoder = model.trained
    assert encoder is not None
    found = model(features, batch, task="embeddings")
    assert isinstance(found, Embeddings)
    whole: Features = {SEQUENCE: encoder(batch.sequence), FUNCTION: features[FUNCTION]}
    beside = TwoTower(model.config, encoders.widths())
    beside.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith(("trained", "objective"))})
    latents, alone = beside(whole, task="latents"), beside(whole, task="embeddings")
    assert isinstance(latents, Latents) and isinstance(alone, Embeddings)
    for m in BOTH:
        torch.testing.assert_close(found.values[m].norm(dim=1), found.present[m].float())
        assert torch.equal(found.values[m], alone.values[m])
        assert latents.tokens[m].values.shape == (len(whole[m].values), model.config.width)
        assert found.present[m].tolist() == [m in has for has in HAS]
    torch.testing.assert_close(found.fused[2], found.values[SEQUENCE][2])  # it has nothing else
    assert not found.fused[6].any()


def test_flops_are_arithmetic_on_lengths() -> None:
    model, encoders = made()
    _, batch = given(encoders)
    one, counts, widths, encoder = model.config, model.counts(batch), encoders.widths(), model.trained
    assert isinstance(encoder, Esm)
    text, asked = batch.lengths[FUNCTION], counts["residue"]
    masks, _ = hide(batch.lengths[SEQUENCE], batch.seed, batch.step, batch.slots, one.masked)
    rows = torch.stack([each.sum() for each in masks.split(batch.lengths[SEQUENCE].tolist())]) * (text > 0)
    assert int(rows.sum()) == counts["fused"]
    heads = 2 * 8 * (3 * widths[SEQUENCE] * one.hidden + 2 * widths[FUNCTION] * one.hidden + 6 * one.hidden * one.width)
    letters = 2 * asked * encoder.width * (encoder.width + len(ALPHABET))
    entered = 2 * counts["fused"] * one.fusion * (encoder.width + one.fusion + len(ALPHABET))
    mixed = 2 * counts["fused"] * one.fusion**2 * (2 + 8) + 4 * int(text.sum()) * widths[FUNCTION] * one.fusion
    pairs = 4 * int((rows * text).sum()) * one.fusion
    assert model.flops(batch) == heads + 3 * (encoder.flops(batch.sequence.offsets) + letters + entered + mixed + pairs)


def test_what_is_wrong_is_said() -> None:
    config = EncodersConfig.model_validate(
        {"sequence": {"weights": "random", "layers": 1, "width": 8, "heads": 1, "head": False}}
    )
    widths = {SEQUENCE: 8, FUNCTION: 4}
    with pytest.raises(ValueError, match="weights random, has no language-model head; take weights with one"):
        build(TwoTowerConfig(), widths, to_train(config, (SEQUENCE,)))
    with pytest.raises(ValueError, match=r"encoders give only sequence: configure encoders\.function"):
        build(TwoTowerConfig(), {SEQUENCE: 8})
    with pytest.raises(ValueError, match=r"model\.fusion = 10 must be a multiple of model\.heads = 4"):
        build(TwoTowerConfig(fusion=10, heads=4), widths)
