"""Bi-Hierarchical Fusion: what is hidden stays hidden, who hears whom, symmetry, gradients, and that it learns."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.batch import Batch, Embeddings, Latents, offsets_of
from pretrain.encoders.bundle import EncodersConfig, to_train
from pretrain.encoders.esm import HIDDEN
from pretrain.masking import hide
from pretrain.models import build
from pretrain.models.bihierarchical import Bihierarchical, BihierarchicalConfig
from pretrain.sample import Modality
from tests.models import EGNN, ENCODERS, GEARNET, GVP
from tests.unit.pretrain.encoders.test_graphs import rotation, turned
from tests.unit.pretrain.models.test_unimodal import batch_of

SEQUENCE, STRUCTURE = Modality.SEQUENCE, Modality.STRUCTURE
GRAPHS = {"gvp": GVP, "gearnet": GEARNET, "egnn": EGNN}
FUSIONS = ("hierarchical", "serial", "parallel", "cross")


def model_of(graph: str = "gvp", drawn: bool = True, layers: int = 3, **settings: Any) -> Bihierarchical:
    """drawn: also the maps that begin at 0, so that everything has an effect."""
    esm = {**ENCODERS["sequence"], "layers": layers, "max_length": 60}
    config = EncodersConfig.model_validate({"sequence": esm, "structure": GRAPHS[graph]})
    asked = BihierarchicalConfig.model_validate({"width": 16, "heads": 2, **settings})
    torch.manual_seed(0)
    model = build(asked, {}, to_train(config, asked.trains))
    assert isinstance(model, Bihierarchical)
    if drawn:
        for part in model.fusion.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.3)
    return model


def proteins(*lengths: int, chains: tuple[int, ...] | None = None) -> Batch:
    """Sequences of these lengths; of each the last residues have a structure, as many as `chains` says, or all."""
    batch = batch_of(list(lengths), [0] * len(lengths))
    counts = lengths if chains is None else chains
    keep = torch.cat([torch.arange(n) >= n - m for n, m in zip(lengths, counts, strict=True)])
    chain = batch.structure
    rows = {name: getattr(chain, name)[keep] for name in ("coordinates", "mask", "letters", "positions", "confidence")}
    return replace(batch, structure=replace(chain, **rows, offsets=offsets_of(torch.tensor(counts))))


def losses_of(model: Bihierarchical, batch: Batch) -> dict[str, Tensor]:
    losses = model({}, batch)
    assert isinstance(losses, dict)
    return {name: loss.sum for name, loss in losses.items()}


def embeddings_of(model: Bihierarchical, batch: Batch) -> Embeddings:
    found = model({}, batch, task="embeddings")
    assert isinstance(found, Embeddings)
    return found


def guesses_of(model: Bihierarchical, batch: Batch) -> tuple[Tensor, ...]:
    """The logits behind the losses."""
    kept: list[Any] = []
    hook = model._objective().guesses.register_forward_hook(lambda _, __, out: kept.append(out))
    losses_of(model, batch)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_what_is_hidden_in_one_branch_is_not_told_by_the_other(graph: str, fusion: str) -> None:
    """Change the letter of a hidden residue in the sequence, in the structure, and where it lies: no guess changes."""
    model, batch = model_of(graph, fusion=fusion), proteins(30, 24, chains=(30, 20))
    given = model._objective().given(batch)
    at = int((given.sequence.letters[:30] == HIDDEN).nonzero()[0])
    assert given.structure.letters[at] == ord("X") and given.structure.mask[at].tolist() == [False, True, False, False]
    letters = [each.letters.clone() for each in (batch.sequence, batch.structure)]
    for each in letters:
        each[at] = ord("W") if each[at] != ord("W") else ord("A")
    coordinates = batch.structure.coordinates.clone()
    coordinates[at] += 9.0
    expected = guesses_of(model, batch)
    for changed in (
        replace(batch, sequence=replace(batch.sequence, letters=letters[0])),
        replace(batch, structure=replace(batch.structure, letters=letters[1])),
        replace(batch, structure=replace(batch.structure, coordinates=coordinates)),
    ):
        assert all(torch.equal(one, other) for one, other in zip(guesses_of(model, changed), expected, strict=True))
    assert losses_of(model, changed)["distance"] != losses_of(model, batch)["distance"]  # what it is held against


@torch.no_grad()
def test_the_same_residues_are_hidden_and_shown_alike() -> None:
    batch = proteins(40, 30, chains=(35, 30))
    for step in range(3):
        model, step_batch = model_of(objective={"kind": "masked", "masked": 0.4}), replace(batch, step=step)
        given = model._objective().given(step_batch)
        rows = given.places[STRUCTURE]  # of sequences that are all there, residues are their rows
        was, told = batch.sequence.letters, given.sequence.letters
        assert torch.equal(given.structure.mask[:, 0], ~given.asked[rows])
        assert torch.equal((told != was) | given.asked, given.asked)
        hidden = told == HIDDEN
        assert torch.equal(given.structure.letters[hidden[rows]], torch.full((int(hidden[rows].sum()),), ord("X")))
        other = (told != was) & ~hidden
        assert torch.equal(given.structure.letters[other[rows]], told[rows][other[rows]])
        assert int(given.asked.sum()) == 28 and 15 < int(hidden.sum()) < 28
        assert given.triples[:, 0].equal(rows)  # distances and angles are asked of every residue that has any
    seen = model_of(objective={"kind": "masked", "coordinates": "seen"})._objective().given(batch)
    assert torch.equal(seen.structure.coordinates, batch.structure.coordinates) and len(seen.triples) == 65


@torch.no_grad()
def test_a_branch_is_dropped_and_asked_for_all_the_same() -> None:
    batch = proteins(30, 28, 26, 24, chains=(30, 20, 0, 24))
    model = model_of(objective={"kind": "masked", "masked": 0.4, "dropout": {"sequence": 1.0}})
    given = model._objective().given(batch)
    assert given.sequence.offsets.diff().tolist() == [0, 0, 26, 0]  # the last one that is there is not dropped
    assert given.structure.offsets.diff().tolist() == [30, 20, 0, 24]
    chained = torch.cat([torch.arange(n) >= n - m for n, m in ((30, 30), (28, 20), (26, 26), (24, 24))])
    asked, _ = hide(torch.tensor([30, 28, 26, 24]), 3, 0, torch.arange(4), 0.4)
    assert (asked & ~chained).any()
    assert torch.equal(given.asked, asked & chained)  # a residue that neither branch shows is not asked for
    blind = model_of(objective={"kind": "masked", "dropout": {"structure": 1.0}})
    question = blind._objective().given(batch)
    assert not len(question.structure.letters) and len(question.triples) > 5
    changed = replace(batch, structure=replace(batch.structure, letters=batch.structure.letters.flip(0)))
    pairs = zip(guesses_of(blind, batch), guesses_of(blind, changed), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("graph", GRAPHS)
@torch.no_grad()
def test_what_comes_out_does_not_turn_with_the_protein(graph: str) -> None:
    model, batch = model_of(graph), proteins(25, 20, chains=(25, 12))
    here = embeddings_of(model, batch)
    assert here.fused.std(0).min() > 1e-3
    for seed in range(3):
        there = embeddings_of(model, replace(batch, structure=turned(batch.structure, rotation(seed))))
        for one, other in ((here.fused, there.fused), (here.values[STRUCTURE], there.values[STRUCTURE])):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("graph", ["gvp", "egnn"])
@torch.no_grad()
def test_between_layers_vectors_and_coordinates_turn_with_it(graph: str) -> None:
    model, batch, turn = model_of(graph), proteins(25), rotation(5)
    states: list[Any] = []
    gnn = model._encoders()[1]
    finish = gnn.finish
    gnn.finish = lambda state: states.append(state) or finish(state)
    for structure in (batch.structure, turned(batch.structure, turn)):
        embeddings_of(model, replace(batch, structure=structure))
    fused = [state for state in states if len(state.rows) == 25]
    here, there = fused[1], fused[3]  # of each call the second is of both branches together
    torch.testing.assert_close(there.rows, here.rows, rtol=1e-4, atol=1e-4)
    if graph == "gvp":
        assert here.nodes.vectors.norm(dim=-1).max() > 0.1
        torch.testing.assert_close(there.nodes.vectors, here.nodes.vectors @ turn.T, rtol=1e-4, atol=1e-4)
    else:
        moved = here.points @ turn.T + torch.tensor([3.0, -40.0, 11.0]) / 10
        torch.testing.assert_close(there.points, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "hears"),
    [
        ({}, (True, True)),
        ({"levels": ["local"]}, (True, True)),
        ({"levels": ["global"]}, (True, True)),
        ({"direction": "to_structure"}, (False, True)),
        ({"direction": "to_sequence"}, (True, False)),
        ({"fusion": "serial"}, (False, True)),
        ({"fusion": "parallel"}, (False, False)),
        ({"fusion": "cross"}, (True, True)),
        ({"fusion": "cross", "direction": "to_sequence"}, (True, False)),
    ],
)
@pytest.mark.parametrize("graph", GRAPHS)
@torch.no_grad()
def test_who_hears_whom(graph: str, settings: dict[str, Any], hears: tuple[bool, bool]) -> None:
    """Whether each branch's rows change when the other's input does."""
    model, batch = model_of(graph, **settings), proteins(20, chains=(12,))
    letters = {m: getattr(batch, m).letters.flip(0) for m in (SEQUENCE, STRUCTURE)}

    def rows(given: Batch) -> dict[Modality, Tensor]:
        kept: dict[Modality, Tensor] = {}
        hooks = [
            model.readout[m].register_forward_hook(lambda _, __, out, m=m: kept.update({m: out}))
            for m in (SEQUENCE, STRUCTURE)
        ]
        if settings.get("fusion") == "cross":
            hooks.append(
                model.fusion[0].register_forward_hook(
                    lambda _, __, out: kept.update({SEQUENCE: out[0], STRUCTURE: out[1]})
                )
            )
        model({}, given, task="latents")
        for hook in hooks:
            hook.remove()
        return kept

    here = rows(batch)
    folded = rows(replace(batch, structure=replace(batch.structure, letters=letters[STRUCTURE])))
    told = rows(replace(batch, sequence=replace(batch.sequence, letters=letters[SEQUENCE])))
    assert not torch.equal(here[STRUCTURE], folded[STRUCTURE]) and not torch.equal(here[SEQUENCE], told[SEQUENCE])
    assert torch.equal(here[SEQUENCE], folded[SEQUENCE]) != hears[0]
    assert torch.equal(here[STRUCTURE], told[STRUCTURE]) != hears[1]


@pytest.mark.parametrize("graph", GRAPHS)
@torch.no_grad()
def test_at_the_beginning_the_encoders_are_as_they_were(graph: str) -> None:
    batch = proteins(20, 11, chains=(12, 11))
    model, alone = model_of(graph, drawn=False), model_of(graph, drawn=False, fusion="parallel")
    alone.readout.load_state_dict(model.readout.state_dict())
    one, other = model({}, batch, task="latents"), alone({}, batch, task="latents")
    assert isinstance(one, Latents) and isinstance(other, Latents)
    for m in (SEQUENCE, STRUCTURE):
        assert torch.equal(one.tokens[m].values, other.tokens[m].values)
        assert one.tokens[m].positions.tolist() == [*range(8 if m is STRUCTURE else 0, 20), *range(11)]
    torch.testing.assert_close(one.global_token[1], one.tokens[SEQUENCE].values[20:].mean(0))


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_embeddings_are_of_the_protein_alone(fusion: str) -> None:
    """Whoever its batch mates are; and a modality's is the protein's that has no other."""
    lengths, chains = (12, 9, 30, 4), (5, 0, 30, 4)
    model, batch = model_of("gearnet", fusion=fusion), proteins(*lengths, chains=chains)
    together = embeddings_of(model, batch)
    assert together.present[STRUCTURE].tolist() == [True, False, True, True]
    without = {
        SEQUENCE: replace(batch, structure=proteins(*lengths, chains=(0, 0, 0, 0)).structure),
        STRUCTURE: replace(batch, sequence=proteins(0, 0, 0, 0).sequence),
    }
    for m, one in without.items():
        torch.testing.assert_close(embeddings_of(model, one).fused, together.values[m], rtol=1e-5, atol=1e-5)
    assert not together.values[STRUCTURE][1].any() and together.fused.isfinite().all()
    first = replace(
        batch,
        keys=("p0",),
        slots=batch.slots[:1],
        sequence=replace(batch.sequence, letters=batch.sequence.letters[:12], offsets=torch.tensor([0, 12])),
        structure=replace(
            batch.structure,
            **{
                n: getattr(batch.structure, n)[:5]
                for n in ("coordinates", "mask", "letters", "positions", "confidence")
            },
            offsets=torch.tensor([0, 5]),
        ),
    )
    alone = embeddings_of(model, first)
    torch.testing.assert_close(alone.fused[0], together.fused[0], rtol=1e-5, atol=1e-5)
    for m in (SEQUENCE, STRUCTURE):
        torch.testing.assert_close(alone.values[m][0], together.values[m][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"fusion": "serial"}, {"fusion": "cross"}, {"freeze_plm": True}])
def test_gradients_are_those_of_finite_differences(settings: dict[str, Any]) -> None:
    """Of every parameter, along one random direction; float64."""
    model, batch = model_of("egnn", **settings).double(), proteins(14, 11, chains=(9, 11))
    batch = replace(batch, structure=replace(batch.structure, coordinates=batch.structure.coordinates.double()))

    def total() -> Tensor:
        return torch.stack([logits.square().mean() for logits in guesses_of(model, batch)]).sum()

    parameters = [p for p in model.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(1)
    ways = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in parameters]
    found = torch.autograd.grad(total(), parameters)
    slope = float(sum((g * way).sum() for g, way in zip(found, ways, strict=True)))
    step, ends = 1e-5, []  # parts of the graph network are in float32
    for sign in (1, -2):
        with torch.no_grad():
            for p, way in zip(parameters, ways, strict=True):
                p += sign * step * way
            ends.append(float(total()))
    assert abs(slope) > 1e-4 and (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=2e-3)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert bool(frozen) == bool(settings.get("freeze_plm"))
    assert all(name.startswith("trained.sequence.") for name in frozen)


def test_layers_fall_into_groups() -> None:
    esm = {**ENCODERS["sequence"], "layers": 5}
    config = EncodersConfig.model_validate({"sequence": esm, "structure": {**GVP, "layers": 3}})
    model = build(BihierarchicalConfig(width=16, heads=2), {}, to_train(config, (SEQUENCE, STRUCTURE)))
    assert isinstance(model, Bihierarchical)
    assert model.groups == [range(2), range(2, 3), range(3, 5)] and len(model.fusion) == 3
    assert model._encoders()[0].head is None and not model._encoders()[0].config.head


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 18, "heads": 4}, "width 18 must be a multiple of heads 4"),
        ({"levels": []}, "must be local, global or both"),
        ({"levels": ["local", "local"]}, "must be local, global or both"),
        ({"fusion": "cross", "levels": ["local"]}, "fusion = cross has none, leave them out"),
        ({"fusion": "serial", "direction": "to_sequence"}, "fusion = serial has one, leave it out"),
        ({"objective": {"kind": "supervised", "task": "class"}}, "class and multilabel have some, others 0"),
        ({"objective": {"kind": "supervised", "task": "scalar", "classes": 3}}, "class and multilabel have some"),
    ],
)
def test_what_does_not_go_together_is_told(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        BihierarchicalConfig.model_validate(settings)


def test_encoders_that_do_not_fit_are_told() -> None:
    config = EncodersConfig.model_validate({"sequence": ENCODERS["sequence"], "structure": {**GVP, "layers": 3}})
    with pytest.raises(ValueError, match="2 layers of esm do not make 3 groups, one per layer of gvp"):
        build(BihierarchicalConfig(), {}, to_train(config, (SEQUENCE, STRUCTURE)))
    with pytest.raises(ValueError, match=r"joins encoders.sequence .* there is sequence: esm$"):
        build(BihierarchicalConfig(), {}, to_train(config, (SEQUENCE,)))


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [({}, 2), ({"direction": "to_structure"}, 1), ({"fusion": "cross"}, 1), ({"fusion": "serial"}, 1)],
)
def test_flops_are_those_of_a_counter_without_the_graph_network(settings: dict[str, Any], frozen: int) -> None:
    """frozen: passes through a language model whose own weights want no gradient."""
    model, batch = model_of("gvp", **settings), proteins(20, 9, 12, chains=(20, 0, 7))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses_of(model, batch)
    whole = re.compile(r"Bihierarchical\.(trained\.sequence\.layers|fusion|readout)\.\w+")
    parts = {name: sum(each.values()) for name, each in counter.flop_counts.items() if whole.fullmatch(name)}
    plm = sum(count for name, count in parts.items() if "trained" in name)
    rest = sum(parts.values()) - plm
    assert plm and rest and model.flops(batch) == 3 * (plm + rest)
    assert model_of("gvp", freeze_plm=True, **settings).flops(batch) == frozen * plm + 3 * rest


@pytest.mark.parametrize(("graph", "fusion"), [("gvp", "hierarchical"), ("gearnet", "serial"), ("egnn", "cross")])
def test_it_learns(graph: str, fusion: str) -> None:
    """Forty steps on four proteins, always the same residues hidden."""
    model, batch = model_of(graph, drawn=False, fusion=fusion), proteins(24, 18, 30, 12)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = []
    for _ in range(40):
        losses = model({}, batch)
        assert isinstance(losses, dict)
        total = torch.stack([loss.sum / loss.count for loss in losses.values()]).sum()
        found.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert found[-1] < 0.8 * found[0]
