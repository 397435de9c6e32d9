"""Residues joined by position, the same ones hidden in sequence and structure, and what is told of them, by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from pretrain.batch import Batch, Tokens, lengths_of, offsets_of
from pretrain.data.collate import collate
from pretrain.encoders.esm import HIDDEN
from pretrain.encoders.letters import LETTERS
from pretrain.layers.residues import (
    STATES,
    UNKNOWN,
    ResidueDecoder,
    ResidueTrunk,
    View,
    join,
    letters_of,
    places_of,
    view,
)
from pretrain.layers.transformer import sinusoid
from pretrain.masking import Dropout
from pretrain.sample import Modality, Sample
from tests.models import build
from tests.unit.datasets import protein

SEQUENCE, STRUCTURE, FUNCTION, _ = Modality
WINDOW, SHARE = 20, 0.4


def tokens(*positions: list[int]) -> Tokens:
    every = torch.tensor([p for part in positions for p in part], dtype=torch.int64)
    lengths = torch.tensor([len(part) for part in positions], dtype=torch.int64)
    return Tokens(torch.zeros(len(every), 1), offsets_of(lengths), every)


def proteins() -> list[Sample]:
    return [
        protein("A", SEQUENCE, STRUCTURE, length=35, covered=(3, 30)), protein("B", SEQUENCE, length=12),
        protein("C", STRUCTURE, length=35, covered=(5, 33)), protein("D", FUNCTION),
        protein("E", SEQUENCE, STRUCTURE, length=18, covered=(2, 9)),
    ]  # fmt: skip


def batch_of(samples: list[Sample] | None = None, slots: list[int] | None = None, step: int = 3) -> Batch:
    _, encoders = build("ssgi")
    samples = proteins() if samples is None else samples
    spec = replace(encoders.spec(), crop=WINDOW)
    return collate(samples, slots or range(len(samples)), 5, step, spec)


def test_residues_are_those_of_the_sequence_or_of_the_structure() -> None:
    sequence, structure = tokens([4, 5, 6, 7], [], [], [0, 1]), tokens([5, 7], [3, 9, 11], [], [1])
    found = join(sequence, structure)
    assert found.offsets.tolist() == [0, 4, 7, 7, 9]
    assert found.positions.tolist() == [4, 5, 6, 7, 3, 9, 11, 0, 1]
    owners = [0] * 4 + [1] * 3 + [3] * 2
    places = list(zip(owners, found.positions.tolist(), strict=True))
    for part, rows in ((sequence, found.of_sequence), (structure, found.of_structure)):
        slow = [places.index(each) for each in zip(part.owners.tolist(), part.positions.tolist(), strict=True)]
        assert rows.tolist() == slow
    none = join(tokens(), tokens())
    assert none.offsets.tolist() == [0] and not len(none.positions)


def test_the_trunk_adds_up_what_is_known_of_a_residue_protein_by_protein() -> None:
    torch.manual_seed(0)
    trunk = ResidueTrunk({SEQUENCE: 3, STRUCTURE: 5}, 16, 2, 2, 2.0)
    sequence, structure = tokens([4, 5, 6, 7], [], [], [0, 1]), tokens([5, 7], [3, 9, 11], [], [1])
    encoded = {m: replace(each, values=torch.randn(len(each.positions), width))
               for m, each, width in ((SEQUENCE, sequence, 3), (STRUCTURE, structure, 5))}  # fmt: skip
    found = join(sequence, structure)
    latents = trunk(encoded, found, {SEQUENCE: found.of_sequence, STRUCTURE: found.of_structure})
    for number, rows in enumerate(latents.values.split(latents.lengths.tolist())):
        known: dict[int, Tensor] = {}
        for m, each in encoded.items():
            project: Any = trunk.projections[m.value]
            for owner, position, value in zip(each.owners, each.positions, each.values, strict=True):
                if owner == number:
                    row = project.linear.weight @ value + project.linear.bias + project.mark.vector
                    row = row + sinusoid(position[None], 16)[0]
                    known[int(position)] = known.get(int(position), torch.zeros(16)) + row
        assert sorted(known) == found.positions[slice(*found.offsets[number : number + 2])].tolist()
        if known:
            every = torch.stack([known[position] for position in sorted(known)])
            torch.testing.assert_close(rows, trunk.blocks(every, torch.tensor([0, len(every)])), atol=1e-5, rtol=1e-5)


def test_a_structure_beside_its_sequence_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="beside its sequence"):
        join(tokens([4, 5]), tokens([5, 8]))


def test_the_same_residues_are_hidden_in_both_and_only_within_the_window() -> None:
    batch = batch_of()
    shown = view(batch, SHARE, Dropout())
    table = shown.residues
    assert lengths_of(table.offsets).tolist() == [20, 12, 20, 0, 18]
    hidden = [int(part.sum()) for part in shown.hidden.split(lengths_of(table.offsets).tolist())]
    assert hidden == [round(SHARE * n) for n in (20, 12, 20, 0, 18)]
    letters, chain = letters_of(batch.sequence), places_of(batch.structure)
    owners = torch.repeat_interleave(torch.arange(5), lengths_of(table.offsets)).tolist()
    secret = {
        place for place, h in zip(zip(owners, table.positions.tolist(), strict=True), shown.hidden, strict=True) if h
    }
    for part, told in ((letters, shown.sequence.letters), (chain, shown.structure.letters)):
        code = HIDDEN if part is letters else UNKNOWN
        for i, place in enumerate(zip(part.owners.tolist(), part.positions.tolist(), strict=True)):
            assert told[i] == (code if place in secret else part.values[i])
            if part is chain:
                assert shown.structure.mask[i, :3].all() == (place not in secret)
                assert place in secret or torch.equal(shown.structure.coordinates[i], batch.structure.coordinates[i])
                assert place not in secret or not shown.structure.coordinates[i].any()
    assert shown.read.all() and shown.structure.states is None


def test_what_is_asked_is_the_sequences_letter_or_the_chains() -> None:
    batch = batch_of()
    other = batch.structure.letters.clone()
    other[0] = ord("W") if other[0] != ord("W") else ord("A")  # a mutant
    shown = view(replace(batch, structure=replace(batch.structure, letters=other)), SHARE, Dropout())
    asked = shown.asked.split(lengths_of(shown.residues.offsets).tolist())
    for i, sample in enumerate(proteins()):
        start, stop = batch.window[i].tolist()
        if sample.sequence:
            assert bytes(asked[i].tolist()).decode() == sample.sequence[start:stop]
        elif sample.structures:
            cut = [letter for letter, r in zip(sample.structures[0].letters, sample.structures[0].residue, strict=True)
                   if start <= r < stop]  # fmt: skip
            assert bytes(asked[i].tolist()).decode() == "".join(cut)


@pytest.mark.parametrize("kept", [SEQUENCE, STRUCTURE])
def test_what_is_dropped_is_not_shown_and_never_both(kept: Modality) -> None:
    dropped = Dropout.model_validate({m: float(m != kept) for m in ("sequence", "structure")})
    batch = batch_of()
    shown = view(batch, SHARE, dropped)
    sequence, structure = (lengths_of(each.offsets).tolist() for each in (shown.sequence, shown.structure))
    whole = [lengths_of(each.offsets).tolist() for each in (batch.sequence, batch.structure)]
    if kept is SEQUENCE:
        assert sequence == whole[0] and structure == [0, 0, whole[1][2], 0, 0]
        assert lengths_of(shown.residues.offsets).tolist() == [20, 12, 20, 0, 18]
    else:
        assert structure == whole[1] and sequence == [0, 12, 0, 0, 0]
        met = int(lengths_of(view(batch, SHARE, Dropout()).residues.offsets)[2])
        assert lengths_of(shown.residues.offsets).tolist()[1:4] == [12, met, 0]
    assert len(shown.read) == len(shown.residues.of_structure) == int(batch.lengths[STRUCTURE].sum())


def test_a_draw_does_not_depend_on_batch_mates_and_changes_with_the_step() -> None:
    dropout = Dropout(sequence=0.4, structure=0.4)
    together, alone = view(batch_of(), SHARE, dropout), view(batch_of(proteins()[4:], [4]), SHARE, dropout)
    last = slice(int(together.residues.offsets[4]), None)
    assert torch.equal(together.hidden[last], alone.hidden) and torch.equal(together.asked[last], alone.asked)
    assert not torch.equal(view(batch_of(), SHARE, Dropout()).hidden, view(batch_of(step=4), SHARE, Dropout()).hidden)


def _decoded(target: int, normalize: bool = True) -> tuple[ResidueDecoder, Tokens, View, Tokens]:
    torch.manual_seed(0)
    batch = batch_of()
    states = torch.tensor(list(STATES.encode()), dtype=torch.uint8)[torch.arange(len(batch.structure.letters)) % 20]
    states[::3] = 0  # no state
    shown = view(replace(batch, structure=replace(batch.structure, states=states)), SHARE, Dropout())
    table = shown.residues
    latents = Tokens(torch.randn(len(table.positions), 8), table.offsets, table.positions)
    features = Tokens(torch.randn(len(shown.read), max(target, 1)), table.offsets, table.positions)
    return ResidueDecoder(8, target, normalize), latents, shown, features


@pytest.mark.parametrize("normalize", [True, False])
def test_letters_and_features_of_hidden_residues_are_scored(normalize: bool) -> None:
    decoder, latents, shown, features = _decoded(5, normalize)
    found = decoder(latents, shown, features)
    assert decoder.structure is not None
    entropy, error, counts = torch.zeros(()), torch.zeros(()), [0, 0]
    for row in shown.hidden.nonzero().squeeze(1).tolist():
        logits = decoder.letter(latents.values[row])
        entropy = entropy + logits.logsumexp(0) - logits[LETTERS.index(chr(int(shown.asked[row])))]
        counts[0] += 1
    for token, row in enumerate(shown.residues.of_structure.tolist()):
        if shown.hidden[row]:
            truth = features.values[token]
            truth = layer_norm(truth, truth.shape) if normalize else truth
            error = error + (decoder.structure(latents.values[row]) - truth).square().mean()
            counts[1] += 1
    assert [count for _, count in found.values()] == counts and min(counts) > 5
    torch.testing.assert_close(torch.stack([total for total, _ in found.values()]), torch.stack([entropy, error]))


def test_states_are_scored_where_there_are_any() -> None:
    decoder, latents, shown, _ = _decoded(0)
    total, count = decoder(latents, shown, None)["structure"]
    slow, number = torch.zeros(()), 0
    for token, row in enumerate(shown.residues.of_structure.tolist()):
        if shown.hidden[row] and shown.states[token]:
            logits: Tensor = decoder.structure(latents.values[row])  # type: ignore[misc]
            slow = slow + logits.logsumexp(0) - logits[STATES.index(chr(int(shown.states[token])))]
            number += 1
    assert count == number and 0 < number < int(shown.hidden[shown.residues.of_structure].sum())
    torch.testing.assert_close(total, slow)
