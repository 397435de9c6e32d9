"""The contrastive variant: one step is one loss, however it is cut into micro-batches."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from pretrain.batch import Texts, offsets_of
from pretrain.masking import MaskingConfig, draw_masks
from pretrain.models import AmmaConfig
from pretrain.models.amma import Amma, DecoderConfig
from pretrain.objectives.contrastive import collect
from pretrain.sample import Modality
from tests.models import batch_of, build, sample

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
STEP = {
    SEQUENCE: [9, 0, 14, 5, 0, 8],
    STRUCTURE: [6, 11, 0, 5, 0, 7],
    FUNCTION: [4, 7, 5, 0, 0, 6],
    IMAGE: [0, 5, 0, 0, 8, 5],
}
CONFIG = AmmaConfig(
    variant="contrastive",
    width=16,
    depth=1,
    heads=2,
    mlp_ratio=2,
    decoder=DecoderConfig(width=8, depth=1, heads=2),
    masking=MaskingConfig(keep=0.6),
    embedding=6,
)


@pytest.fixture
def model(widths) -> Amma:
    torch.manual_seed(0)
    return Amma(CONFIG, widths)


def cut(proteins, parts: int):
    for part in range(parts):
        slots = list(range(part, 6, parts))
        yield proteins({m: [lengths[slot] for slot in slots] for m, lengths in STEP.items()}, slots=slots)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_micro_batches_sum_to_the_uncut_step(parts: int, model: Amma, proteins):
    """Seven parts of six proteins: one is empty."""
    whole = model(*proteins(STEP))
    torch.stack([loss.sum for loss in whole.values()]).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None and grad.any() for grad in expected.values())
    model.zero_grad()

    batches = list(cut(proteins, parts))
    with torch.no_grad():
        rows = [model(features, batch, task="negatives") for features, batch in batches]
    negatives = collect(rows, [batch.slots for _, batch in batches])
    sums, counts = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0)
    for features, batch in batches:
        losses = model(features, batch, negatives)
        assert {name: loss.count for name, loss in losses.items()} == model.counts(batch)
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        for name, loss in losses.items():
            sums[name] += loss.sum.item()
            counts[name] += loss.count
    assert counts == {name: loss.count for name, loss in whole.items()}
    for name, loss in whole.items():
        assert sums[name] == pytest.approx(loss.sum.item(), rel=1e-5, abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_pairs_count_proteins_that_show_both(model: Amma, proteins):
    features, batch = proteins(STEP)
    masks = draw_masks(batch.lengths, batch.seed, batch.step, batch.slots, CONFIG.masking)
    losses = model(features, batch)
    assert len(losses) == 6 and losses["contrastive/sequence-image"].count == 1
    for name, loss in losses.items():
        a, b = (masks.kept[Modality(m)] > 0 for m in name.removeprefix("contrastive/").split("-"))
        assert loss.count == int((a & b).sum())
        assert (loss.sum.item() == 0) == (loss.count < 2)


def test_losses_are_those_of_a_slow_twin(model: Amma, proteins):
    """At the model's temperature; where function takes part, proteins with a text in common are positives."""
    features, batch = proteins(STEP)
    said = [[1, 2], [3], [1, 2], [4], [5], [3]]
    ids = torch.tensor([i for text in said for i in text])
    batch = replace(batch, function=Texts(ids, offsets_of(torch.tensor([len(text) for text in said]))))
    losses, rows = model(features, batch), model(features, batch, task="negatives")
    several = set()
    for a, b in model.pairs:
        both = (rows.present[a] & rows.present[b]).nonzero().squeeze(1).tolist()
        texts = [said[i] if FUNCTION in (a, b) else [i] for i in both]
        targets = torch.tensor([[(one == other) / texts.count(one) for other in texts] for one in texts])
        scores = rows.embeddings[a][both] @ rows.embeddings[b][both].T / CONFIG.temperature
        slow = -(targets * (scores.log_softmax(1) + scores.T.log_softmax(1))).sum() / 2
        torch.testing.assert_close(losses[f"contrastive/{a}-{b}"].sum, slow, rtol=1e-4, atol=1e-4)
        several |= {(a, b)} if any(texts.count(text) > 1 for text in texts) else set()
    assert several == {(SEQUENCE, FUNCTION), (STRUCTURE, FUNCTION), (FUNCTION, IMAGE)}


def test_compared_rows_are_heads_of_means_of_each_modality_alone(model: Amma, proteins, widths):
    features, batch = proteins(STEP)
    masks = draw_masks(batch.lengths, batch.seed, batch.step, batch.slots, CONFIG.masking)
    rows = model(features, batch, task="negatives")
    for m in Modality:
        for row, kept in enumerate(masks.kept[m].tolist()):
            assert bool(rows.present[m][row]) == (kept > 0)
            if not kept:
                assert not rows.embeddings[m][row].any()
                continue
            only = {
                n: t.select((t.owners == row) & masks.visible[m] if n is m else t.owners < 0)
                for n, t in features.items()
            }
            latents = model(only, task="latents").tokens[m].values
            assert len(latents) == kept
            expected = normalize(model.head(latents.mean(0)), dim=0)
            torch.testing.assert_close(rows.embeddings[m][row], expected, rtol=1e-4, atol=1e-5)


def test_embeddings_lie_in_the_compared_space(model: Amma, proteins):
    embeddings = model(proteins(STEP)[0], task="embeddings")
    for m in Modality:
        assert embeddings.values[m].shape == (6, 6)
        torch.testing.assert_close(embeddings.values[m].norm(dim=1), embeddings.present[m].float())
    torch.testing.assert_close(embeddings.fused.norm(dim=1), torch.ones(6))


def test_proteins_with_a_text_in_common_are_no_negatives_where_function_takes_part() -> None:
    """Of these proteins the second and the third have the same text (`tests.models.sample`)."""
    model, encoders = build("amma-contrastive")
    batch = batch_of([sample(i, *Modality) for i in range(4)], encoders)
    rows = model(encoders(batch), batch, task="negatives")
    told = collect([rows], [batch.slots]).group
    assert set(rows.grouped) == {pair for pair in rows.pairs if FUNCTION in pair}
    for pair in rows.pairs:
        groups = told[pair].tolist()
        assert (groups[1] == groups[2]) == (FUNCTION in pair) and len(set(groups)) == 4 - (FUNCTION in pair)
