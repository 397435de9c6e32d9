"""Encoders trained by themselves: what is asked for, what is not shown, losses by hand, and that they learn."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.batch import Batch, Images, Sequences, Texts, offsets_of
from pretrain.encoders.bundle import EncodersConfig, to_train
from pretrain.encoders.esm import ALPHABET, HIDDEN
from pretrain.encoders.letters import LETTERS as ORDER
from pretrain.masking import hide, mates
from pretrain.models import build
from pretrain.models.unimodal import Unimodal, UnimodalConfig
from pretrain.objectives.masked import known, measured
from pretrain.sample import Modality
from tests.unit.pretrain.encoders.test_graphs import batch as chains

SEQUENCE, STRUCTURE, _, IMAGE = Modality
ENCODERS: dict[str, tuple[Modality, dict[str, Any]]] = {
    "esm": (SEQUENCE, {"layers": 2, "width": 16, "heads": 2}),
    "gearnet": (STRUCTURE, {"layers": 2, "hidden": 8}),
    "gvp": (STRUCTURE, {"layers": 2, "scalars": 12, "vectors": 4, "nearest": 6}),
    "egnn": (STRUCTURE, {"layers": 2, "hidden": 12, "nearest": 6}),
    "vit": (IMAGE, {"size": 16, "patch": 4, "width": 16, "layers": 1, "heads": 2}),
}
LETTERS = torch.tensor(list(b"ACDEFGHIKLMNPQRSTVWY"), dtype=torch.uint8)


def model_of(kind: str, **settings: Any) -> Unimodal:
    modality, size = ENCODERS[kind]
    config = EncodersConfig.model_validate({modality.value: {"kind": kind, "weights": "random", **size}})
    torch.manual_seed(0)
    asked = UnimodalConfig.model_validate({"modality": modality, **settings})
    found = build(asked, {}, to_train(config, asked.trains))
    assert isinstance(found, Unimodal)
    return found


def batch_of(lengths: list[int], images: list[int], step: int = 0, slots: list[int] | None = None) -> Batch:
    """Proteins of these lengths, with sequence and structure, and so many images each."""
    number, residues, draw = len(lengths), sum(lengths), torch.Generator().manual_seed(7)
    pictures = sum(images)
    present = torch.ones(pictures, 4, dtype=torch.bool)
    present[1::2, 3] = False
    pixels = torch.rand(pictures, 4, 16, 16, generator=draw) * present[:, :, None, None]
    offsets = offsets_of(torch.tensor(lengths, dtype=torch.int64))
    return Batch(
        tuple(f"p{i}" for i in range(number)), 3, step, torch.tensor(slots or range(number), dtype=torch.int64),
        torch.zeros(number, 2, dtype=torch.int64), {},
        Sequences(LETTERS[torch.randint(20, (residues,), generator=draw)], offsets), chains(lengths),
        Texts(torch.zeros(0, dtype=torch.int64), torch.zeros(number + 1, dtype=torch.int64)),
        Images(pixels, present, offsets_of(torch.tensor(images, dtype=torch.int64))),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_counts_are_foreseen_and_every_parameter_learns(kind: str) -> None:
    model, batch = model_of(kind), batch_of([20, 0, 9, 1], [2, 0, 1, 0])
    losses = model({}, batch)
    assert isinstance(losses, dict)
    assert {name: loss.count for name, loss in losses.items()} == model.counts(batch)
    assert tuple(losses) == model.loss_names() and all(loss.count for loss in losses.values())
    torch.stack([loss.sum for loss in losses.values()]).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_batch_without_the_modality_calls_every_module_on_nothing(kind: str) -> None:
    """Or ranks that have it would wait for ever at ZeRO 3."""
    for lengths in ([0, 0], []):
        model, called = model_of(kind), set()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name, called=called: called.add(name))
        losses = model({}, batch_of(lengths, [0] * len(lengths)))
        assert isinstance(losses, dict)
        assert all(loss.count == 0 and loss.sum.item() == 0 and loss.sum.requires_grad for loss in losses.values())
        holders = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
        assert holders <= called, holders - called
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_of_the_residues_asked_for_most_are_hidden_and_some_are_others() -> None:
    lengths, slots = torch.tensor([400, 0, 1, 300]), torch.tensor([4, 5, 6, 7])
    asked, draw = hide(lengths, 1, 2, slots, 0.15)
    assert [int(part.sum()) for part in asked.split(lengths.tolist())] == [60, 0, 1, 45]
    again, _ = hide(lengths[3:], 1, 2, slots[3:], 0.15)
    assert torch.equal(asked[-300:], again)  # whoever its batch mates are
    assert not torch.equal(asked, hide(lengths, 1, 3, slots, 0.15)[0]) and 0 <= draw.min() < draw.max() < 1

    seen: dict[str, Tensor] = {}
    model, batch = model_of("esm"), batch_of([400, 300], [0, 0], slots=[4, 7])
    encoder: Any = model.trained
    encoder.logits = lambda given: seen.update(letters=given.letters) or torch.zeros(len(given.letters), 33)
    model({}, batch)
    asked, _ = hide(torch.tensor([400, 300]), 3, 0, torch.tensor([4, 7]), 0.15)
    before, after = batch.sequence.letters, seen["letters"]
    assert torch.equal(before[~asked], after[~asked])
    hidden, kept = int((after[asked] == HIDDEN).sum()), int((after[asked] == before[asked]).sum())
    assert 0.7 < hidden / 105 < 0.9 and 0.02 < kept / 105 < 0.2
    assert set(after[asked].tolist()) <= {HIDDEN, *LETTERS.tolist()}


@pytest.mark.parametrize("kind", ["esm", "gearnet", "gvp", "egnn"])
def test_a_hidden_residue_is_not_seen(kind: str) -> None:
    """Change the letter of one: no guess changes, only what it is held against."""
    model, batch = model_of(kind), batch_of([30], [0])
    asked, draw = hide(torch.tensor([30]), 3, 0, torch.tensor([0]), 0.15)
    row = int((asked & (draw < 0.8)).nonzero()[0])
    field = "sequence" if kind == "esm" else "structure"
    given = getattr(batch, field)
    letters = given.letters.clone()
    letters[row] = ord("W") if letters[row] != ord("W") else ord("A")
    changed = replace(batch, **{field: replace(given, letters=letters)})
    heads: list[Tensor] = []
    target: Any = model.trained.head if kind == "esm" else model.objective.guesses.letter  # type: ignore[union-attr]
    target.register_forward_hook(lambda _, __, out: heads.append(out))
    losses = [model({}, each) for each in (batch, changed)]
    assert torch.equal(heads[0], heads[1]) and losses[0]["residue"].sum != losses[1]["residue"].sum  # type: ignore[index]


def test_a_hidden_patch_is_not_seen() -> None:
    model, batch = model_of("vit"), batch_of([5], [1])
    asked, _ = hide(torch.tensor([16]), 3, 0, torch.tensor([0]), 0.6)
    row = int(asked.nonzero()[0])
    pixels = batch.image.pixels.clone()
    pixels[0, :, 4 * (row // 4) : 4 * (row // 4) + 4, 4 * (row % 4) : 4 * (row % 4) + 4] += torch.rand(4, 4, 4)
    heads: list[Tensor] = []
    model.objective.out.register_forward_hook(lambda _, __, out: heads.append(out))  # type: ignore[union-attr]
    losses = [model({}, each) for each in (batch, replace(batch, image=replace(batch.image, pixels=pixels)))]
    assert torch.equal(heads[0], heads[1]) and losses[0]["patch"].sum != losses[1]["patch"].sum  # type: ignore[index]


def test_mates_are_two_others_of_the_same_protein() -> None:
    lengths = torch.tensor([50, 0, 2, 3, 1])
    found = mates(lengths, 1, 2, torch.arange(5))
    owners = torch.repeat_interleave(torch.arange(5), lengths)
    assert torch.equal(owners[found[:, 0]], owners) and torch.equal(owners[found[:, 1]], owners)
    own = torch.arange(56)
    for rows in (owners == 0, owners == 3):
        assert not (found[rows] == own[rows, None]).any() and not (found[rows, 0] == found[rows, 1]).any()
    for rows in (owners == 2, owners == 4):
        assert torch.equal(found[rows], own[rows, None].expand(-1, 2))


def test_distances_and_angles_are_those_of_a_slow_twin() -> None:
    batch = batch_of([12, 9], [0, 0])
    pairs = mates(torch.tensor([12, 9]), 3, 0, torch.arange(2))
    there = known(batch.structure, pairs)
    far, turn = measured(batch.structure, pairs[there], there)
    points = batch.structure.coordinates[:, 1].double()
    assert there.all()
    for i, (one, other) in enumerate(pairs.tolist()):
        a, b = points[one] - points[i], points[other] - points[i]
        assert far[i].item() == pytest.approx(math.dist(points[one].tolist(), points[i].tolist()), rel=1e-5)
        assert turn[i].item() == pytest.approx(math.acos(float(a @ b / a.norm() / b.norm())), abs=1e-3)


def by_hand(logits: Tensor, targets: list[int]) -> float:
    """Cross entropy, summed, from its definition."""
    found = 0.0
    for row, target in zip(logits.double().tolist(), targets, strict=True):
        found += math.log(sum(math.exp(score - row[target]) for score in row))
    return found


def heads_of(model: Unimodal, batch: Batch, **heads: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(what each of these modules gave, the losses)."""
    gave: dict[str, Tensor] = {}
    for name, module in heads.items():
        module.register_forward_hook(lambda _, __, out, name=name: gave.update({name: out.detach()}))
    losses = model({}, batch)
    assert isinstance(losses, dict)
    return gave, losses


def test_the_loss_of_letters_is_that_of_a_slow_twin() -> None:
    model, batch = model_of("esm"), batch_of([20, 0, 9], [0, 0, 0])
    assert model.trained is not None
    gave, losses = heads_of(model, batch, letters=model.trained.head)
    asked, _ = hide(torch.tensor([20, 0, 9]), 3, 0, torch.arange(3), 0.15)
    targets = [ALPHABET.index(chr(code)) for code in batch.sequence.letters[asked].tolist()]
    assert losses["residue"].sum.item() == pytest.approx(by_hand(gave["letters"][asked], targets), rel=1e-5)


@pytest.mark.parametrize("kind", ["gearnet", "gvp", "egnn"])
def test_losses_of_structures_are_those_of_a_slow_twin(kind: str) -> None:
    """Bins: 7 of 0 to 20 Å, what is farther in the last; 5 of 0 to 180°."""
    model = model_of(kind, distances=7, angles=5, farthest=20.0)
    batch, objective = batch_of([12, 9], [0, 0]), model.objective
    guesses: Any = objective.guesses  # type: ignore[union-attr]
    gave, losses = heads_of(model, batch, residue=guesses.letter, distance=guesses.distance, angle=guesses.angle)
    asked, _ = hide(torch.tensor([12, 9]), 3, 0, torch.arange(2), 0.15)
    targets: dict[str, list[int]] = {"residue": [], "distance": [], "angle": []}
    letters = [chr(code) for code in batch.structure.letters[asked].tolist()]
    targets["residue"] = [ORDER.index(one) if one in ORDER else 20 for one in letters]
    points = batch.structure.coordinates[:, 1].double()
    for i, (one, other) in enumerate(mates(torch.tensor([12, 9]), 3, 0, torch.arange(2)).tolist()):
        a, b = points[one] - points[i], points[other] - points[i]
        degrees = math.degrees(math.acos(float(a @ b / a.norm() / b.norm())))
        targets["distance"].append(min(6, int(float(a.norm()) / 20 * 7)))
        targets["angle"].append(min(4, int(degrees / 36)))
    for name, loss in losses.items():
        assert loss.sum.item() == pytest.approx(by_hand(gave[name], targets[name]), rel=1e-5), name
        assert loss.count == len(targets[name])


def test_the_loss_of_patches_is_that_of_a_slow_twin() -> None:
    """Pixels of a patch, each plane brought to mean 0 and variance 1; planes that an image lacks count nothing."""
    model, batch = model_of("vit"), batch_of([5, 4], [2, 1])
    objective: Any = model.objective
    gave, losses = heads_of(model, batch, out=objective.out)
    asked, _ = hide(torch.tensor([32, 16]), 3, 0, torch.arange(2), 0.6)
    total, guesses = 0.0, gave["out"].double()
    for row, place in enumerate(asked.nonzero().flatten().tolist()):
        image, patch = divmod(place, 16)
        across, down = 4 * (patch % 4), 4 * (patch // 4)
        errors = []
        for plane in range(4):
            if not batch.image.present[image, plane]:
                continue
            cell = batch.image.pixels[image, plane, down : down + 4, across : across + 4].double().flatten()
            told = guesses[row, 16 * plane : 16 * plane + 16]
            normal = (cell - cell.mean()) / (cell.var(correction=0) + 1e-5).sqrt()
            errors += (told - normal).square().tolist()
        total += sum(errors) / len(errors)
    assert len(guesses) == losses["patch"].count > 10
    assert losses["patch"].sum.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_learns(kind: str) -> None:
    """Forty steps on four proteins, always the same masks."""
    model, batch = model_of(kind), batch_of([24, 18, 30, 12], [1, 1, 1, 1])
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
    if kind == "esm":
        assert found[0] < 1.3 * math.log(len(ALPHABET))  # it begins without an opinion


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_embeddings_are_means_of_features_whoever_holds_the_encoder(kind: str) -> None:
    model, batch = model_of(kind), batch_of([20, 0, 9], [2, 0, 1])
    modality, encoder = model.config.modality, model.trained
    assert encoder is not None
    found = model({}, batch, task="embeddings")
    features = encoder(getattr(batch, modality))
    exported = Unimodal(model.config, None)({modality: features}, batch, task="embeddings")
    assert torch.equal(found.values[modality], exported.values[modality])  # type: ignore[union-attr]
    assert found.present[modality].tolist() == [True, False, True]  # type: ignore[union-attr]
    first = features.values[: features.offsets[1]].mean(0)
    torch.testing.assert_close(exported.fused[0], first)


def test_an_encoder_that_cannot_be_trained_alone_is_named() -> None:
    config = EncodersConfig.model_validate(
        {"sequence": {"kind": "esm", "weights": "random", "layers": 1, "width": 8, "heads": 1, "head": False}}
    )
    with pytest.raises(ValueError, match="esm without its language-model head is not trained alone"):
        build(UnimodalConfig.model_validate({"modality": SEQUENCE}), {}, to_train(config, (SEQUENCE,)))


def test_several_depths_are_refused() -> None:
    """Only the last layer's rows are trained; features of the others would be as they began."""
    tree = {"sequence": {"kind": "esm", "weights": "random", "layers": 2, "width": 16, "heads": 2, "tiers": 2}}
    asked = UnimodalConfig.model_validate({"modality": "sequence"})
    with pytest.raises(ValueError, match=r"sequence\.tiers = 2: only the last layer is trained; leave it out"):
        build(asked, {}, to_train(EncodersConfig.model_validate(tree), asked.trains))
