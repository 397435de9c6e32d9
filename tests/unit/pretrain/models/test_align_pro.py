"""Align-Pro: the loss by hand, what each part may see, stages, partial triples, and a step however it is cut."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, normalize

from pretrain.batch import Batch, Embeddings, Features, Latents, of_view, text_codes
from pretrain.encoders.bundle import Encoders
from pretrain.models import build, input_of
from pretrain.models.align_pro import AlignPro, AlignProConfig
from pretrain.objectives.contrastive import collect
from pretrain.sample import Function, Modality, Sample, Text
from tests import models
from tests.models import batch_of, encoders_config

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
TRIPLE = (SEQUENCE, STRUCTURE, FUNCTION)
HAS = [TRIPLE, TRIPLE, (SEQUENCE, FUNCTION), (STRUCTURE, FUNCTION), (SEQUENCE, STRUCTURE), TRIPLE, (SEQUENCE,), TRIPLE]


def proteins() -> list[Sample]:
    """Texts of the first and the second can be the same, and of the second and the sixth."""
    texts = [["a", "b"], ["b", "c", "z"], ["d", "e"], ["f", "g"], ["h"], ["k", "c"], ["l", "m"], ["n"]]
    found = []
    for i, has in enumerate(HAS):
        told = Function(texts=tuple(Text(f"protein that does {word}", "t") for word in texts[i]))
        found.append(replace(models.sample(i, *has), function=told if FUNCTION in has else None))
    return found


def made(name: str = "align-pro", **over: Any) -> tuple[AlignPro, Encoders]:
    model, encoders = models.build(name)
    assert isinstance(model, AlignPro)
    if over:
        torch.manual_seed(0)
        model = AlignPro(model.config.model_copy(update=over), encoders.widths(), None)
    return model, encoders


def given(model: AlignPro, encoders: Encoders, step: int = 0) -> tuple[Features, Batch]:
    batch = batch_of(proteins(), encoders, step)
    return encoders(batch), batch


def by_hand(model: AlignPro, features: Features, batch: Batch) -> dict[str, Tensor]:
    """Every term, protein by protein, from features."""
    sides: dict[str, list[Tensor | None]] = {}
    for m in TRIPLE:
        head: Any = model.heads[m.value]
        for name in (m.value, of_view(m)):
            sides[name] = []
            for part in features[name].values.split(features[name].lengths.tolist()):
                normed = layer_norm(part.mean(0), part.shape[1:], head[0].weight, head[0].bias)
                vector = head[3].weight @ gelu(head[1].weight @ normed + head[1].bias) + head[3].bias
                sides[name].append(normalize(vector, dim=0) if len(part) else None)
    said = [set(pair) - {0} for pair in zip(*(text_codes(each).tolist() for each in (batch, batch.view)), strict=True)]  # type: ignore[arg-type]

    def alike(i: int, j: int) -> bool:
        """By a chain of up to three proteins, which is as long as chains are here."""
        met = [k for k in range(len(said)) if said[k] & said[i]]
        return i == j or any(said[j] & said[k] for k in met)

    found = {}
    for name, ((a, b), _) in model.terms.items():
        heat, total = model.temperatures[name](), torch.zeros(())
        both = [i for i in range(len(batch)) if sides[a][i] is not None and sides[b][i] is not None]
        for left, right in ((sides[a], sides[b]), (sides[b], sides[a])):
            for i in both:
                scores = {j: left[i] @ right[j] / heat for j in both}  # type: ignore[operator]
                positives = [j for j in both if j == i or (FUNCTION in (a, b) and alike(i, j))]
                logs = [scores[j] - torch.stack(list(scores.values())).logsumexp(0) for j in positives]
                total = total - torch.stack(logs).mean() / 2
        found[name] = total
    return found


@pytest.mark.parametrize("step", [0, 3])
def test_losses_and_gradients_are_those_of_a_slow_twin(step: int) -> None:
    model, encoders = made()
    features, batch = given(model, encoders, step)
    losses = model(features, batch)
    assert isinstance(losses, dict) and tuple(losses) == model.loss_names() and len(losses) == 6
    want = by_hand(model, features, batch)
    for name, loss in losses.items():
        assert loss.count >= 2 and loss.sum.item() == pytest.approx(want[name].item(), rel=1e-5), name
    parameters = list(model.parameters())
    weights = {name: weight for name, (_, weight) in model.terms.items()}
    ours = torch.autograd.grad(sum(weights[n] * each.sum for n, each in losses.items()), parameters)  # type: ignore[arg-type]
    theirs = torch.autograd.grad(sum(weights[n] * each for n, each in want.items()), parameters)  # type: ignore[arg-type]
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_weights_of_the_losses_are_those_of_the_configuration() -> None:
    model, encoders = made(alpha=2.0, beta=3.0, gamma=4.0, intra=5.0)
    losses: Any = model(*given(model, encoders))
    assert {name: loss.weight for name, loss in losses.items()} == {
        "contrastive/sequence-structure": 2.0, "contrastive/sequence-function": 3.0,
        "contrastive/structure-function": 4.0, "intra/sequence": 5.0, "intra/structure": 5.0, "intra/function": 5.0,
    }  # fmt: skip


def test_same_texts_are_positives_also_by_a_chain() -> None:
    """In some steps the second protein shows both what the first and what the sixth shows."""
    model, encoders = made()
    joined = []
    for step in range(12):
        features, batch = given(model, encoders, step)
        rows: Any = model(features, batch, task="negatives")
        negatives = collect([rows], [batch.slots])
        joined.append(len({int(negatives.group[SEQUENCE, FUNCTION][i]) for i in (0, 1, 5)}))
        assert len(negatives.group[SEQUENCE, STRUCTURE].unique()) == len(HAS), "proteins that show no text are alone"
        assert set(rows.grouped) == {pair for pair, _ in model.terms.values() if FUNCTION in pair}
    assert {1, 2} <= set(joined) <= {1, 2, 3}


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_micro_batches_sum_to_the_uncut_step(parts: int) -> None:
    """Nine parts of eight proteins: one is empty."""
    model, encoders = made()
    whole: Any = model(*given(model, encoders))
    torch.stack([each.sum for each in whole.values()]).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    every = proteins()
    batches = [batch_of(every[part::parts], encoders, 0, range(len(every))[part::parts]) for part in range(parts)]
    with torch.no_grad():
        rows: Any = [model(encoders(batch), batch, task="negatives") for batch in batches]
    negatives = collect(rows, [batch.slots for batch in batches])
    sums, counts = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0)
    for batch in batches:
        losses: Any = model(encoders(batch), batch, negatives)
        assert {name: each.count for name, each in losses.items()} == model.counts(batch)
        torch.stack([each.sum for each in losses.values()]).sum().backward()
        for name, each in losses.items():
            sums[name], counts[name] = sums[name] + each.sum.item(), counts[name] + each.count
    assert counts == {name: each.count for name, each in whole.items()}
    assert sums == pytest.approx({name: each.sum.item() for name, each in whole.items()}, rel=1e-5, abs=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_what_is_hidden_from_a_view_is_not_seen() -> None:
    """Another letter behind a mask, or another residue outside of the view's window: the view's vector stays."""
    model, encoders = made()
    one = replace(models.sample(3, SEQUENCE), sequence="ACDEFGHIKLMNPQRSTVWYACDEFGHI")
    batch = batch_of([one], encoders)
    assert batch.view is not None
    row = int((batch.view.sequence.letters == 0).nonzero()[0])
    letters = one.sequence or ""
    other = replace(one, sequence=letters[:row] + ("W" if letters[row] != "W" else "A") + letters[row + 1 :])
    rows: list[Any] = [model(encoders(each), each, task="negatives") for each in (batch, batch_of([other], encoders))]
    name = of_view(SEQUENCE)
    assert torch.equal(rows[0].embeddings[name], rows[1].embeddings[name]) and rows[0].present[name].all()
    assert not torch.equal(rows[0].embeddings["sequence"], rows[1].embeddings["sequence"])


def test_a_protein_that_lacks_a_side_is_no_negative() -> None:
    model, encoders = made()
    features, batch = given(model, encoders)
    before: Any = model(features, batch)
    moved = {**features}
    for m in (SEQUENCE, FUNCTION):  # of the fifth and the fourth, who lack the other side
        tokens, row = features[m], {SEQUENCE: 4, FUNCTION: 3}[m]
        values = tokens.values.clone()
        values[tokens.owners == row] += torch.randn(values.shape[1])
        moved[m] = replace(tokens, values=values)
    after: Any = model(moved, batch)
    assert torch.equal(before["contrastive/sequence-function"].sum, after["contrastive/sequence-function"].sum)
    for name in ("contrastive/sequence-structure", "contrastive/structure-function", "intra/sequence"):
        assert not torch.equal(before[name].sum, after[name].sum)


def test_settings_make_the_ablations() -> None:
    model, encoders = made(intra=0.0)
    encoders._spec = input_of(model.config, encoders.spec())
    features, batch = given(model, encoders)
    assert batch.view is None and tuple(model(features, batch)) == tuple(f"contrastive/{a}" for a in (
        "sequence-structure", "sequence-function", "structure-function"))  # fmt: skip
    two = AlignProConfig(modalities=(SEQUENCE, STRUCTURE))
    assert tuple(two.terms) == ("contrastive/sequence-structure", "intra/sequence", "intra/structure")
    weighed = AlignProConfig(alpha=2, beta=3, gamma=4, intra=5)
    assert [weight for _, weight in weighed.terms.values()] == [2, 3, 4, 5, 5, 5]
    pair: Any = build(two, {SEQUENCE: 4, STRUCTURE: 4})
    assert pair.config.trains == () and AlignProConfig(train_encoders=True).trains == TRIPLE
    with pytest.raises(ValidationError, match="in this order"):
        AlignProConfig(modalities=(STRUCTURE, SEQUENCE))
    with pytest.raises(ValidationError, match="of sequence, structure, function"):
        AlignProConfig(modalities=(SEQUENCE, IMAGE))
    with pytest.raises(ValueError, match="the model has function but encoders give only sequence, structure"):
        build(AlignProConfig(), {SEQUENCE: 4, STRUCTURE: 4})


def test_encoders_train_in_the_second_stage_without_their_own_heads() -> None:
    model, encoders = made("align-pro-trained")
    features, batch = given(model, encoders)
    assert features == {} and encoders_config("align-pro-trained").sequence.head  # type: ignore[union-attr]
    losses: Any = model(features, batch)
    torch.stack([each.sum for each in losses.values()]).sum().backward()
    names = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not names and not [name for name, _ in model.named_parameters() if ".sequence.head." in name]
    for m in TRIPLE:
        assert any(p.grad is not None and p.grad.any() for p in model.trained[m.value].parameters())  # type: ignore[index]
    frozen, around = made()
    assert not any(p.requires_grad for p in around.parameters()) and frozen.trained is None


def test_embeddings_have_length_one_and_latents_lead_to_them() -> None:
    model, encoders = made()
    features, batch = given(model, encoders)
    found, latents = model(features, task="embeddings"), model(features, task="latents")
    assert isinstance(found, Embeddings) and isinstance(latents, Latents)
    for m in TRIPLE:
        torch.testing.assert_close(found.values[m].norm(dim=1), found.present[m].float())
        assert latents.tokens[m].values.shape == (int(batch.lengths[m].sum()), model.config.width)
    torch.testing.assert_close(found.fused.norm(dim=1), torch.ones(len(batch)))
    torch.testing.assert_close(found.fused[6], found.values[SEQUENCE][6])  # it has nothing else


def test_flops_are_those_of_the_heads() -> None:
    model, encoders = made()
    _, batch = given(model, encoders)
    widths, (hidden, width) = encoders.widths(), (model.config.hidden, model.config.width)
    assert model.flops(batch) == sum(2 * 2 * 8 * (2 * widths[m] * hidden + 3 * hidden * width) for m in TRIPLE)
