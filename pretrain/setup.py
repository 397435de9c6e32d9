"""What a run is made of, before its first step: data, encoders, the engine, and where it goes on from."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import checkpoint, distributed, models
from pretrain.checkpoint import Disk, Folder, folder_of_run
from pretrain.data.dataset import Dataset
from pretrain.data.labels import LabelTable, read
from pretrain.data.loader import Loader
from pretrain.data.ontology import Vocabulary
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.data.stored import Stored, choose
from pretrain.encoders import weights
from pretrain.encoders.bundle import LEARNED, Encoders, to_train
from pretrain.encoders.ontology import TermEmbedding
from pretrain.engine import Engine
from pretrain.run import RunConfig, check_identity, identity_of
from pretrain.sample import CorruptSample, Modality

EXPORTED, PREFIX = "model.safetensors", "model."  # what an exported model's folder has, and its parameters' names
LOOKED_AT = 32  # proteins of a group, at most, that tell of it
LABELS = "objective.head."  # parameters that tell labels
SEQUENCE, STRUCTURE, *_ = Modality
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a run is made of before there is a model. Encoders are on the CPU yet, in float32; those whose features are
    stored were needed for their identity only, and are gone. labels: where the model learns any."""

    encoders: Encoders
    loader: Loader
    held_out: Loader
    identity: dict[str, Any]
    stored: Stored
    labels: LabelTable | None = None
    terms: Vocabulary | None = None


def prepare(run: RunConfig, found: checkpoint.Checkpoint | None = None, hosts: int = 1) -> Parts:
    """Everything that can be wrong with a configuration or its files is found here, before the first step."""
    dataset = run.data.open()
    labels = _labels(run, dataset)
    encoders = Encoders.build(run.frozen, run.model.trains)
    models.check_depths(run.model, encoders.depths())
    terms = Vocabulary.read(dataset.place) if models.reads_terms(run.model) else None
    if models.reads_states(run.model):
        _check_states(dataset)
    spec = replace(models.input_of(run.model, encoders.spec()), terms=terms)
    identity = identity_of(run, dataset, encoders, terms)
    identity["labels"] = labels and labels.sha256
    names = {
        modality: (identity["encoders"][modality]["features"], width) for modality, width in encoders.widths().items()
    }
    encoders.lend(run.model.trains)
    names = {modality: each for modality, each in names.items() if modality not in run.model.trains}
    before = [Modality(name) for name in found.state.get("stored", ())] if found else None
    stored = choose(dataset, names, ("train", run.validation.split), run.data.features, before)
    if spec.view:
        weak = "; in views, another window of them, with nothing masked and no noise"
        stored.notes.update({m: stored.notes[m] + weak for m in stored.widths if m in (SEQUENCE, STRUCTURE)})
    encoders.release(stored.widths)
    place = distributed.rank(), distributed.world()

    def loader(split: str, how: PlanConfig, accumulate: int) -> Loader:
        plan = Plan(dataset, split, how, run.seed, spec)
        limit = run.data.max_damaged_in_row
        return Loader(dataset, plan, spec, *place, accumulate, run.data.workers, limit, stored, hosts, labels)

    training = loader("train", run.data.plan, run.engine.accumulate)
    if len(useless := idle(run, training.plan)) == len(training.plan.groups):
        raise ValueError(
            f"{dataset.place}: this model learns nothing from proteins that have no more than {', '.join(useless)}, "
            "which is all that the plan takes of train; give it proteins with more of what it reads "
            f"({', '.join(run.model.modalities)})"
        )
    try:
        held_out = loader(run.validation.split, PlanConfig(samples=run.validation.batch), 1)
    except ValueError as error:
        raise ValueError(f"validation (its `split` and `batch`): {error}") from error
    if found:
        check_identity(found, identity)
    return Parts(encoders, training, held_out, identity, stored, labels, terms)


def idle(run: RunConfig, plan: Plan) -> list[str]:
    """The groups of a plan that take places in steps and teach the model nothing."""
    return [name for name, has in plan.given.items() if not models.teaches(run.model, has)]


def _check_states(dataset: Dataset) -> None:
    """The index does not tell of 3Di states. So a few proteins of each group that has structures stand for all."""
    seen = 0
    for name, group in dataset.groups("train").items():
        for i in range(0, len(group), len(group) // LOOKED_AT + 1) if STRUCTURE in group.modalities else ():
            try:
                sample = dataset.read("train", name, i)
            except CorruptSample:  # training names it and goes on
                continue
            if any(structure.states for structure in sample.structures):
                return
            seen += 1
    if seen:
        raise ValueError(
            f"{dataset.place}: none of {seen} proteins that were looked at has 3Di states, which "
            "model.structure = states asks for; prepare the data set with states = true for its structures"
        )


def _labels(run: RunConfig, dataset: Dataset) -> LabelTable | None:
    kind = models.learns(run.model)
    if kind is None and run.data.labels is None:
        return None
    if kind is None:
        raise ValueError(
            f"data.labels: {run.data.labels} is given, but this model learns no labels; leave it out, or train one "
            "that does: of kind bihierarchical, with model.objective as in bihierarchical/classes.toml"
        )
    if run.data.labels is None:
        raise ValueError(f"the model learns labels ({kind.task}): name the file that has them, data.labels")
    found = read(run.data.labels, kind, dataset, run.model.modalities)
    for split in ("train", run.validation.split):
        if not found.labelled.get(split):
            raise ValueError(f"{found.path}: no protein of {split} that the model reads has a label; {found.note}")
    return found


def check_alike(stored: Stored) -> None:
    """Ranks see the data set through file systems of their own. All must read the same features, or a step would depend
    on how it is cut. Collective."""
    everyone = distributed.gather_objects({modality.value: note for modality, note in stored.notes.items()})
    read = distributed.gather_objects([modality.value for modality in stored.widths])
    if differ := [rank for rank, each in enumerate(read) if each != read[0]]:
        raise distributed.Everywhere(
            f"ranks 0 and {differ[0]} do not see the same stored features: {everyone[0]} and {everyone[differ[0]]}; "
            "give every host the whole data set, or set data.features=live"
        )


def begin(
    run: RunConfig, parts: Parts, found: checkpoint.Checkpoint | None, device: torch.device
) -> tuple[Engine, Position]:
    """The engine and the position: a fresh start, or exactly where the checkpoint left them."""

    def build() -> models.Model:
        torch.manual_seed(run.seed)
        trained = to_train(run.frozen, run.model.trains)
        model = models.build(run.model, parts.encoders.widths(), trained, parts.terms)
        if found:
            found.load_model(model)
        elif run.start_from:
            take(model, trained_weights(run.start_from), run.start_from)
        return model

    engine = Engine(distributed.together(build), run.engine, run.optimizer, device)
    if found:
        found.load_engine(engine)
    return engine, Position.from_json(found.state["position"]) if found else Position()


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """By parameter or buffer: of a run's newest checkpoint that is whole, or of an exported model, with the encoders
    that it trained. ValueError for neither."""
    if (folder / EXPORTED).is_file():
        tensors, told = weights.read(folder / EXPORTED, "start_from"), folder / "config.json"
        if not told.is_file():
            raise ValueError(f"start_from: {told} is missing: the folder was copied in part; copy it again")
        try:
            encoders = json.loads(told.read_text())["identity"]
            trained = [f"encoders.{m}." for m, one in encoders.items() if one["weights"].startswith(LEARNED)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"start_from: {told} is not what an exported model has ({type(error).__name__}: {error}); export the "
                "run again. Published weights are named by encoders.<modality>.weights"
            ) from error
        kept = {name: value for name, value in tensors.items() if name.startswith((PREFIX, *trained))}
        return {name.removeprefix(PREFIX): value for name, value in kept.items()}
    found = checkpoint.latest(folder_of_run(folder)) if folder.is_dir() else None
    if found is None:
        raise ValueError(
            f"start_from: {folder} is neither a run with a checkpoint that is committed and whole nor an exported "
            "model; train that run first, or correct the path"
        )
    return {**found.weights(), **found.buffers()}


def take(model: nn.Module, found: dict[str, Tensor], origin: Path) -> None:
    """Let what the model trains begin with the values that have its names; say which do, and what does not match.

    Vectors of GO terms are matched by term: ontologies differ. A head that tells labels begins anew where these are of
    another number. ValueError where no name matches, or a shape does not.
    """
    found = dict(found)
    for name, part in model.named_modules():
        if isinstance(part, TermEmbedding) and (vectors := f"{name}.own.weight") in found:
            found[vectors] = part.matched(found[f"{name}.numbers"], found[vectors])
    found = {name: value for name, value in found.items() if name not in dict(model.named_buffers())}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found |= {name: found.pop(beside) for name in own if (beside := _beside(name, model)) in found}
    found = {
        name: value for name, value in found.items()
        if not name.startswith(LABELS) or name not in own or own[name].shape == value.shape
    }  # fmt: skip
    common = [name for name in own if name in found]
    if not common:
        raise ValueError(
            f"start_from: {origin} has nothing that this model trains: it has {_parts(found)}, the model {_parts(own)}"
        )
    for name in common:
        if own[name].shape != found[name].shape:
            raise ValueError(
                f"start_from: {name} is {list(found[name].shape)} in {origin} and {list(own[name].shape)} in this "
                "model; give the model the same sizes"
            )
        own[name].data.copy_(found[name])
    if distributed.rank() == 0:
        rest, unused = own.keys() - found.keys(), found.keys() - own.keys()
        log.warning(
            "start_from %s: taken are %s%s%s", origin, _parts(common),
            f"; as configured begin {_parts(rest)}" if rest else "",
            f"; of no use here are {_parts(unused)}" if unused else "",
        )  # fmt: skip


def _beside(name: str, model: nn.Module) -> str:
    """What an exported model, whose encoders stand beside it, calls a parameter of one that the model trains."""
    if not name.startswith("trained."):
        return ""
    several = isinstance(model.trained, nn.ModuleDict)
    return name.replace("trained.", "encoders." if several else f"encoders.{model.modalities[0]}.", 1)  # type: ignore[index]


def _parts(names: Iterable[str]) -> str:
    """`heads.sequence (6), heads.structure (6)`: how many parameters of each part."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in sorted(counts.items())) or "nothing"


def newest(folder: Folder, good: bool = False) -> checkpoint.Checkpoint | None:
    """The newest checkpoint that is whole, on every rank; broken ones are named and passed over. Collective.

    good: those that a stop made within a row of bad steps are removed and passed over, too.

    Hashes are verified once for each disk: by the first rank where all share one, by the first of each host where it is
    fetched from a store.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    mine = distributed.rank() == 0 if isinstance(folder, Disk) else local == 0
    found = distributed.together(lambda: folder.steps() if distributed.rank() == 0 else [])
    steps: Any = distributed.gather_objects(found)[0]
    for step in reversed(steps):
        whole = distributed.together(lambda step=step: not mine or checkpoint.whole(folder, step) is not None)
        if not all(distributed.gather_objects(whole)):
            continue
        read = distributed.together(lambda step=step: checkpoint.Checkpoint.read(folder.local(step)))
        if not good or not read.state.get("guard", {}).get("bad"):
            return read
        distributed.together(lambda step=step: folder.remove(step) if distributed.rank() == 0 else None)
    return None
