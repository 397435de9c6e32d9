"""Frozen encoders' features of a data set, stored beside its shards, so that training reads what it would compute.

Which encoders, and how they see a protein, is read from a training configuration, so that the features are that run's
by construction (`pretrain.data.features` says what is stored and where). Ray actors build the encoders once and take
shards from the driver, one at a time. Within a shard items of about equal length are encoded together, in batches that
follow from the shard and the configuration alone, on one thread: so any number of actors writes the same bytes.

A file appears whole or not at all, and says which shard and encoder it is of. So an interrupted job goes on where it
was: files that are there are read through, checksum by checksum, and left; `features.json` is written when all are.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import PositiveInt

from data_prep.workers import Workers
from pretrain.config import Config, load
from pretrain.data.features import FOLDER, FORMAT, SUMMARY
from pretrain.data.index import MANIFEST
from pretrain.places import Place

if TYPE_CHECKING:
    from data_prep.encoding import Encoding, Written
    from pretrain.run import RunConfig

RETRIES = 3  # times that a shard is given out again when the actor that had it died


class EncodeConfig(Config):
    """run: a training configuration, a file or a shipped one (`amma/tiny.toml`): its model's frozen encoders are run.

    overrides: settings of it that differ (`["encoders.sequence.weights=…"]`). tokens: residues, word pieces or patches
    that go through an encoder together; part of what decides the last bits.
    """

    run: str
    overrides: tuple[str, ...] = ()
    tokens: PositiveInt = 8192


@dataclass(frozen=True)
class Encoded:
    """What there is of one encoder now: the folder below the data set's, and sums over its files."""

    modality: str
    folder: str
    files: int
    fresh: int
    rows: int
    bytes: int
    unread: tuple[str, ...]


def check(config: EncodeConfig) -> "RunConfig":
    """The run that is meant. Raises ValueError for a configuration that is none; a job can ask before it begins."""
    from pretrain.run import RunConfig

    asked = load(RunConfig, config.run, config.overrides)
    if set(asked.model.modalities) <= set(asked.model.trains):
        raise ValueError(
            f"{config.run}: the model trains its encoders ({', '.join(asked.model.trains)}), so their features change "
            "with every step and none can be stored; train without `fourfold encode`"
        )
    return asked


def run(
    place: Place,
    config: EncodeConfig,
    workers: int = 2,
    address: str | None = None,
    note: Callable[[int, int], None] = lambda done, of: None,
) -> list[Encoded]:
    """Store the features of the data set at `place`; whatever of them is there already is checked and kept.

    workers: actors; 0 encodes in this process, or with an address takes an actor per GPU, or per core where there is
    none. On a Ray cluster with GPUs the actors share these. address: of an existing cluster, whose every host sees
    `place` and the encoders' weights under these names. note: called as shards are done. Raises ValueError for a data
    set that is none or is damaged, and for encoders that cannot be built.
    """
    asked = check(config)
    try:
        text = place.read(MANIFEST)
        shards = _shards(json.loads(text))
        name = json.loads(text)["name"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is no data set ({type(error).__name__}: {error}); prepare it first") from error
    trained = tuple(modality.value for modality in asked.model.trains)
    arguments = (place, asked.frozen, trained, asked.engine.precision, config.tokens)
    with _alone(place) as scratch, _pool(workers, address, (*arguments, scratch)) as pool:
        told, written = pool.identity(), []
        for done, some in enumerate(pool.run(shards), 1):
            written += some
            note(done, len(shards))
        by = {modality: [each for each in written if each.modality == modality] for modality in told["encoders"]}
        dataset = {"name": name, "manifest_sha256": hashlib.sha256(text).hexdigest()}
        return [_summarise(place, told, dataset, modality, files, config) for modality, files in by.items()]


def _shards(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifest's shards, each with its group. The longest come first: one left to the end would be waited for."""
    found = []
    for split, groups in manifest["splits"].items():
        for group, table in groups.items():
            for shard in table["shards"]:
                if not re.fullmatch(rf"{re.escape(split)}/{re.escape(group)}/\d+\.tar", shard["path"]):
                    raise ValueError(f"shard {shard['path']!r} does not lie in {split}/{group}")
                found.append({**shard, "group": group})
    return sorted(found, key=lambda shard: (-shard["bytes"], shard["path"]))


def _summarise(
    place: Place,
    told: dict[str, Any],
    dataset: dict[str, str],
    modality: str,
    files: list["Written"],
    config: EncodeConfig,
) -> Encoded:
    """Write `features.json`, which makes an encoder's folder whole."""
    encoder = told["encoders"][modality]
    folder = f"{FOLDER}/{encoder['features']}"
    totals = {name: sum(getattr(each, name) for each in files) for name in ("samples", "items", "rows", "bytes")}
    columns = ("bytes", "sha256", "samples", "items", "rows")
    summary = {
        "format": FORMAT,
        "encoder": encoder,
        "modality": modality,
        "width": encoder["width"],
        "dtype": "bfloat16",
        "computed": {**told["computed"], "tokens": config.tokens},
        "dataset": dataset,
        "totals": totals,
        "unread": sorted(name for each in files for name in each.unread),
        "shards": {each.shard: {name: getattr(each, name) for name in columns} for each in files},
    }
    place.write(
        f"{folder}/{SUMMARY}", json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    )
    fresh = sum(each.fresh for each in files)
    return Encoded(modality, folder, len(files), fresh, totals["rows"], totals["bytes"], tuple(summary["unread"]))


class _Here:
    """One worker, in this process."""

    def __init__(self, encoding: "Encoding") -> None:
        self.encoding = encoding

    def identity(self) -> dict[str, Any]:
        return self.encoding.identity()

    def run(self, shards: Sequence[dict[str, Any]]) -> Iterator[list["Written"]]:
        yield from map(self.encoding.shard, shards)


class _Actors:
    """Ray actors; each has one shard at a time. One that dies is started again, and its shard given out again."""

    def __init__(self, count: int, arguments: tuple[Any, ...]) -> None:
        import ray

        from data_prep.encoding import Encoding

        there = ray.cluster_resources()
        cores, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0))
        count = max(1, min(count or gpus or cores, cores))
        share = 1 / math.ceil(count / gpus) if gpus else 0  # of a GPU, so that all find a place
        actor: Any = ray.remote(
            num_cpus=1, num_gpus=math.floor(share * 1e4) / 1e4, max_restarts=-1, max_task_retries=RETRIES
        )
        self.actors = [actor(Encoding).remote(*arguments) for _ in range(count)]

    def identity(self) -> dict[str, Any]:
        """The same of all, or ValueError: hosts may have other weights under one name."""
        told = self._own(lambda ray: ray.get([actor.identity.remote() for actor in self.actors]))
        if differ := [each for each in told if each != told[0]]:
            raise ValueError(
                f"hosts of the cluster encode differently: {told[0]} and {differ[0]}; give each the same weights and "
                "the same kind of device"
            )
        return told[0]

    def run(self, shards: Sequence[dict[str, Any]]) -> Iterator[list["Written"]]:
        left = iter(shards)
        busy = {actor.shard.remote(shard): actor for actor, shard in zip(self.actors, left, strict=False)}
        while busy:
            (done, *_), _ = self._own(lambda ray: ray.wait(list(busy)))
            actor, written = busy.pop(done), self._own(lambda ray, done=done: ray.get(done))
            if (shard := next(left, None)) is not None:
                busy[actor.shard.remote(shard)] = actor
            yield written

    def _own(self, ask: Callable[[Any], Any]) -> Any:
        """Ask Ray; an error of ours comes back as itself."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return ask(ray)
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, ValueError | OSError) else error) from None
        except RayActorError as error:
            raise ValueError(
                f"an encoding worker died {RETRIES + 1} times over one shard: it may lack memory; lower `tokens`, or "
                f"start fewer workers. Ray says: {str(error).splitlines()[0]}"
            ) from error


@contextmanager
def _pool(count: int, address: str | None, arguments: tuple[Any, ...]) -> Iterator[_Here | _Actors]:
    if count or address:
        with Workers(count, address):
            yield _Actors(count, arguments)
        return
    from data_prep.encoding import Encoding

    with Encoding(*arguments) as encoding:
        yield _Here(encoding)


@contextmanager
def _alone(place: Place) -> Iterator[Path | None]:
    """A local data set's scratch folder, beside what is written; one job at a time has it. None on an object store,
    where two jobs would write the same bytes under the same names, and only the work is wasted."""
    if place.local is None:
        yield None
        return
    base = place.local.resolve() / FOLDER
    base.mkdir(parents=True, exist_ok=True)
    path = base / ".lock"
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when a process dies
        except BlockingIOError:
            raise ValueError(f"another run is encoding {place} now; wait for it") from None
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            raise ValueError(f"another run encoded {place} just now; look at it, and start again if need be")
        for leftover in base.glob(".part-*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = base / f".part-{uuid4().hex}"  # its actors go on for seconds: they must not find their folder again
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            path.unlink()
