"""AMMA against a slow twin, one protein and one softmax at a time; who sees what; and what absence does to it."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.batch import Batch, Features, Loss
from pretrain.config import dump, validate
from pretrain.masking import Dropout, MaskingConfig, draw_masks
from pretrain.models import AmmaConfig, build
from pretrain.models.amma import Amma, Decoder, DecoderConfig, Latents, Sees, Weights
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
SUBSETS = [subset for size in range(1, 5) for subset in combinations(Modality, size)]
MIXED = {SEQUENCE: [9, 0, 14, 5, 0], STRUCTURE: [6, 11, 0, 5, 0], FUNCTION: [4, 7, 5, 0, 0], IMAGE: [0, 5, 0, 5, 8]}
TINY = AmmaConfig(
    width=16,
    depth=2,
    heads=2,
    mlp_ratio=2,
    decoder=DecoderConfig(width=8, depth=1, heads=2),
    masking=MaskingConfig(keep=0.4),
)


def tiny(**changes: object) -> AmmaConfig:
    return AmmaConfig.model_validate(dump(TINY) | changes)


def make_model(config: AmmaConfig, widths: dict[Modality, int], seed: int = 0) -> Amma:
    """A model whose every parameter is random, so that no term of the twin can be missing unnoticed."""
    torch.manual_seed(seed)
    model = Amma(config, widths)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


# --- the twin: dense, per protein, written from the description rather than from the code ---


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias


def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def dense_attention(module: Any, x: Tensor, context: Tensor) -> Tensor:
    query, key, value = linear(module.query, x), linear(module.key, context), linear(module.value, context)
    heads = []
    for h in range(module.heads):
        part = slice(h * query.shape[1] // module.heads, (h + 1) * query.shape[1] // module.heads)
        scores = query[:, part] @ key[:, part].T / (part.stop - part.start) ** 0.5
        heads.append(scores.softmax(1) @ value[:, part] if len(context) else torch.zeros_like(query[:, part]))
    return linear(module.out, torch.cat(heads, 1))


def dense_mlp(block: Any, x: Tensor) -> Tensor:
    return x + linear(block.mlp[2], nn.functional.gelu(linear(block.mlp[0], norm(block.mlp_norm, x))))


def dense_transformer(module: Any, x: Tensor) -> Tensor:
    for block in module.blocks:
        normed = norm(block.attention_norm, x)
        x = dense_mlp(block, x + dense_attention(block.attention, normed, normed))
    return norm(module.norm, x)


def position(p: int, width: int) -> Tensor:
    angles = [p / 10_000 ** (2 * i / width) for i in range(width // 2)]
    return torch.tensor([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


def twin(model: Any, features: Features, batch: Batch) -> dict[str, tuple[Tensor, int]]:
    config = model.config
    sums = {m: (torch.zeros(()), 0) for m in config.modalities}
    for row in range(len(batch)):
        mine = {}
        for m in config.modalities:
            start, stop = features[m].offsets[row : row + 2].tolist()
            mine[m] = (features[m].values[start:stop], features[m].positions[start:stop].tolist())
        lengths = {m: torch.tensor([len(mine[m][0])]) for m in mine}
        masks = draw_masks(lengths, batch.seed, batch.step, batch.slots[row : row + 1], config.masking)
        visible = {m: mask.tolist() for m, mask in masks.visible.items()}
        latents = twin_latents(model, mine, visible)
        for m in (m for m in mine if len(mine[m][0])):
            prediction = twin_prediction(model, m, mine[m][1], visible[m], latents)
            for i, (target, p) in enumerate(zip(*mine[m], strict=True)):
                if visible[m][i] and config.loss_on == "masked":
                    continue
                if config.normalize_targets:
                    target = (target - target.mean()) / (target.var(correction=0) + 1e-5).sqrt()
                error = (prediction[i] - target).square().mean()
                if m is STRUCTURE and config.confidence_weighted:
                    error = error * (p * 7 % 101) / 100
                sums[m] = (sums[m][0] + error, sums[m][1] + 1)
    return {f"reconstruction/{m}": value for m, value in sums.items()}


def twin_latents(model: Any, mine: dict[Modality, tuple[Tensor, list[int]]], visible: dict) -> dict[str, Tensor]:
    tokens = {"global": [model.global_token.vector]}
    for m, (values, positions) in mine.items():
        way = model.projections[m]
        rows = [
            linear(way.linear, v) + position(p, 16) + way.mark.vector for v, p in zip(values, positions, strict=True)
        ]
        tokens[m] = [row for row, shown in zip(rows, visible[m], strict=True) if shown]
    encoded = dense_transformer(model.encoder, torch.stack([row for rows in tokens.values() for row in rows]))
    return dict(zip(tokens, encoded.split([len(rows) for rows in tokens.values()]), strict=True))


def twin_prediction(
    model: Any, m: Modality, positions: list[int], visible: list[bool], latents: dict[str, Tensor]
) -> Tensor:
    decoder, cross, sees = model.decoders[m], model.decoders[m].cross, model.config.row(m)
    own = iter(latents[m])
    slots = []
    for p, shown in zip(positions, visible, strict=True):
        slot = linear(decoder.adopt, next(own)) if shown and m in sees.tokens else decoder.mask.vector
        slots.append(slot + position(p, 8) + decoder.mark.vector)
    x = torch.stack(slots)
    context = torch.cat([latents[source] for source in ("global",) * sees.global_token + sees.tokens])
    x = x + dense_attention(cross.attention, norm(cross.attention_norm, x), norm(cross.context_norm, context))
    return linear(decoder.out, dense_transformer(decoder.blocks, dense_mlp(cross, x)))


CASES = {
    "cumulative": {},
    "sequence_only": {"sees": "sequence_only"},
    "symmetric, all tokens": {"sees": "symmetric", "loss_on": "all"},
    "normalised targets": {"normalize_targets": True},
    "confidence": {"confidence_weighted": True},
    "dropout": {"masking": MaskingConfig(keep=0.5, dropout=Dropout(sequence=0.5, structure=0.5, function=0.5))},
    "three modalities": {"modalities": ["sequence", "structure", "function"]},
    "own rows": {
        "modalities": ["sequence", "structure"],
        "sees": {
            "sequence": Sees(tokens=(STRUCTURE,), global_token=False),  # proteins without structure: no context at all
            "structure": Sees(tokens=()),
        },
    },
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_twins(case: str, proteins, widths):
    model = make_model(tiny(**CASES[case]), widths)
    features, batch = proteins(MIXED)
    expected = twin(model, features, batch)
    losses = model(features, batch)
    assert tuple(losses) == tuple(expected) == model.loss_names()
    for name, (total, count) in expected.items():
        assert losses[name].count == count > 0
        torch.testing.assert_close(losses[name].sum, total, rtol=2e-5, atol=1e-5)

    ours = torch.autograd.grad(sum_of(losses), list(model.parameters()))
    theirs = torch.autograd.grad(
        torch.stack([total for total, _ in expected.values()]).sum(), list(model.parameters()), allow_unused=True
    )
    for (name, _), got, want in zip(model.named_parameters(), ours, theirs, strict=True):
        want = torch.zeros_like(got) if want is None else want
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * max(1.0, float(want.abs().max())), msg=name)


def sum_of(losses: dict[str, Loss]) -> Tensor:
    return torch.stack([loss.sum for loss in losses.values()]).sum()


def test_counts_are_known_before_encoding_and_weights_are_the_configs(proteins, widths):
    for changes in ({}, {"loss_on": "all"}, {"weights": Weights(structure=0.25)}, {"variant": "contrastive"}):
        model = make_model(tiny(**changes), widths)
        features, batch = proteins(MIXED)
        losses = model(features, batch)
        assert {name: loss.count for name, loss in losses.items()} == model.counts(batch)
        assert tuple(losses) == model.loss_names()
        weights = [loss.weight for loss in losses.values()]
        assert weights == ([1, 0.25, 1, 1] if "weights" in changes else [1] * len(losses))


def test_proteins_alone_add_up_to_the_batch(proteins, widths):
    model = make_model(TINY, widths)
    whole = model(*proteins(MIXED))
    single = [model(*proteins({m: [MIXED[m][row]] for m in MIXED}, slots=[row])) for row in range(5)]
    for name, loss in whole.items():
        assert loss.count == sum(part[name].count for part in single)
        torch.testing.assert_close(loss.sum, sum(part[name].sum for part in single), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["reconstruction", "contrastive"])
def test_every_parameter_has_a_gradient_whatever_is_missing(variant: str, proteins, widths):
    model = make_model(tiny(variant=variant), widths)
    cases = [{m: [5, 7] if m in subset else [0, 0] for m in Modality} for subset in SUBSETS]
    cases += [{m: [] for m in Modality}, {m: [0] for m in Modality}]
    for lengths in cases:
        features, batch = proteins(lengths)
        model.zero_grad()
        losses = model(features, batch)
        for name, loss in losses.items():
            assert loss.count or (loss.sum.item() == 0 and loss.sum.requires_grad), (lengths, name)
        sum_of(losses).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (lengths, name)


def test_the_smallest_proteins_stay_finite(proteins, widths):
    for keep in (0.01, 1.0):
        model = make_model(tiny(masking=MaskingConfig(keep=keep)), widths)
        losses = model(*proteins({m: [1, 2] for m in Modality}))
        sum_of(losses).backward()
        assert all(loss.sum.isfinite() for loss in losses.values())
        assert all(loss.count == 0 and loss.sum == 0 for loss in losses.values()) == (keep == 1.0)


# --- who sees what ---


def predictions(model: Amma, features: Features, batch: Batch) -> dict[Modality, Tensor]:
    """Each decoder's output, caught on its way to the loss."""
    caught: dict[Modality, Tensor] = {}

    def catch(decoder: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(decoder, Decoder)
        caught[decoder.modality] = out

    hooks = [decoder.register_forward_hook(catch) for decoder in model.decoders.values()]
    model(features, batch)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("sees", ["cumulative", "sequence_only", "symmetric"])
def test_no_masked_feature_reaches_any_prediction(sees: str, proteins, widths):
    model = make_model(tiny(sees=sees, masking=MaskingConfig(keep=0.4, dropout=Dropout(function=0.5))), widths)
    features, batch = proteins(MIXED)
    before = predictions(model, features, batch)
    visible = draw_masks(batch.lengths, batch.seed, batch.step, batch.slots, model.config.masking).visible
    hidden = {m: replace(t, values=t.values + 100.0 * ~visible[m].unsqueeze(1)) for m, t in features.items()}
    after = predictions(model, hidden, batch)
    assert all(torch.equal(before[m], after[m]) for m in Modality)
    shown = {m: replace(t, values=t.values + 1.0 * visible[m].unsqueeze(1)) for m, t in features.items()}
    after = predictions(model, shown, batch)
    assert all(not torch.allclose(before[m], after[m]) for m in Modality)


EXPECTED = {
    "cumulative": {SEQUENCE: "q", STRUCTURE: "qs", FUNCTION: "qsf", IMAGE: "qsfi"},
    "sequence_only": {SEQUENCE: "q", STRUCTURE: "q", FUNCTION: "q", IMAGE: "qsfi"},
    "symmetric": {SEQUENCE: "qsf", STRUCTURE: "qsf", FUNCTION: "qsf", IMAGE: "qsfi"},
}


@pytest.mark.parametrize("sees", EXPECTED)
def test_a_decoder_reads_the_latents_of_its_row_and_no_others(sees: str, proteins, widths):
    model = make_model(tiny(sees=sees), widths)
    features, _ = proteins({m: [5, 6] for m in Modality})
    latents = model(features, task="latents")
    visible = torch.ones(11, dtype=torch.bool)

    def decode(m: Modality, latents: Latents) -> Tensor:
        return model.decoders[m](latents, features[m].positions, features[m].offsets, visible)

    for m in Modality:
        before = decode(m, latents)
        seen = ""
        for letter, source in zip("qsfi", Modality, strict=True):
            tokens = latents.tokens[source]
            other = latents.tokens | {source: replace(tokens, values=tokens.values.flip(1))}
            seen += letter * (not torch.equal(decode(m, Latents(other, latents.global_token)), before))
        assert seen == EXPECTED[sees][m]
        assert not torch.equal(decode(m, Latents(latents.tokens, latents.global_token.flip(1))), before)


def test_a_row_without_the_global_token_does_not_read_it(proteins, widths):
    sees = {"sequence": Sees(tokens=(SEQUENCE,), global_token=False), "function": Sees(tokens=())}
    model = make_model(tiny(modalities=["sequence", "function"], sees=sees), widths)
    features, _ = proteins({SEQUENCE: [5], FUNCTION: [5]})
    latents = model(features, task="latents")
    moved = Latents(latents.tokens, latents.global_token + 1)
    for m, same in ((SEQUENCE, True), (FUNCTION, False)):
        decoder = model.decoders[m]
        assert isinstance(decoder, Decoder) and (decoder.adopt is not None) == same
        shape = features[m].positions, features[m].offsets, torch.ones(5, dtype=torch.bool)
        assert torch.equal(decoder(latents, *shape), decoder(moved, *shape)) == same


def test_dropped_modalities_are_reconstructed_from_the_others(proteins, widths):
    dropout = Dropout(sequence=0, structure=1, function=1, image=1)
    model = make_model(tiny(masking=MaskingConfig(keep=0.5, dropout=dropout)), widths)
    features, batch = proteins({SEQUENCE: [8, 6], STRUCTURE: [8, 5], FUNCTION: [3, 0], IMAGE: [4, 0]})
    counts = {m: model(features, batch)[f"reconstruction/{m}"].count for m in Modality}
    assert counts == {SEQUENCE: 7, STRUCTURE: 13, FUNCTION: 3, IMAGE: 4}
    alone: Features = {
        m: features[m] if m is SEQUENCE else replace(features[m], values=features[m].values * 0) for m in Modality
    }
    before, after = predictions(model, features, batch), predictions(model, alone, batch)
    assert all(torch.equal(before[m], after[m]) for m in Modality)


# --- inference ---


def test_embeddings_are_means_of_latents_and_independent_of_batch_mates(proteins, widths):
    model = make_model(TINY, widths).eval()
    features, _ = proteins(MIXED)
    with torch.no_grad():
        whole, latents = model(features, task="embeddings"), model(features, task="latents")
    for row in range(5):
        single, _ = proteins({m: [MIXED[m][row]] for m in MIXED}, slots=[row])
        with torch.no_grad():
            alone = model(single, task="embeddings")
        everything = []
        for m in Modality:
            assert bool(whole.present[m][row]) == bool(alone.present[m][0]) == (MIXED[m][row] > 0)
            torch.testing.assert_close(whole.values[m][row], alone.values[m][0], rtol=1e-5, atol=1e-6)
            only, _ = proteins({m: [MIXED[m][row]]}, slots=[row])
            with torch.no_grad():
                own = model(only, task="latents").tokens[m].values
            expected = own.mean(0) if len(own) else torch.zeros(16)
            torch.testing.assert_close(whole.values[m][row], expected, rtol=1e-5, atol=1e-6)
            start, stop = features[m].offsets[row : row + 2].tolist()
            everything.append(latents.tokens[m].values[start:stop])
        torch.testing.assert_close(whole.fused[row], torch.cat(everything).mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.fused[0], whole.fused[row], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(latents.tokens[m].positions, features[m].positions) for m in Modality)
    assert latents.global_token.shape == (5, 16)


def test_half_precision_runs_by_autocast_and_by_parameters(proteins, widths):
    features, batch = proteins(MIXED)
    reference = make_model(TINY, widths)(features, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = make_model(TINY, widths)(features, batch)
    half = make_model(TINY, widths).bfloat16()(features, batch)
    for name, loss in reference.items():
        for other in (autocast[name], half[name]):
            assert other.sum.dtype == torch.float32
            torch.testing.assert_close(other.sum, loss.sum, rtol=0.1, atol=0.1)
    sum_of(half).backward()
    contrastive = make_model(tiny(variant="contrastive"), widths).bfloat16()
    sum_of(contrastive(features, batch)).backward()
    assert contrastive(features, task="embeddings").fused.dtype == torch.float32


def test_looks_are_those_of_a_dense_softmax(proteins, widths):
    """Function tokens' attention to residues, block by block: the mean over heads and over a protein's own tokens."""
    model = make_model(TINY, widths)
    features, _ = proteins(MIXED)
    found = model.looks(features, by=FUNCTION, of=SEQUENCE)
    assert found.values.shape == (sum(MIXED[SEQUENCE]), TINY.depth) and torch.equal(
        found.positions, features[SEQUENCE].positions
    )
    for row in range(5):
        parts = [model.global_token(torch.zeros(1, TINY.width))]
        for m in Modality:
            span = slice(*features[m].offsets[row : row + 2].tolist())
            parts.append(model.projections[m](features[m].values[span], features[m].positions[span]))
        counts = [len(part) for part in parts]
        begin = [sum(counts[:i]) for i in range(5)]
        residues, words = slice(begin[1], begin[1] + counts[1]), slice(begin[3], begin[3] + counts[3])
        x, span = torch.cat(parts), slice(*features[SEQUENCE].offsets[row : row + 2].tolist())
        blocks: list[Any] = list(model.encoder.blocks)
        for depth, block in enumerate(blocks):
            normed, looks = norm(block.attention_norm, x), []
            query, key = linear(block.attention.query, normed), linear(block.attention.key, normed)
            for h in range(TINY.heads):
                part = slice(h * 8, (h + 1) * 8)
                looks.append((query[:, part] @ key[:, part].T / 8**0.5).softmax(1)[words, residues])
            want = torch.stack(looks).mean((0, 1)) if counts[3] else torch.zeros(counts[1])
            torch.testing.assert_close(found.values[span, depth], want, rtol=1e-4, atol=1e-6)
            x = dense_mlp(block, x + dense_attention(block.attention, normed, normed))
    assert (found.values.sum() > 0) and all(model.looks(features, IMAGE, STRUCTURE).values.sum(0) > 0)


def test_paper_size_builds_without_memory():
    widths = dict(zip(Modality, (1280, 3072, 768, 768), strict=True))
    with torch.device("meta"):
        model = Amma(AmmaConfig(), widths)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert sum(parameter.numel() for parameter in model.parameters()) == 102_421_504


# --- configuration ---


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"width": 100, "heads": 12}, "width 100 must be a multiple of heads 12"),
        ({"decoder": {"width": 10, "heads": 4}}, "decoder.width 10 must be a multiple of decoder.heads 4"),
        ({"modalities": ["structure", "sequence"]}, "in the order"),
        ({"modalities": ["sequence"], "variant": "contrastive"}, "at least two"),
        ({"sees": {"sequence": {"tokens": ["sequence"]}}}, "a row for each"),
        ({"modalities": ["sequence"], "sees": {"sequence": {"tokens": ["image"]}}}, "sees.sequence must name"),
        ({"modalities": ["sequence"], "sees": {"sequence": {"tokens": [], "global_token": False}}}, "sees.sequence"),
        ({"modalities": ["sequence"], "sees": {"sequence": {"tokens": ["sequence"] * 2}}}, "each once"),
        ({"masking": {"kep": 0.1}}, "did you mean 'keep'"),
        ({"masking": {"alpha": {"sequence": 0}}}, "greater than 0"),
    ],
)
def test_bad_configurations_say_what_is_wrong(tree: dict, said: str):
    with pytest.raises(ValueError, match=said):
        validate(AmmaConfig, tree, "test")


def test_configurations_survive_a_dump():
    config = tiny(modalities=["sequence"], sees={"sequence": Sees(tokens=(SEQUENCE,), global_token=False)})
    assert validate(AmmaConfig, dump(config), "again") == config
    assert AmmaConfig().row(FUNCTION) == Sees(tokens=(SEQUENCE, STRUCTURE, FUNCTION))


def test_a_modality_without_encoder_is_refused():
    with pytest.raises(ValueError, match="has image but encoders give only sequence, structure, function"):
        build(AmmaConfig(), {SEQUENCE: 1, STRUCTURE: 1, FUNCTION: 1})


def test_features_other_than_announced_are_refused(proteins, widths):
    features, batch = proteins(MIXED)
    batch = replace(batch, lengths=dict(batch.lengths) | {SEQUENCE: batch.lengths[SEQUENCE].flip(0)})
    with pytest.raises(AssertionError, match="sequence: the batch announced"):
        make_model(TINY, widths)(features, batch)
