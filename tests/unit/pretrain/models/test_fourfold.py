"""Fourfold against a slow twin, one protein and one softmax at a time; what is hidden, what is absent, what is cut."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu
from torch.utils.flop_counter import FlopCounterMode

from pretrain.batch import Embeddings, Features, Loss, Texts, Tokens, offsets_of
from pretrain.layers.fusion import BRANCHES, Joint
from pretrain.layers.rounds import joint_of
from pretrain.layers.transformer import SelfBlock, recompute
from pretrain.masking import draw_masks
from pretrain.models import check_depths
from pretrain.models.fourfold import Fourfold, FourfoldConfig
from pretrain.objectives.contrastive import collect
from pretrain.sample import Modality
from tests.models import batch_of, build, sample, subsets
from tests.unit.pretrain.models.test_amma import (
    MIXED,
    dense_attention,
    dense_mlp,
    dense_transformer,
    linear,
    norm,
    position,
    sum_of,
    twin_prediction,
)

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
SIZE: dict[str, Any] = {
    "width": 16, "rounds": 3, "depth": 1, "heads": 2, "mlp_ratio": 2, "embedding": 6, "tiers": {"structure": 2},
    "decoder": {"width": 8, "depth": 1, "heads": 2}, "masking": {"keep": 0.5},
}  # fmt: skip


def make_model(widths: dict[Modality, int], **changes: Any) -> Fourfold:
    """Every parameter random, those that begin at 0 as well."""
    torch.manual_seed(0)
    model = Fourfold(FourfoldConfig.model_validate({**SIZE, **changes}), widths)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


# --- the twin ---

Part = dict[Modality, tuple[Tensor, list[int]]]  # modality → the visible tokens' features, and their positions


def twin_encode(model: Any, part: Part) -> dict[Any, Tensor]:
    """`global` and modality → latents, of one segment."""
    config, rows, later = model.config, {}, {}
    for m, (values, positions) in part.items():
        entry, tiers = model.entries[m], config.tiers.get(m, 1)
        parts = values.chunk(tiers, 1)
        where = torch.stack([position(p, config.width) for p in positions]) if positions else torch.zeros(0, 16)
        rows[m] = linear(entry.first.linear, parts[0]) + where + entry.first.mark.vector
        for tier in range(1, tiers):
            later[m, tier * config.rounds // tiers] = linear(entry.others[tier - 1], parts[tier])
    for i, each in enumerate(model.rounds):
        for m in (m for m in BRANCHES if m in rows):
            rows[m] = rows[m] + later.get((m, i), 0)
            if len(rows[m]):
                normed = norm(each.blocks[m].attention_norm, rows[m])
                rows[m] = dense_mlp(each.blocks[m], rows[m] + dense_attention(each.blocks[m].attention, normed, normed))
        if each.exchange is not None:
            twin_exchange(each.exchange, rows, {m: part[m][1] if m in part else [] for m in BRANCHES})
    every = torch.cat([model.global_token.vector.unsqueeze(0), *rows.values()])
    encoded = dense_transformer(model.encoder, every).split([1, *(len(each) for each in rows.values())])
    return dict(zip(["global", *rows], encoded, strict=True))


def twin_exchange(exchange: Any, rows: dict[Modality, Tensor], positions: dict[Modality, list[int]]) -> None:
    if exchange.gate is not None:
        gate, before = exchange.gate, {m: rows.get(m, torch.zeros(0, 16)).clone() for m in BRANCHES}
        for p in sorted(set(positions[SEQUENCE]) & set(positions[STRUCTURE])):
            at = {m: positions[m].index(p) for m in BRANCHES}
            given = [linear(gate.given[m], norm(gate.norms[m], before[m][at[m]])) for m in BRANCHES]
            scores = [linear(gate.score[2], gelu(linear(gate.score[0], one))) for one in given]
            shares = (scores[0] + scores[1]).softmax(0)
            for m in BRANCHES:
                more = torch.zeros_like(rows[m])
                more[at[m]] = linear(gate.back[m], shares[0] * given[0] + shares[1] * given[1])
                rows[m] = rows[m] + more
    if exchange.attend is not None:
        attend, given = exchange.attend, []
        there = [m for m in BRANCHES if m in rows and len(rows[m])]
        if not there:
            return
        for m in there:
            where = torch.stack([position(p, 16) for p in positions[m]])
            way = attend.given[m]
            given.append(linear(way.linear, norm(attend.norms[m], rows[m])) + where + way.mark.vector)
        heard = dense_attention(attend.attention, torch.cat(given), torch.cat(given))
        for m, part in zip(there, heard.split([len(each) for each in given]), strict=True):
            rows[m] = rows[m] + linear(attend.back[m], part)


def twin_vector(model: Any, m: Modality, latents: Tensor) -> Tensor:
    pool, head = model.poolings[m], model.heads[m]
    told, gate = (latents @ pool.sides.weight.T).chunk(2, 1)
    shares = (torch.tanh(told) * torch.sigmoid(gate) @ pool.score.weight.T).softmax(0)
    vector = linear(head[3], gelu(linear(head[1], norm(head[0], (shares * latents).sum(0)))))
    return vector / vector.norm()


def segments(model: Any, features: Features, visible: dict[Modality, Tensor] | None) -> list[tuple[Part, Part]]:
    """Per protein: (all tokens, the visible ones)."""
    found = []
    for row in range(5):
        every: Part = {}
        shown: Part = {}
        for m in model.modalities:
            span = slice(*features[m].offsets[row : row + 2].tolist())
            values, positions = features[m].values[span], features[m].positions[span]
            every[m] = values, positions.tolist()
            mask = torch.ones(len(values), dtype=torch.bool) if visible is None else visible[m][span]
            shown[m] = values[mask], positions[mask].tolist()
        found.append((every, shown))
    return found


def twin(model: Any, features: Features, batch: Any) -> dict[str, Tensor]:
    masks = model._masks(batch)
    sums = {name: torch.zeros(()) for name in model.loss_names()}
    vectors: dict[Modality, dict[int, Tensor]] = {m: {} for m in model.modalities}
    for row, (every, shown) in enumerate(segments(model, features, dict(masks.visible))):
        latents = twin_encode(model, shown)
        for m, (values, positions) in every.items():
            span = slice(*features[m].offsets[row : row + 2].tolist())
            visible = masks.visible[m][span].tolist()
            if positions:
                told = twin_prediction(model, m, positions, visible, latents)
                for i, target in enumerate(values):
                    if not visible[i]:
                        target = (target - target.mean()) / (target.var(correction=0) + 1e-5).sqrt()
                        sums[f"reconstruction/{m}"] = sums[f"reconstruction/{m}"] + (told[i] - target).square().mean()
            if model.config.pairs and len(shown[m][0]):
                vectors[m][row] = twin_vector(model, m, twin_encode(model, {m: shown[m]})[m])
    for a, b in model.config.pairs:
        rows = sorted(vectors[a].keys() & vectors[b].keys())
        if len(rows) > 1:
            heat = model.temperatures[f"{a}-{b}"]()
            scores = torch.stack([vectors[a][i] for i in rows]) @ torch.stack([vectors[b][i] for i in rows]).T / heat
            both = (scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()) / 2
            sums[f"contrastive/{a}-{b}"] = -both.sum()
    return sums


CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "local": {"levels": ["local"]},
    "apart": {"levels": [], "sees": "sequence_only"},
    "no-rounds": {"rounds": 0, "tiers": {}},
    "not-compared": {"align": 0, "sees": "symmetric"},
    "without-structure": {"modalities": ["sequence", "function", "image"], "tiers": {}},
    "same-residues": {"same_residues": True},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_twins(case: str, proteins, widths) -> None:
    model = make_model(widths, **CASES[case])
    features, batch = proteins(MIXED)
    losses, expected = model(features, batch), twin(model, features, batch)
    assert tuple(losses) == model.loss_names() == tuple(expected)
    assert {name: loss.count for name, loss in losses.items()} == model.counts(batch)
    assert all(loss.count for name, loss in losses.items() if name.startswith("reconstruction/"))
    for name, loss in losses.items():
        torch.testing.assert_close(loss.sum, expected[name], rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(sum_of(losses), list(model.parameters()))
    theirs = torch.autograd.grad(
        torch.stack(list(expected.values())).sum(), list(model.parameters()), allow_unused=True
    )
    for (name, _), got, want in zip(model.named_parameters(), ours, theirs, strict=True):
        want = torch.zeros_like(got) if want is None else want
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * max(1.0, float(want.abs().max())), msg=name)


def test_masks_are_those_of_the_batch_and_of_the_same_residues_where_asked(proteins, widths) -> None:
    _, batch = proteins(MIXED)
    key = (batch.lengths, batch.seed, batch.step, batch.slots)
    met = {}
    for same in (False, True):
        model = make_model(widths, same_residues=same)
        places = {m: each.positions for m, each in model._places(batch).items() if m in BRANCHES}
        masks = model._masks(batch)
        wanted = draw_masks(*key, model.config.masking, places if same else None).visible
        assert all(torch.equal(masks.visible[m], wanted[m]) for m in Modality)
        shown = {m: each.select(masks.visible[m]) for m, each in model._places(batch).items()}
        met[same] = len(joint_of(shown, len(batch)).pairs[SEQUENCE])
    assert met[True] > met[False]
    with pytest.raises(ValueError, match="same_residues does nothing without both sequence and structure"):
        FourfoldConfig(modalities=(SEQUENCE, FUNCTION), same_residues=True)


def test_texts_in_common_are_positives(proteins, widths) -> None:
    """In pairs with function alone, and each of them as much as another."""
    model = make_model(widths, masking={"keep": 0.9})
    features, batch = proteins({m: [4, 5, 6, 7, 3] for m in Modality})
    said = [[1, 2], [3], [1, 2], [4], [3]]
    ids = torch.tensor([i for text in said for i in text])
    batch = replace(batch, function=Texts(ids, offsets_of(torch.tensor([len(text) for text in said]))))
    losses, rows = model(features, batch), model(features, batch, task="negatives")
    for a, b in model.config.pairs:
        both = (rows.present[a] & rows.present[b]).nonzero().squeeze(1).tolist()
        texts = [said[i] if FUNCTION in (a, b) else [i] for i in both]
        targets = torch.tensor([[(one == other) / texts.count(one) for other in texts] for one in texts])
        scores = rows.embeddings[a][both] @ rows.embeddings[b][both].T / model.temperatures[f"{a}-{b}"]()
        slow = -(targets * (scores.log_softmax(1) + scores.T.log_softmax(1))).sum() / 2
        torch.testing.assert_close(losses[f"contrastive/{a}-{b}"].sum, slow, rtol=1e-4, atol=1e-4)
        assert len(both) == 5


def test_weights_are_the_configs(proteins, widths) -> None:
    losses = make_model(widths, align=0.3, weights={"function": 0.25})(*proteins(MIXED))
    assert {name: loss.weight for name, loss in losses.items() if name.startswith("rec")} == {
        f"reconstruction/{m}": 0.25 if m is FUNCTION else 1 for m in Modality
    }
    assert {loss.weight for name, loss in losses.items() if name.startswith("con")} == {0.3}


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("sees", ["cumulative", "sequence_only", "symmetric"])
def test_no_masked_feature_reaches_any_prediction_or_vector(sees: str, same: bool, proteins, widths) -> None:
    model = make_model(widths, sees=sees, same_residues=same, masking={"keep": 0.4, "dropout": {"function": 0.5}})
    features, batch = proteins(MIXED)
    caught: list[Any] = []
    for part in (*model.decoders.values(), *model.heads.values()):
        part.register_forward_hook(lambda _, __, out: caught.append(out))
    model(features, batch)
    visible = model._masks(batch).visible
    before, count = list(caught), len(caught)
    assert count == 8
    model({m: replace(t, values=t.values + 100.0 * ~visible[m].unsqueeze(1)) for m, t in features.items()}, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, caught[count:], strict=True))
    model({m: replace(t, values=t.values + 1.0 * visible[m].unsqueeze(1)) for m, t in features.items()}, batch)
    assert all(not torch.allclose(a, b) for a, b in zip(before, caught[2 * count :], strict=True))


def test_a_modality_alone_knows_nothing_of_the_others(proteins, widths) -> None:
    model = make_model(widths)
    features, _ = proteins(MIXED)
    before = model(features, task="embeddings")
    assert isinstance(before, Embeddings)
    for m in Modality:
        other = {k: t if k is m else replace(t, values=t.values + 1) for k, t in features.items()}
        after = model(other, task="embeddings")
        assert isinstance(after, Embeddings) and torch.equal(before.values[m], after.values[m])
        assert not torch.allclose(before.fused, after.fused)


def test_embeddings_are_the_twins_and_no_batch_mates(proteins, widths) -> None:
    model = make_model(widths)
    features, _ = proteins(MIXED)
    found = model(features, task="embeddings")
    assert isinstance(found, Embeddings)
    for row, (every, _) in enumerate(segments(model, features, None)):
        latents = twin_encode(model, every)
        torch.testing.assert_close(
            found.fused[row], torch.cat([latents[m] for m in every]).mean(0), rtol=1e-4, atol=1e-5
        )
        single, _ = proteins({m: [MIXED[m][row]] for m in MIXED}, slots=[row])
        one = model(single, task="embeddings")
        assert isinstance(one, Embeddings)
        for m in Modality:
            if MIXED[m][row]:
                want = twin_vector(model, m, twin_encode(model, {m: every[m]})[m])
                torch.testing.assert_close(found.values[m][row], want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.values[m][0], found.values[m][row], rtol=1e-4, atol=1e-5)


def test_a_step_in_parts_is_the_step(proteins, widths) -> None:
    """Losses and gradients, whatever the micro-batches; one of them is empty."""
    model = make_model(widths)
    cuts: list[list[int]] = [[0, 1, 2], [], [3, 4]]
    whole = proteins(MIXED)
    parts = [proteins({m: [MIXED[m][i] for i in cut] for m in MIXED}, slots=cut) for cut in cuts]
    negatives = collect([model(*part, task="negatives") for part in parts], [batch.slots for _, batch in parts])

    def run(found: list[dict[str, Loss]]) -> tuple[dict[str, float], list[Tensor]]:
        total = torch.stack([sum_of(losses) for losses in found]).sum()
        gradients = torch.autograd.grad(total, list(model.parameters()))
        return {name: sum(float(losses[name].sum.detach()) for losses in found) for name in found[0]}, list(gradients)

    one, gradients = run([model(*whole)])
    several, others = run([model(*part, negatives) for part in parts])
    assert several == pytest.approx(one, rel=1e-4, abs=1e-4)
    for got, want in zip(others, gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("name", ["fourfold", "fourfold-three"])
def test_the_count_of_operations_is_torchs(name: str) -> None:
    model, encoders = build(name)
    every = [sample(i, *has) for i, has in enumerate(subsets(model.modalities))] * 2
    batch = batch_of([replace(one, key=f"{one.key}{i}") for i, one in enumerate(every)], encoders)
    features = encoders(batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = model(features, batch)
        assert isinstance(losses, dict)
        sum_of(losses).backward()
    assert model.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_layers_of_the_rounds_are_recomputed_too(proteins, widths) -> None:
    """Each runs once more in the backward pass, and gradients stay the same to the bit."""
    found, runs = [], {False: 0, True: 0}
    for again in runs:
        model = make_model(widths)
        if again:
            recompute(model)
        for block in (part for part in model.rounds.modules() if isinstance(part, SelfBlock)):
            block.register_forward_pre_hook(lambda *_, again=again: runs.update({again: runs[again] + 1}))
        found.append(torch.autograd.grad(sum_of(model(*proteins(MIXED))), list(model.parameters())))
    assert runs == {False: 6, True: 12}
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_tokens_meet_by_residue() -> None:
    proteins = [([0, 2, 5], [2, 3, 5]), ([], [1]), ([4], []), ([], [])]
    sides = [
        Tokens(
            torch.zeros(sum(len(each[i]) for each in proteins), 1),
            offsets_of(torch.tensor([len(each[i]) for each in proteins])),
            torch.tensor([p for each in proteins for p in each[i]]),
        )
        for i in range(2)
    ]
    joint = Joint.meeting(sides[0], sides[1])
    assert joint.offsets.tolist() == [0, 4, 5, 6, 6]
    assert {m: joint.pairs[m].tolist() for m in BRANCHES} == {SEQUENCE: [1, 2], STRUCTURE: [0, 2]}
    assert {m: joint.places[m].tolist() for m in BRANCHES} == {SEQUENCE: [0, 1, 3, 5], STRUCTURE: [1, 2, 3, 4]}
    nothing = Tokens(torch.zeros(0, 1), torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert Joint.meeting(nothing, nothing).offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"heads": 3}, "width 16 must be a multiple of heads 3"),
        ({"tiers": {"structure": 9}}, "from 1 to as many as there are rounds, 3"),
        ({"tiers": {"function": 1}}, "tiers are of sequence and structure"),
        ({"modalities": ["structure", "sequence"]}, "in the order sequence, structure"),
    ],
)
def test_a_configuration_that_is_none_says_so(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        FourfoldConfig.model_validate({**SIZE, **settings})


def test_tiers_must_fit_the_features(widths) -> None:
    with pytest.raises(ValueError, match=r"model.tiers.sequence = 3, but its features are 10 wide"):
        make_model(widths, tiers={"sequence": 3})
    with pytest.raises(ValueError, match="configure an encoder for each"):
        make_model({m: w for m, w in widths.items() if m is not IMAGE})


def test_tiers_must_divide_the_encoders_depths() -> None:
    config = FourfoldConfig.model_validate(SIZE)
    check_depths(config, {STRUCTURE: 4})
    with pytest.raises(ValueError, match=r"model.tiers.structure = 2, but the encoder's features are of 3 depths"):
        check_depths(config, {STRUCTURE: 3})


def test_pairs_are_all_of_them() -> None:
    assert FourfoldConfig().pairs == tuple(combinations(Modality, 2)) and not FourfoldConfig(align=0).pairs
