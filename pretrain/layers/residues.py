"""Sequence and structure as one row per residue, and the same residues hidden in both.

Joint masked reconstruction asks for a residue's letter and for its structure at once, so neither may be told by the
other: what is hidden is drawn once per residue, and taken from the sequence and from the structure before anything is
encoded. A frozen feature would not do as input: those of its neighbours have seen the residue through the encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pretrain.batch import Batch, Sequences, Structures, Tokens, lengths_of, of_proteins, offsets_of
from pretrain.encoders.esm import HIDDEN
from pretrain.encoders.letters import KINDS, kinds
from pretrain.layers.projection import Head, Projection
from pretrain.layers.transformer import Transformer
from pretrain.masking import Dropout, hide, not_dropped
from pretrain.objectives.masked import UNKNOWN
from pretrain.objectives.reconstruction import reconstruction
from pretrain.sample import Modality

STATES = "ACDEFGHIKLMNPQRSTVWY"  # of the 3Di alphabet
SEQUENCE, STRUCTURE = Modality.SEQUENCE, Modality.STRUCTURE


@dataclass(frozen=True, eq=False)
class Residues:
    """R rows, a protein's residues: those of its sequence, or of its structure where there is no sequence.

    offsets: int64 [B + 1]. positions: int64 [R]. of_sequence: int64 [S], of_structure: int64 [T], each token's row.
    """

    offsets: Tensor
    positions: Tensor
    of_sequence: Tensor
    of_structure: Tensor


@dataclass(frozen=True, eq=False)
class View:
    """What a step shows of its residues.

    residues: those within the windows. hidden: bool [R]; asked: uint8 [R], each residue's letter. sequence, structure:
    whole, for an encoder, without what is hidden or dropped. read: bool [T], structure tokens of proteins whose
    structure is shown; where it is dropped it is asked for all the same. states: uint8 [T], their 3Di states, 0 for
    none.
    """

    residues: Residues
    hidden: Tensor
    asked: Tensor
    sequence: Sequences
    structure: Structures
    read: Tensor
    states: Tensor


class ResidueTrunk(nn.Module):
    """A transformer over residues. widths: of the tokens of sequence and structure, of those that the model has."""

    def __init__(self, widths: Mapping[Modality, int], width: int, depth: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.width = width
        self.projections = nn.ModuleDict({m.value: Projection(source, width) for m, source in widths.items()})
        self.blocks = Transformer(width, depth, heads, mlp_ratio)

    def forward(
        self, encoded: Mapping[Modality, Tokens], residues: Residues, rows: Mapping[Modality, Tensor]
    ) -> Tokens:
        """Latents [R, width]. rows: the residue that each token is of; what is known of one residue is added up."""
        total = None
        for name, project in self.projections.items():
            each = encoded[Modality(name)]
            part = project(each.values, each.positions)
            total = part.new_zeros(len(residues.positions), self.width) if total is None else total
            total = total.index_add(0, rows[Modality(name)], part)
        assert total is not None, "a model of sequence, structure or both"
        return Tokens(self.blocks(total, residues.offsets), residues.offsets, residues.positions)


class ResidueDecoder(nn.Module):
    """Hidden residues' letters and structures from their latents. target: width of the features that are to be told, 0
    for 3Di states, None for no structure. normalize: features are brought to mean 0 and variance 1 first."""

    def __init__(self, width: int, target: int | None, normalize: bool):
        super().__init__()
        self.normalize, self.states = normalize, target == 0
        self.letter = Head(width, width, KINDS)
        self.structure = None if target is None else Head(width, width, target or len(STATES))

    def forward(self, latents: Tokens, shown: View, features: Tokens | None) -> dict[str, tuple[Tensor, int]]:
        """(sum, count) of `residue`, cross entropy, and `structure`, squared error or cross entropy. features: of every
        structure token within the windows, where they are to be told."""
        letters = kinds(shown.asked[shown.hidden])
        guesses = self.letter(latents.values[shown.hidden])
        found = {"residue": (cross_entropy(guesses.float(), letters, reduction="sum"), len(letters))}
        if self.structure is None:
            return found
        rows = guessed(shown, self.states)
        told = self.structure(latents.values[shown.residues.of_structure[rows]])
        if self.states:
            order = torch.tensor(list(STATES.encode()), dtype=torch.uint8, device=rows.device)
            error = cross_entropy(told.float(), torch.searchsorted(order, shown.states[rows]), reduction="sum")
        else:
            assert features is not None and len(features.values) == len(rows), "a feature for each structure residue"
            error = reconstruction(told, features.values[rows], torch.ones_like(rows[rows]), self.normalize)
        return {**found, "structure": (error, len(told))}


def guessed(shown: View, states: bool) -> Tensor:
    """bool [T]: the structure tokens whose residue is hidden, and of which there is something to tell."""
    hidden = shown.hidden[shown.residues.of_structure]
    return hidden & (shown.states > 0) if states else hidden


def letters_of(sequences: Sequences) -> Tokens:
    """The letters as tokens at their positions."""
    starts = torch.repeat_interleave(sequences.offsets[:-1], lengths_of(sequences.offsets))
    positions = torch.arange(len(sequences.letters), device=starts.device) - starts
    return Tokens(sequences.letters, sequences.offsets, positions)


def places_of(structures: Structures) -> Tokens:
    """The chains' letters as tokens at their residues."""
    return Tokens(structures.letters, structures.offsets, structures.positions)


def join(sequence: Tokens, structure: Tokens) -> Residues:
    """By position. A structure's residues must be among its sequence's, where there is one (`Structure.residue`)."""
    alone = (sequence.lengths == 0)[structure.owners]
    owners = torch.cat([sequence.owners, structure.owners[alone]])
    positions, order = torch.cat([sequence.positions, structure.positions[alone]]), owners.argsort(stable=True)
    offsets = offsets_of(torch.bincount(owners, minlength=len(sequence.offsets) - 1))
    keys, wanted = (_key(owners[order], positions[order]), _key(structure.owners, structure.positions))
    of_structure = torch.searchsorted(keys, wanted)
    assert torch.equal(keys[of_structure.clamp(max=len(keys) - 1)], wanted), "a structure beside its sequence"
    return Residues(offsets, positions[order], order.argsort()[: len(sequence.positions)], of_structure)


def view(batch: Batch, share: float, dropout: Dropout) -> View:
    """Draw what to hide, a `share` of each protein's residues within its window, and what to drop whole.

    dropout: of sequence and structure, never both of a protein; a dropped sequence's letters are not asked for either,
    those of the structure's own chain are.
    """
    letters, chain = letters_of(batch.sequence), batch.structure
    key = (batch.seed, batch.step, batch.slots.cpu())
    shown = not_dropped({SEQUENCE: letters.lengths, STRUCTURE: lengths_of(chain.offsets)}, *key, dropout)
    with_sequence, with_structure = shown[SEQUENCE], shown[STRUCTURE]
    letters = letters.select(with_sequence[letters.owners])
    places = places_of(chain)
    seen, met = inside(letters, batch.window), inside(places, batch.window)
    cut, residue = letters.select(seen), places.select(met)
    residues = join(cut, residue)
    hidden, _ = hide(lengths_of(residues.offsets).cpu(), *key, share)
    hidden = hidden.to(letters.offsets.device)
    asked = torch.zeros_like(residues.positions, dtype=torch.uint8)
    asked = asked.index_copy(0, residues.of_structure, residue.values).index_copy(0, residues.of_sequence, cut.values)
    told = letters.values.masked_fill(_spread(seen, hidden[residues.of_sequence]), HIDDEN)
    known = _without(chain, _spread(met, hidden[residues.of_structure]))
    return View(
        residues,
        hidden,
        asked,
        Sequences(told, letters.offsets),
        of_proteins(known, with_structure),
        with_structure[residue.owners],
        torch.zeros_like(residue.values) if chain.states is None else chain.states[met],
    )


def inside(tokens: Tokens, window: Tensor) -> Tensor:
    """bool [N]: which tokens `Tokens.crop` keeps."""
    bounds = window[tokens.owners]
    return (tokens.positions >= bounds[:, 0]) & (tokens.positions < bounds[:, 1])


def _key(owners: Tensor, positions: Tensor) -> Tensor:
    """int64 [N], increasing in the protein and, within it, in the position."""
    return (owners << 32) + positions


def _spread(rows: Tensor, values: Tensor) -> Tensor:
    """bool [N]: `values` where `rows` (bool [N]) is true, otherwise false."""
    return torch.zeros_like(rows).masked_scatter(rows, values)


def _without(chain: Structures, hidden: Tensor) -> Structures:
    """A chain whose `hidden` residues (bool [N]) have neither atoms nor a letter; that they are there is known."""
    return replace(
        chain,
        coordinates=chain.coordinates.masked_fill(hidden[:, None, None], 0.0),
        mask=chain.mask & ~hidden[:, None],
        letters=chain.letters.masked_fill(hidden, UNKNOWN),
        states=None,
    )
