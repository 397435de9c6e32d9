"""self-SSGI: what is hidden cannot be told, what is held out is not read, losses by hand, terms, and embeddings."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pretrain import models
from pretrain.batch import Batch, Embeddings, Features, Tokens, lengths_of
from pretrain.encoders.bundle import EncodersConfig, to_train
from pretrain.layers.residues import view
from pretrain.masking import Purpose, generator, hold_out
from pretrain.models.ssgi import FUSED, HELD, Ssgi, SsgiConfig
from pretrain.objectives.contrastive import collect
from pretrain.sample import Function, Modality, Sample, Term, Text
from tests.models import ABOVE, MODELS, TERMS, batch_of, build, encoders_config, sample, subsets
from tests.unit.datasets import protein

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
KINDS = [name for name in MODELS if name.startswith("ssgi")]


def made(name: str = "ssgi", **settings: Any) -> tuple[Ssgi, Any]:
    """The model, and the encoders around it."""
    if not settings:
        model, encoders = build(name)
    else:
        _, encoders = build(name)
        config = SsgiConfig.model_validate({**MODELS[name][0], **settings})
        torch.manual_seed(0)
        trained = to_train(encoders_config(name), config.trains)
        model = models.build(config, encoders.widths(), trained, TERMS if config.reads_terms else None)
    assert isinstance(model, Ssgi)
    return model, encoders


def mixed(count: int = 8) -> list[Sample]:
    """Most have a sequence, a structure and annotations; some have images, some lack one or another."""
    every = [
        (SEQUENCE, STRUCTURE, FUNCTION, IMAGE), (SEQUENCE, STRUCTURE, FUNCTION), (SEQUENCE, FUNCTION, IMAGE),
        (STRUCTURE, FUNCTION), (FUNCTION, IMAGE), (SEQUENCE, IMAGE), (SEQUENCE, STRUCTURE), (FUNCTION,),
    ]  # fmt: skip
    return [sample(3 * i + 1, *every[i % len(every)]) for i in range(count)]


def read(model: Ssgi, features: Features, batch: Batch) -> Tensor:
    """The residues' latents of a step."""
    found: list[Tokens] = []
    hook = model.trunk.register_forward_hook(lambda *parts: found.append(parts[2]))
    model(features, batch)
    hook.remove()
    return found[0].values


@pytest.mark.parametrize("name", KINDS)
def test_a_hidden_residue_is_told_by_neither_sequence_nor_structure(name: str) -> None:
    """Its letter, its atoms and its frozen features may be anything; what changes is only what the guess is held
    against. A residue that is not hidden is seen by all."""
    model, encoders = made(name, dropout={})
    batch = batch_of([sample(1, SEQUENCE, STRUCTURE, FUNCTION)], encoders)
    features = encoders(batch)
    shown = view(batch, model.config.masked, model.config.dropout)
    covered = {int(p): i for i, p in enumerate(batch.structure.positions)}
    rows = range(len(shown.hidden))
    hidden = next(r for r in rows if shown.hidden[r] and r in covered)
    seen = next(r for r in rows if not shown.hidden[r] and r in covered)
    states = torch.full_like(batch.structure.letters, ord("D"))
    batch = replace(batch, structure=replace(batch.structure, states=states))
    before, losses = read(model, features, batch), model(features, batch)
    for row in (hidden, seen):
        letters, chain = batch.sequence.letters.clone(), batch.structure
        other = ord("W") if letters[row] != ord("W") else ord("A")
        letters[row] = other
        atoms, codes, states = chain.coordinates.clone(), chain.letters.clone(), chain.states.clone()  # type: ignore[union-attr]
        atoms[covered[row]] += torch.tensor([4.0, -3.0, 2.0])
        codes[covered[row]], states[covered[row]] = other, ord("A")
        structure = replace(chain, coordinates=atoms, letters=codes, states=states)
        changed = replace(batch, sequence=replace(batch.sequence, letters=letters), structure=structure)
        after, again = read(model, encoders(changed), changed), model(encoders(changed), changed)
        assert torch.equal(before, after) == (row == hidden)
        assert again["residue"].sum != losses["residue"].sum and again["structure"].sum != losses["structure"].sum


@pytest.mark.parametrize("name", KINDS)
def test_tokens_meet_in_the_row_of_their_residue_protein_by_protein(name: str) -> None:
    """By their positions, also where proteins before lack one of both, or have it dropped, and where a window cuts."""
    model, encoders = made(name, dropout={"sequence": 0.3, "structure": 0.4})
    both = [protein(f"L{i}", SEQUENCE, STRUCTURE, length=38, covered=(4, 28 + i)) for i in range(8)]
    batch = batch_of([*mixed(), *both], encoders, step=2)
    features, shown = encoders(batch), view(batch, model.config.masked, model.config.dropout)
    tokens = model._encoded(batch, features, shown.sequence, shown.structure)
    lengths, kinds = lengths_of(shown.residues.offsets).tolist(), set()
    for number, rows in enumerate(read(model, features, batch).split(lengths)):
        known: dict[int, Tensor] = {}
        for m in (SEQUENCE, STRUCTURE):
            each = tokens[m].select(tokens[m].owners == number)
            project: Any = model.trunk.projections[m.value]
            for position, row in zip(each.positions.tolist(), project(each.values, each.positions), strict=True):
                known[position] = known[position] + row if position in known else row
        if number >= len(mixed()):
            kinds.add((bool(tokens[SEQUENCE].lengths[number]), bool(tokens[STRUCTURE].lengths[number])))
        if known:
            every = torch.stack([known[position] for position in sorted(known)])
            want = model.trunk.blocks(every, torch.tensor([0, len(every)]))
            torch.testing.assert_close(rows, want, atol=1e-5, rtol=1e-5)
        assert len(rows) == len(known)
    assert kinds == {(True, True), (True, False), (False, True)}


def test_frozen_features_of_a_structure_are_told_and_never_read() -> None:
    model, encoders = made()
    batch = batch_of(mixed(), encoders)
    features = encoders(batch)
    other = {**features, STRUCTURE: replace(features[STRUCTURE], values=torch.randn_like(features[STRUCTURE].values))}
    assert torch.equal(read(model, features, batch), read(model, other, batch))
    losses, changed = model(features, batch), model(other, batch)
    assert [name for name in losses if not torch.equal(losses[name].sum, changed[name].sum)] == ["structure"]
    assert torch.equal(model(features, batch, task="embeddings").fused, model(other, batch, task="embeddings").fused)


def test_what_is_held_out_is_not_read_by_the_fusion() -> None:
    """Change it: what is fused stays. Change what is shown: it does not."""
    model, encoders = made()
    samples = mixed()
    batch = batch_of(samples, encoders, step=2)
    features = encoders(batch)
    rows = model(features, batch, task="negatives")
    held = {level: rows.present[HELD + level] for level in model.levels}
    assert all(any(h[i] for h in held.values()) and not all(h[i] for h in held.values()) for i in (0, 1))
    tested = set()
    for i in range(len(samples)):
        for level, changed in (("text", _texts(features, i)), ("image", _images(features, i))):
            if rows.present[level][i]:
                again = model(changed, batch, task="negatives")
                assert not torch.equal(again.embeddings[level][i], rows.embeddings[level][i])
                same = torch.equal(again.embeddings[FUSED][i], rows.embeddings[FUSED][i])
                assert same == bool(held[level][i]), (i, level)
                tested.add((level, same))
        if rows.present["terms"][i]:
            ids = batch.terms.ids.clone()  # type: ignore[union-attr]
            at = batch.terms.offsets[i]  # type: ignore[union-attr]
            ids[at] = (ids[at] + 1) % len(TERMS)
            again = model(features, replace(batch, terms=replace(batch.terms, ids=ids)), task="negatives")  # type: ignore
            same = torch.equal(again.embeddings[FUSED][i], rows.embeddings[FUSED][i])
            assert same == bool(held["terms"][i])
            tested.add(("terms", same))
        if rows.present["residues"][i]:
            letters = batch.sequence.letters.flip(0)
            chain = replace(batch.structure, coordinates=batch.structure.coordinates.flip(0) * 1.5)
            sequence = replace(batch.sequence, letters=letters)
            again = model(features, replace(batch, sequence=sequence, structure=chain), task="negatives")
            same = torch.equal(again.embeddings[FUSED][i], rows.embeddings[FUSED][i])
            assert same == bool(held["residues"][i])
            tested.add(("residues", same))
    assert {level for level, _ in tested} == set(model.levels) and {same for _, same in tested} == {True, False}


def _texts(features: Features, i: int) -> Features:
    return _moved(features, FUNCTION, i)


def _images(features: Features, i: int) -> Features:
    return _moved(features, IMAGE, i)


def _moved(features: Features, m: Modality, i: int) -> Features:
    values = features[m].values.clone()
    values[features[m].offsets[i] : features[m].offsets[i + 1], ::2] += 1
    return {**features, m: replace(features[m], values=values)}


def test_levels_are_held_out_as_often_as_asked_and_never_all() -> None:
    random = torch.Generator().manual_seed(0)
    present = torch.rand(3000, 4, generator=random) < 0.7
    slots = torch.arange(3000)
    held = hold_out(present, 1, 2, slots, 0.3)
    assert not (held & ~present).any() and not (held.all(1) | ((held == present).all(1) & present.any(1))).any()
    several = present.sum(1) >= 3
    assert abs(float(held[several].sum() / present[several].sum()) - 0.3) < 0.03
    alone = hold_out(present[17:18], 1, 2, slots[17:18], 0.3)
    assert torch.equal(alone[0], held[17]) and not torch.equal(held, hold_out(present, 1, 3, slots, 0.3))
    uniform = generator(1, 2, 17, Purpose.LEVEL).random(4)
    assert torch.equal(held[17], present[17] & torch.from_numpy(uniform < 0.3)) or (uniform < 0.3)[present[17]].all()
    assert hold_out(present[:0], 1, 2, slots[:0], 0.3).shape == (0, 4)


def annotated() -> list[Sample]:
    """Those of `mixed`; of some the same is said: by terms, by a text, or by both in a chain."""
    said = {0: (0, "a"), 1: (0, "b"), 2: (1, "b"), 3: (2, "c"), 4: (3, "c"), 7: (4, "d")}
    names = list(ABOVE)
    return [
        one if i not in said
        else replace(one, function=Function((Term(names[said[i][0]], "IDA"),), (Text(said[i][1] * 3, "a"),)))
        for i, one in enumerate(mixed())
    ]  # fmt: skip


ALIKE = {0: 0, 1: 0, 2: 0, 3: 3, 4: 3}  # of `annotated`: who is whose positive; the others are alone


def test_levels_are_compared_as_a_slow_twin_does() -> None:
    """Where annotations are compared, proteins of which the same is said are each other's positives."""
    model, encoders = made()
    batch = batch_of(annotated(), encoders)
    features = encoders(batch)
    losses, rows = model(features, batch), model(features, batch, task="negatives")
    temperature = float(model.temperature().detach())
    names = [
        *((model.levels[0], level) for level in model.levels[1:]),
        *((FUSED, HELD + level) for level in model.levels),
    ]
    assert list(rows.pairs) == names
    several = set()
    for a, b in names:
        both = (rows.present[a] & rows.present[b]).nonzero().squeeze(1).tolist()
        level = b.removeprefix(HELD)
        loss = losses[f"contrastive/{a}-{level}"]
        assert loss.count == len(both)
        scores = rows.embeddings[a][both] @ rows.embeddings[b][both].T / temperature
        group = [ALIKE.get(i, i) if level in ("terms", "text") else i for i in both]
        targets = torch.tensor([[float(g == h) / group.count(g) for h in group] for g in group]).reshape(scores.shape)
        several |= {level} if len(set(group)) < len(group) else set()
        slow = torch.zeros(())
        if len(both) > 1:
            slow = -(targets * (scores.log_softmax(1) + scores.T.log_softmax(1))).sum() / 2
        torch.testing.assert_close(loss.sum, slow, atol=1e-4, rtol=1e-5)
    assert several == {"terms", "text"}


def test_weights_of_the_losses_are_those_of_the_configuration() -> None:
    model, encoders = made(weights={"residue": 2.0, "structure": 3.0, "alignment": 4.0, "fusion": 5.0})
    batch = batch_of(mixed(), encoders)
    losses = model(encoders(batch), batch)
    assert {name: loss.weight for name, loss in losses.items()} == {
        "residue": 2.0, "structure": 3.0,
        **{f"contrastive/residues-{level}": 4.0 for level in ("terms", "text", "image")},
        **{f"contrastive/fused-{level}": 5.0 for level in ("residues", "terms", "text", "image")},
    }  # fmt: skip


def test_a_step_in_parts_is_the_step() -> None:
    """Losses and gradients, whatever the micro-batches: what is hidden, held out and said alike is the step's."""
    model, encoders = made()
    samples = annotated()

    def part(*slots: int) -> tuple[Features, Batch]:
        batch = batch_of([samples[i] for i in slots], encoders, slots=slots)
        return encoders(batch), batch

    parts = [part(0, 3, 5), part(), part(1, 2, 4, 6, 7)]
    negatives = collect([model(*each, task="negatives") for each in parts], [batch.slots for _, batch in parts])
    found = []
    for losses in ([model(*part(*range(8)))], [model(*each, negatives) for each in parts]):
        sums = {name: torch.stack([one[name].sum for one in losses]).sum() for name in model.loss_names()}
        gradients = torch.autograd.grad(torch.stack([*sums.values()]).sum(), list(model.parameters()))
        found.append((sums, gradients))
    (whole, gradients), (several, others) = found
    torch.testing.assert_close(several, whole, rtol=1e-4, atol=1e-4)
    for got, want in zip(others, gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_learns(name: str) -> None:
    """But for a key's bias, which softmax does not see, and the language-model head, which is not there."""
    model, encoders = made(name, dropout={})
    batch = batch_of(mixed(24), encoders)
    states = torch.full_like(batch.structure.letters, ord("D"))
    batch = replace(batch, structure=replace(batch.structure, states=states))
    losses = model(encoders(batch), batch)
    assert all(loss.count > 1 for loss in losses.values()), {n: loss.count for n, loss in losses.items()}
    torch.stack([loss.sum for loss in losses.values()]).sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {n for n in still if not n.endswith("key.bias")}, still
    assert model.trained["sequence"].head is None and not model.trained["sequence"].config.head


@pytest.mark.parametrize("name", KINDS)
def test_an_embedding_does_not_depend_on_batch_mates_or_draws(name: str) -> None:
    model, encoders = made(name)
    samples = [replace(one, structures=one.structures[:1]) for one in mixed()]
    whole = batch_of(samples, encoders)
    together = model(encoders(whole), whole, task="embeddings")
    for i, one in enumerate(samples):
        batch = batch_of([one], encoders, step=9, slots=[i + 30])
        alone = model(encoders(batch), batch, task="embeddings")
        torch.testing.assert_close(alone.fused[0], together.fused[i], atol=1e-5, rtol=1e-4)
        for m in model.modalities:
            assert alone.present[m][0] == together.present[m][i] == (m in one.modalities)
            torch.testing.assert_close(alone.values[m][0], together.values[m][i], atol=1e-5, rtol=1e-4)
            assert abs(float(alone.values[m][0].detach().norm()) - float(m in one.modalities)) < 1e-5


def test_a_modality_alone_is_what_a_protein_with_nothing_else_has() -> None:
    model, encoders = made()
    one = replace(sample(5, *Modality), structures=sample(5, *Modality).structures[:1])
    whole = batch_of([one], encoders)
    every = model(encoders(whole), whole, task="embeddings")
    kept = {"sequence": "sequence", "structure": "structures", "function": "function", "image": "images"}
    empty: dict[str, Any] = {"sequence": None, "structures": (), "function": None, "images": ()}
    for m in Modality:
        only = replace(one, **{name: value for name, value in empty.items() if name != kept[m]})
        batch = batch_of([only], encoders)
        alone = model(encoders(batch), batch, task="embeddings")
        torch.testing.assert_close(alone.values[m], every.values[m], atol=1e-5, rtol=1e-4)


def test_terms_without_texts_are_function_and_texts_without_terms() -> None:
    model, encoders = made()
    terms, texts = (Term("GO:0000004", "IDA"), Term("GO:0000002", "IEA")), (Text("binds zinc", "a"),)
    samples = [
        Sample("A", function=Function(terms=terms)), Sample("B", function=Function(texts=texts)),
        Sample("C", function=Function(terms, texts)), Sample("D", sequence="MKVA"),
    ]  # fmt: skip
    batch = batch_of(samples, encoders)
    found = model(encoders(batch), batch, task="embeddings")
    assert found.present[FUNCTION].tolist() == [True, True, True, False]
    both = found.values[FUNCTION]
    torch.testing.assert_close(both[2], torch.nn.functional.normalize(both[0] + both[1], dim=0))
    assert len({tuple(row) for row in found.fused.tolist()}) == 4
    without, encoders = made("ssgi-gvp")
    batch = batch_of(samples, encoders)
    found = without(encoders(batch), batch, task="embeddings")
    assert found.present[FUNCTION].tolist() == [False, True, True, False]


def test_latents_are_those_of_residues_and_come_with_their_places() -> None:
    model, encoders = made()
    samples = mixed()
    batch = batch_of(samples, encoders)
    found = model(encoders(batch), batch, task="latents")
    assert {m: each.lengths.tolist() for m, each in found.tokens.items()} == {
        m: batch.lengths[m].tolist() for m in Modality
    }
    sequence, structure = found.tokens[SEQUENCE], found.tokens[STRUCTURE]
    places = {
        (int(o), int(p)): row for o, p, row in zip(sequence.owners, sequence.positions, sequence.values, strict=True)
    }
    met = 0
    for owner, position, row in zip(structure.owners, structure.positions, structure.values, strict=True):
        if int(lengths_of(sequence.offsets)[owner]):
            met += 1
            assert torch.equal(places[int(owner), int(position)], row)
    assert met and found.global_token.shape == (len(samples), 16)


@pytest.mark.parametrize(
    "modalities", [m for m in subsets() if {*m} & {SEQUENCE, STRUCTURE} and {*m} & {FUNCTION, IMAGE}]
)
def test_models_of_fewer_modalities_train_and_embed(modalities: tuple[Modality, ...]) -> None:
    _, encoders = build("ssgi")
    config = SsgiConfig.model_validate({**MODELS["ssgi"][0], "modalities": modalities})
    tree = {k: v for k, v in encoders_config("ssgi").model_dump().items() if k in (*modalities, "crop")}
    trained = to_train(EncodersConfig.model_validate(tree), config.trains)
    model = models.build(config, encoders.widths(), trained, TERMS)
    full = batch_of(mixed(), encoders)
    features = encoders(full)
    batch = _lacking(full, set(Modality) - set(modalities))
    losses = model(features, batch)
    assert {name: loss.count for name, loss in losses.items()} == model.counts(batch)
    torch.stack([loss.sum for loss in losses.values()]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    found = model(features, batch, task="embeddings")
    assert isinstance(found, Embeddings) and set(found.values) == set(modalities) and found.fused.isfinite().all()


def _lacking(batch: Batch, absent: set[Modality]) -> Batch:
    """As `collate` makes it for a model without these."""
    empty: dict[str, Any] = {}
    for m in absent:
        part = getattr(batch, m)
        rows = {k: v[:0] for k, v in vars(part).items() if v is not None}
        empty[m.value] = replace(part, **rows | {"offsets": torch.zeros_like(part.offsets)})
    if FUNCTION in absent:
        empty["terms"] = None
    lengths = {m: torch.zeros_like(n) if m in absent else n for m, n in batch.lengths.items()}
    return replace(batch, lengths=lengths, **empty)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ["sequence", "structure"]}, "self-SSGI joins residues with what is known of whole proteins"),
        ({"modalities": ["function", "image"]}, "modalities must have sequence or structure"),
        ({"modalities": ["image", "sequence"]}, "in the order"),
        ({"width": 30, "heads": 4}, "width 30 must be a multiple of heads 4"),
        ({"dropout": {"image": 0.1}}, "held_out is the one of function and image"),
        ({"geometry": {"kind": "egnn", "weights": "x.safetensors"}}, r"geometry.weights = 'x.* it is trained"),
        ({"geometry": {"kind": "gvp", "weights": "random", "seed": 3}}, "geometry.seed = 3: .* by the run's seed"),
        ({"geometry": {"kind": "gearnet", "weights": "random", "max_length": 9}}, "geometry.max_length = 9: "),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SsgiConfig.model_validate(settings)


def test_a_model_without_what_it_reads_is_refused() -> None:
    config = SsgiConfig()
    with pytest.raises(ValueError, match="the model has image but encoders give only sequence, structure, function"):
        models.build(config, {SEQUENCE: 8, STRUCTURE: 8, FUNCTION: 8}, {}, TERMS)
    with pytest.raises(ValueError, match=r"model\.terms=false does without"):
        models.build(config, dict.fromkeys(Modality, 8), {}, None)


def test_pairs_are_residues_with_each_level_and_fused_with_each() -> None:
    assert SsgiConfig().levels == ("residues", "terms", "text", "image")
    model, _ = made()
    fused = [f"contrastive/fused-{level}" for level in model.levels]
    near = [f"contrastive/{a}-{b}" for a, b in combinations(model.levels, 2) if a == "residues"]
    assert model.loss_names() == ("residue", "structure", *near, *fused)
