"""self-SSGI: residues from sequence and structure, proteins from GO terms, texts and images, one embedding from both.

1. Residues: a share of them is hidden, in sequence and structure at once; a transformer over what is left of both tells
   their letters (cross entropy) and their structure.
2. Proteins: what GO annotations and images say is brought near to what the residues say, by InfoNCE over the step;
   annotations in common, the same terms or the same text, are positives.
3. A protein's terms, its text, its images and one global token read its residues: one vector (`layers.levels`).

What reads the residues must not have been told what is hidden. A frozen encoder's features of a neighbour have: they
have seen the residue. So the sequence encoder is trained inside the model, on letters with hidden ones among them, as
ESM-2 itself was, and may begin as a published one. To a graph network hidden residues have neither atoms nor letters:
with `structure = "features"` it is the model's own, `geometry`, and the frozen `encoders.structure` only says what is
to be told (squared error on its features); with "states" it is `encoders.structure`, trained, and discrete 3Di states
are to be told (cross entropy), where a shard has them. What is hidden is hidden always: 10 % left as they are, as in
BERT, would tell the structure.

The paper does not say what trains the fusion. Here levels are held out of it at random, and what it makes of the others
must find them, among those of all proteins of the step: `contrastive/fused-…`. It never compares with what it has read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from pretrain.batch import (
    Batch,
    Embeddings,
    Features,
    Latents,
    Loss,
    Losses,
    Sequences,
    Structures,
    Task,
    Tokens,
    lengths_of,
    protein_codes,
    term_codes,
    text_codes,
)
from pretrain.config import Config, refuse_idle
from pretrain.data.ontology import Vocabulary
from pretrain.encoders.bundle import ENCODERS, Encoder, headless
from pretrain.encoders.egnn import EgnnConfig
from pretrain.encoders.gearnet import GearNetConfig
from pretrain.encoders.gvp import GvpConfig
from pretrain.encoders.weights import RANDOM
from pretrain.layers.levels import LevelFusion, Levels, ProteinLevels, Tower
from pretrain.layers.projection import COLDEST, Temperature, check_encoded, mean
from pretrain.layers.residues import (
    ResidueDecoder,
    Residues,
    ResidueTrunk,
    View,
    guessed,
    join,
    letters_of,
    places_of,
    view,
)
from pretrain.masking import Dropout, hold_out
from pretrain.objectives.contrastive import Negatives, Rows, gather
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
ANNOTATIONS = ("terms", "text")
LEVELS = ("residues", *ANNOTATIONS, "image")
FUSED, HELD = "fused", "held/"


class Weights(Config):
    """Of the losses: hidden residues' letters and structures, residues against other levels, fused against held out."""

    residue: float = Field(default=1.0, ge=0)
    structure: float = Field(default=1.0, ge=0)
    alignment: float = Field(default=1.0, ge=0)
    fusion: float = Field(default=1.0, ge=0)


class SsgiConfig(Config):
    """Defaults are of a moderate size; the paper states none.

    structure: what hidden residues' structures are told as; geometry: reads structures where that is features. masked:
    share of the residues that are hidden. dropout: of sequence and structure, whole, never both. held_out: probability
    that the fusion does not see a level. terms: read GO terms by id, beside texts. depth: of the residue transformer;
    fusion_depth: rounds of reading. embedding: width of the space in which levels are compared. normalize_targets:
    layer-norm each structure feature that is to be told.
    """

    kind: Literal["ssgi"] = "ssgi"
    modalities: tuple[Modality, ...] = tuple(Modality)
    terms: bool = True
    width: int = Field(default=512, gt=0, multiple_of=2)
    depth: int = Field(default=6, gt=0)
    heads: int = Field(default=8, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    fusion_depth: int = Field(default=2, gt=0)
    embedding: int = Field(default=256, gt=0)
    geometry: Annotated[GearNetConfig | GvpConfig | EgnnConfig, Field(discriminator="kind")] = GvpConfig(weights=RANDOM)
    structure: Literal["features", "states"] = "features"
    masked: float = Field(default=0.15, gt=0, lt=1)
    dropout: Dropout = Dropout(sequence=0.1, structure=0.1)
    held_out: float = Field(default=0.5, gt=0, lt=1)
    normalize_targets: bool = True
    temperature: float = Field(default=0.07, gt=COLDEST)
    weights: Weights = Weights()

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders the model trains."""
        return tuple(m for m in self.modalities if m is SEQUENCE or (m is STRUCTURE and self.structure == "states"))

    @property
    def reads_terms(self) -> bool:
        return self.terms and FUNCTION in self.modalities

    @property
    def levels(self) -> tuple[str, ...]:
        """Those that the model compares: the residues' and the proteins'."""
        has = (True, self.reads_terms, FUNCTION in self.modalities, IMAGE in self.modalities)
        return tuple(level for level, there in zip(LEVELS, has, strict=True) if there)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if list(self.modalities) != [m for m in Modality if m in self.modalities]:
            raise ValueError(f"modalities must be distinct and in the order {', '.join(Modality)}")
        if not {SEQUENCE, STRUCTURE} & {*self.modalities} or not {FUNCTION, IMAGE} & {*self.modalities}:
            raise ValueError(
                "self-SSGI joins residues with what is known of whole proteins: modalities must have sequence or "
                f"structure, and function or image; they are {', '.join(self.modalities)}"
            )
        if self.dropout.function or self.dropout.image:
            raise ValueError("dropout is of sequence and structure; held_out is the one of function and image")
        if self.structure == "states":
            refuse_idle(self, "where structure = states", "normalize_targets")
        said = [(name, getattr(self.geometry, name)) for name in ("weights", "seed", "max_length")]
        if wrong := [f"{name} = {one!r}" for name, one in said if one not in (RANDOM, 0, None)]:
            raise ValueError(f"geometry.{wrong[0]}: it is trained here, begins by the run's seed; leave it out")
        return self


class Ssgi(nn.Module):
    """widths: modality → width of its features. trained: the encoders of `config.trains`; none in an exported model,
    where they stand beside it. terms: the vocabulary, where the model reads GO terms."""

    contrastive = True

    def __init__(
        self,
        config: SsgiConfig,
        widths: Mapping[Modality, int],
        trained: Mapping[Modality, Encoder],
        terms: Vocabulary | None,
    ):
        super().__init__()
        check_encoded(config.modalities, widths)
        if config.reads_terms and terms is None:
            raise ValueError("the model reads GO terms, and was given none: model.terms=false does without")
        self.config, self.modalities, self.levels = config, config.modalities, config.levels
        self.terms, width = terms if config.reads_terms else None, config.width
        self.trained: Any = nn.ModuleDict({m.value: headless(one) for m, one in trained.items()})
        residues = {m: widths[m] for m in self.modalities if m in (SEQUENCE, STRUCTURE)}
        self.geometry: Any = None
        if STRUCTURE in residues and config.structure == "features":
            self.geometry = ENCODERS[config.geometry.kind](config.geometry)  # type: ignore[arg-type]
            residues[STRUCTURE] = self.geometry.width
        self.trunk = ResidueTrunk(residues, width, config.depth, config.heads, config.mlp_ratio)
        self.summary = Tower(width, config.embedding)
        wholes = {m: widths[m] for m in self.modalities if m in (FUNCTION, IMAGE)}
        self.proteins = ProteinLevels(wholes, width, config.embedding, self.terms)
        self.fusion = LevelFusion(width, config.fusion_depth, config.heads, config.mlp_ratio)
        self.temperature = Temperature(config.temperature)
        target = 0 if config.structure == "states" else widths.get(STRUCTURE)
        hidden = ResidueDecoder(width, target if STRUCTURE in self.modalities else None, config.normalize_targets)
        self.decoders: Any = nn.ModuleDict({"hidden": hidden, FUSED: Tower(width, config.embedding)})

    @staticmethod
    def terms_in(tensors: Mapping[str, Tensor]) -> Vocabulary:
        """The vocabulary of a saved model, from its state or its buffers."""
        mark = "proteins.ontology."
        kept = {name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)}
        return Vocabulary.from_tables(kept)

    @property
    def pairs(self) -> tuple[Any, ...]:
        """Residues with each other level; what is fused with each level that was held out of it."""
        return (*((LEVELS[0], level) for level in self.levels[1:]), *((FUSED, HELD + level) for level in self.levels))

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        told = ("residue", "structure") if STRUCTURE in self.modalities else ("residue",)
        return (*told, *map(_named, self.pairs))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded: hidden residues, or proteins that have both sides."""
        shown = self._view(batch)
        rows = {"residue": shown.hidden, "structure": guessed(shown, self.config.structure == "states")}
        levels = self._present(batch, shown.residues)
        present = self._with_held(levels, self._held(batch, levels))
        rows |= {_named((a, b)): present[a] & present[b] for a, b in self.pairs}
        return {name: int(rows[name].sum()) for name in self.loss_names()}

    def flops(self, batch: Batch) -> int:
        """0, for unknown: what a graph's edges cost is known when it has been made."""
        return 0

    def forward(
        self, features: Features, batch: Batch, negatives: Negatives | None = None, task: Task = "losses"
    ) -> Losses | Rows | Embeddings | Latents:
        """The one entrance to the parameters, so that an engine around the model sees every use of them.

        losses: of `batch`, of which a part is hidden, dropped and held out; compared with `negatives`, or with the
        other ranks' rows where None. negatives: what is compared, of this batch, for `objectives.contrastive.collect`.
        embeddings, latents: of whole proteins.
        """
        if task == "embeddings":
            return self._embeddings(features, batch)
        if task == "latents":
            return self._latents(features, batch)
        shown = self._view(batch)
        encoded = self._encoded(batch, features, shown.sequence, shown.structure)
        rows = {SEQUENCE: shown.residues.of_sequence, STRUCTURE: shown.residues.of_structure[shown.read]}
        latents = self.trunk(encoded, shown.residues, rows)
        compared = self._compared(features, batch, latents)
        if task == "negatives":
            return compared
        step = gather(compared) if negatives is None else negatives.with_own(compared, batch.slots)
        weights = self.config.weights
        weigh = {pair: weights.fusion if pair[0] == FUSED else weights.alignment for pair in self.pairs}
        losses = {_named(pair): Loss(*step.info_nce(pair), weigh[pair]) for pair in self.pairs}
        told = self.decoders["hidden"](latents, shown, features.get(STRUCTURE))
        hidden = {name: Loss(total, count, getattr(weights, name)) for name, (total, count) in told.items()}
        return hidden | losses

    def _view(self, batch: Batch) -> View:
        return view(batch, self.config.masked, self.config.dropout)

    def _encoded(
        self, batch: Batch, features: Features, sequences: Sequences, structures: Structures
    ) -> dict[Modality, Tokens]:
        """A token per residue of the windows. A run's batches have none of a modality that the model lacks."""
        letters, chain = letters_of(sequences), places_of(structures)
        if SEQUENCE in self.modalities:
            letters = self.trained[SEQUENCE](sequences) if self.trained else features[SEQUENCE]
        if STRUCTURE in self.modalities:
            if self.geometry is not None:
                chain = self.geometry(structures)
            else:
                chain = self.trained[STRUCTURE](structures) if self.trained else features[STRUCTURE]
        return {SEQUENCE: letters.crop(batch.window), STRUCTURE: chain.crop(batch.window)}

    def _present(self, batch: Batch, residues: Residues | Tokens) -> dict[str, Tensor]:
        """level → bool [B]."""
        return {LEVELS[0]: lengths_of(residues.offsets) > 0, **self.proteins.present(batch)}

    def _held(self, batch: Batch, present: dict[str, Tensor]) -> dict[str, Tensor]:
        """level → bool [B]: what the fusion does not see in this step."""
        every = torch.stack(list(present.values()), 1)
        held = hold_out(every, batch.seed, batch.step, batch.slots, self.config.held_out)
        return dict(zip(present, held.unbind(1), strict=True))

    @staticmethod
    def _with_held(present: dict[str, Tensor], held: dict[str, Tensor]) -> dict[str, Tensor]:
        fused = torch.stack(list(present.values())).any(0)
        return {**present, FUSED: fused, **{HELD + level: rows for level, rows in held.items()}}

    def _fused(self, levels: Levels, latents: Tokens, held: dict[str, Tensor]) -> Tensor:
        """[B, width]. held: level → bool [B], what is not to be read."""
        seen = {level: ~held[level][owners] for level, (_, owners) in levels.tokens.items()}
        tokens = [(rows[seen[level]], owners[seen[level]]) for level, (rows, owners) in levels.tokens.items()]
        read = latents.select(~held[LEVELS[0]][latents.owners])
        return self.fusion(tokens, read.values, read.offsets)

    def _compared(self, features: Features, batch: Batch, latents: Tokens) -> Rows:
        """What the step's losses compare: the levels, and what is fused of those that were not held out."""
        present = self._present(batch, latents)
        held, levels = self._held(batch, present), self.proteins(features, batch)
        vectors = {"residues": self.summary(mean([latents])), **levels.vectors}
        vectors |= {HELD + level: vectors[level] for level in self.levels}
        vectors[FUSED] = self.decoders[FUSED](self._fused(levels, latents, held))
        there = self._with_held(present, held)
        embeddings = {name: vectors[name] * rows.unsqueeze(1) for name, rows in there.items()}
        grouped = [pair for pair in self.pairs if pair[1].removeprefix(HELD) in ANNOTATIONS]
        said = [text_codes(batch), *([term_codes(batch)] if self.terms else [])]
        codes = torch.stack(said, 1).to(batch.slots.device) if grouped else None
        proteins = protein_codes(batch).to(batch.slots.device)
        return Rows(embeddings, there, self.pairs, self.temperature(), codes, grouped, proteins)  # type: ignore[arg-type]

    def _read(self, encoded: dict[Modality, Tokens], *modalities: Modality) -> tuple[Residues, Tokens]:
        """Residues and their latents, of these modalities alone."""
        read = {m: each if m in modalities else each.select(each.positions < 0) for m, each in encoded.items()}
        residues = join(read[SEQUENCE], read[STRUCTURE])
        rows = {SEQUENCE: residues.of_sequence, STRUCTURE: residues.of_structure}
        return residues, self.trunk(read, residues, rows)

    def _embeddings(self, features: Features, batch: Batch) -> Embeddings:
        encoded = self._encoded(batch, features, batch.sequence, batch.structure)
        _, together = self._read(encoded, SEQUENCE, STRUCTURE)
        levels, present = self.proteins(features, batch), self._present(batch, together)
        vectors = {level: vector * present[level].unsqueeze(1) for level, vector in levels.vectors.items()}
        annotated = [level for level in ANNOTATIONS if level in vectors]
        values, there = {}, {}
        for m in self.modalities:
            if m in encoded:
                _, alone = self._read(encoded, m)
                there[m] = alone.lengths > 0
                values[m] = self.summary(mean([alone])) * there[m].unsqueeze(1)
            elif m is FUNCTION:
                there[m] = torch.stack([present[level] for level in annotated]).any(0)
                values[m] = normalize(torch.stack([vectors[level] for level in annotated]).sum(0), dim=1)
            else:
                there[m], values[m] = present["image"], vectors["image"]
        return Embeddings(values, there, self._fused(levels, together, _none(present)).float())

    def _latents(self, features: Features, batch: Batch) -> Latents:
        encoded = self._encoded(batch, features, batch.sequence, batch.structure)
        residues, together = self._read(encoded, SEQUENCE, STRUCTURE)
        rows = {SEQUENCE: residues.of_sequence, STRUCTURE: residues.of_structure}
        tokens = {
            m: replace(encoded[m], values=together.values[rows[m]]) if m in encoded else self.proteins.rows(features, m)
            for m in self.modalities
        }
        none = _none(self._present(batch, together))
        return Latents(tokens, self._fused(self.proteins(features, batch), together, none))


def _none(present: dict[str, Tensor]) -> dict[str, Tensor]:
    """Nothing is held out."""
    return {level: torch.zeros_like(rows) for level, rows in present.items()}


def _named(pair: tuple[str, str]) -> str:
    return f"contrastive/{pair[0]}-{pair[1].removeprefix(HELD)}"
