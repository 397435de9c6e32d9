"""A run's checkpoint → a folder that says what it is and loads without deepspeed, ray or the run.

    config.json         format, model, encoders and their identity, where the weights come from, their hash
    model.safetensors   `model.*`: projections and fusion encoder; `encoders.*`: the encoders; `centres.*`: each
                        modality's mean embedding of training proteins, which search subtracts. No optimizer state
    README.md           the model card
    …                   the encoders' own files, such as a tokenizer

What reconstructs (decoders) stays behind: it served training. A head that tells labels comes along. The folder is
staged and renamed: whole or absent.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pretrain import models
from pretrain.checkpoint import Checkpoint, folder_of_run, latest, whole
from pretrain.codec import whole as whole_sample
from pretrain.config import dump, validate
from pretrain.data.cache import default_folder
from pretrain.data.dataset import Dataset
from pretrain.data.index import MANIFEST
from pretrain.data.loader import DataConfig
from pretrain.embeddings import FORMAT
from pretrain.encoders.bundle import LEARNED, Encoders
from pretrain.evaluation.card import card
from pretrain.evaluation.history import History
from pretrain.inference import CONFIG, WEIGHTS, Exported, strip
from pretrain.places import Place
from pretrain.run import RunConfig
from pretrain.sample import CorruptSample, Modality, Sample

CENTRED_ON = 256  # proteins: their mean is known to a sixteenth of their spread
UNNAMED = {"weights": {"sha256": ""}}  # a model that no file holds yet
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
log = logging.getLogger(__name__)


def export(
    run: Path, out: Path, dtype: Literal["float32", "bfloat16"] = "float32", checkpoint: str | int = "last"
) -> Path:
    """Write a committed and verified checkpoint of the run's folder to `out`, and return that.

    dtype: of the stored weights; loading computes in float32 either way, so bfloat16 halves the file and rounds.
    checkpoint: `last`, `best` (the lowest validation loss) or a step.
    Raises ValueError for an `out` that exists, and where there is no such checkpoint that holds.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if out.exists():
        raise ValueError(f"{out} exists; export never overwrites. Give another folder, or remove that one")
    found = chosen(run, checkpoint)
    config = validate(RunConfig, found.state["config"], str(found.path))
    encoders = Encoders.build(config.frozen, config.model.trains)
    _check_encoders(found, encoders)
    trained = {modality: getattr(encoders, modality).requires_grad_(True) for modality in config.model.trains}
    model = models.build(config.model, encoders.widths(), trained, models.terms_of(config.model, found.buffers()))
    found.load_model(model)
    learned = {m: sum(p.numel() for p in encoder.parameters() if p.requires_grad) for m, encoder in trained.items()}
    encoders.adopt(trained)
    strip(model)
    unnamed = Exported(model.eval(), encoders, UNNAMED, torch.device("cpu"))
    seen = list(filter(unnamed.sees, training_samples(config.data)))
    centres = mean_embeddings(unnamed, seen)
    staged = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)  # what an interrupted export left
    staged.mkdir(parents=True)
    encoders.save_files(staged)
    about = {
        "format": FORMAT,
        "fourfold": metadata.version("fourfold"),
        "model": dump(config.model),
        "modalities": list(model.modalities),
        "encoders": dump(config.frozen),
        "identity": _told(encoders, found, learned),
        "step": found.step,
        "checkpoint": {"chosen": str(checkpoint), "best": _best(found)},
        "start_from": config.start_from and config.start_from.name,
        "parameters": {
            "model": _count(model) + sum(learned.values()),
            "encoders": _count(encoders) - sum(learned.values()),
        },
        "centred_on": len(seen),
        "weights": _save(model, encoders, centres, staged / WEIGHTS, dtype),
    }
    (staged / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
    manifest = _manifest(config.data.path)
    (staged / "README.md").write_text(card(about, found.state["identity"], manifest, History.read(run)))
    staged.rename(out)
    return out


def chosen(run: Path, which: str | int = "last") -> Checkpoint:
    """A run's checkpoint whose hashes hold: `last`, `best` or of a step. Raises ValueError where there is none."""
    if not run.is_dir():
        raise ValueError(f"no run at {run}: there is no such folder; `fourfold train` makes one")
    folder = folder_of_run(run)
    last = latest(folder)
    if last is None:
        raise ValueError(f"{run} has no checkpoint that is committed and whole; train it further, or see its log")
    if which == "last":
        return last
    step = (_best(last) or {}).get("step") if which == "best" else int(which) if str(which).isdigit() else None
    if step is None and which == "best":
        raise ValueError(f"{run} was not validated before its newest checkpoint, so none is the best: take `last`")
    if step is None:
        raise ValueError(f"checkpoint {which!r} is none of last, best and a step's number")
    found = whole(folder, step) if step in folder.steps() else None
    if found is None:
        there = ", ".join(map(str, folder.steps()))
        raise ValueError(f"{run} has no whole checkpoint of step {step} ({which}); it has those of steps {there}")
    return found


def _best(found: Checkpoint) -> dict[str, Any] | None:
    """{"step", "loss"} of the lowest validation loss until a checkpoint; None where there was none."""
    best = found.state.get("best")
    return best if best and best["step"] is not None else None


def _check_encoders(found: Checkpoint, encoders: Encoders) -> None:
    """The encoders built now must be those the model was trained on, to the last bit, wherever the files lie now."""
    trained, now = found.state["identity"]["encoders"], encoders.identity()
    names = sorted(trained.keys() | now.keys())
    if differ := [name for name in names if trained.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")]:
        name = differ[0]
        raise ValueError(
            f"{found.path}: the {name} encoder was {trained.get(name)} in training and is {now.get(name)} now; "
            "give back the files it was trained with"
        )


def _told(encoders: Encoders, found: Checkpoint, learned: Mapping[Modality, int]) -> dict[str, dict[str, Any]]:
    """The encoders' identity. learned: parameters trained, of those inside the model: they say what they began as."""
    identity, before = encoders.identity(), found.state["identity"]["encoders"]
    for modality, count in learned.items():
        identity[modality]["weights"] = (LEARNED if count else "") + before[modality]["weights"]
    return identity


def training_samples(data: DataConfig) -> list[Sample]:
    """Some CENTRED_ON training proteins, evenly of each group; none, with a warning, where the data is gone.

    Of a store they are read through the run's cache (`data.cache`), or where that cannot be, as on another machine, and
    with a warning, through the default one.
    """
    try:
        dataset = _through_a_cache(data)
        groups = dataset.groups("train")
    except ValueError as error:
        log.warning("no training proteins to centre embeddings on, so search compares them as they are: %s", error)
        return []
    stride = max(1, -(-sum(map(len, groups.values())) // CENTRED_ON))
    samples = []
    for name, i in ((name, i) for name, group in groups.items() for i in range(0, len(group), stride)):
        try:
            samples.append(whole_sample(dataset.read("train", name, i)))
        except CorruptSample as error:
            log.warning("embeddings are centred without a damaged sample: %s", error)
    return samples


def _through_a_cache(data: DataConfig) -> Dataset:
    if data.cache and "://" in data.path:
        try:
            Path(data.cache).mkdir(parents=True, exist_ok=True, mode=0o700)
            with TemporaryFile(dir=data.cache):
                pass
        except OSError as error:
            log.warning("data.cache, %s, cannot be used here, so %s is: %s", data.cache, default_folder(), error)
            data = data.model_copy(update={"cache": None})
    return data.open()


def mean_embeddings(model: Exported, samples: Sequence[Sample]) -> dict[Modality, Tensor]:
    """Modality → [D], the mean over the samples that have it."""
    if not samples:
        return {}
    found = model.embed(samples)
    there = {m: present for m, present in found.present.items() if present.any()}
    return {m: torch.from_numpy(found.alone[m][present].mean(0)) for m, present in there.items()}


def _save(
    model: nn.Module, encoders: nn.Module, centres: dict[Modality, Tensor], path: Path, dtype: str
) -> dict[str, Any]:
    """Write the weights; returns what `config.json` says of the file."""
    tensors: dict[str, Tensor] = {f"centres.{modality}": centre.contiguous() for modality, centre in centres.items()}
    for prefix, module in (("model", model), ("encoders", encoders)):
        for name, tensor in module.state_dict().items():
            kept = tensor.detach().cpu()
            kept = kept.to(DTYPES[dtype]) if kept.is_floating_point() else kept
            tensors[f"{prefix}.{name}"] = kept.clone().contiguous()  # a copy: shared storage cannot be saved
    save_file(tensors, path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # the library writes for the owner alone
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest, "dtype": dtype}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _manifest(data: str) -> dict[str, Any]:
    """The data set's manifest, for the card; empty where the data has moved since (the card then says so)."""
    place = Place(str(data))
    return json.loads(place.read(MANIFEST)) if place.exists(MANIFEST) else {}
