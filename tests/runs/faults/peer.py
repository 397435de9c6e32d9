"""The same crashes and the same flipped bits against plain `deepspeed.save_checkpoint`, at ZeRO stage 1.

Its acts on the disk: folders made, files written by `torch.save`, `latest` opened, written and closed. It fsyncs
nothing; of a power cut it is assumed, in its favour, that only what the last save wrote had not reached the disk yet.
"""

import builtins
import contextlib
import io
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.engine import _deepspeed
from tests.runs.faults.acts import CRASHED, Where, points
from tests.runs.faults.crash import Tally, apart, forked
from tests.runs.faults.damage import PARTS, Found

SAVES = 4


class _Acts:
    """What `Fault` is for ours: acts counted, the process ended at one."""

    def __init__(self, at: int = -1, where: Where = "before") -> None:
        self.at, self.where, self.count = at, where, 0
        self.written: set[str] = set()  # by the last save
        self._save, self._makedirs = torch.save, os.makedirs

    def patch(self, engine_module: Any) -> None:
        torch.save = self._saved
        os.makedirs = lambda *a, **k: self._act(lambda: self._makedirs(*a, **k))
        engine_module.open = self._open

    def _act(self, work: Any, half: Any = lambda: None) -> Any:
        due, self.count = self.count == self.at, self.count + 1
        if due and self.where in ("before", "within"):
            if self.where == "within":
                half()
            os._exit(CRASHED)
        result = work()
        if due:
            if self.where == "power":
                for path in self.written:
                    with contextlib.suppress(FileNotFoundError):
                        os.truncate(path, 0)
            os._exit(CRASHED)
        return result

    def _saved(self, value: Any, path: Any, **options: Any) -> None:
        def half() -> None:
            memory = io.BytesIO()
            self._save(value, memory, **options)
            Path(path).write_bytes(memory.getvalue()[: memory.tell() // 2])

        self.written.add(str(path))
        self._act(lambda: self._save(value, path, **options), half)

    def _open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" not in mode:
            return builtins.open(path, mode, *arguments, **options)
        self.written.add(str(path))
        return _File(self, self._act(lambda: builtins.open(path, mode, *arguments, **options)))


class _File:
    """A file opened for writing, whose writing and closing are acts."""

    def __init__(self, acts: _Acts, file: Any) -> None:
        self._acts, self._file = acts, file

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._acts._act(self._file.close)

    def write(self, text: str) -> None:
        self._acts._act(lambda: self._file.write(text))


def crash_points(count: int | None = None) -> Tally:
    """As `crash.crash_points`, for the peer."""
    return apart(_crash_points, count)


def flips(per_part: int = 1) -> Found:
    """As `damage.flips`, for the peer: a flip is found if loading fails, or if nothing that is loaded is another."""
    return apart(_flips, per_part)


def _import() -> Any:
    """What DeepSpeed imports at first use, once for all children."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    module = _deepspeed()
    import deepspeed.runtime.engine
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

    return module


def _crash_points(count: int | None) -> Tally:
    _import()
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        right = Path(scratch) / "right"
        forked(lambda: _saves(Path(scratch) / "whole", _Acts(), right))
        acts = int((Path(scratch) / "whole" / "count").read_text())
        for number, (at, where) in enumerate(points(acts, count)):
            _one(tally, Path(scratch) / str(number), at, where, right)
    return tally


def _one(tally: Tally, place: Path, at: int, where: Where, right: Path) -> None:
    tally.points += 1
    tally.cuts += where == "power"
    forked(lambda: _saves(place, _Acts(at, where)), CRASHED)
    done = [int(step) for step in (place / "done").read_text().split()]
    began = time.perf_counter()
    forked(lambda: _look(place, right))
    tally.seconds.append(time.perf_counter() - began)
    found, name = json.loads((place / "found.json").read_text()), f"{where} act {at}"
    if done and (found["step"] or 0) < done[-1]:
        tally.lost.append(f"{name}: {found['said'] or found['step']}, after {done[-1]} had been saved")
    elif not done and found["said"]:  # a start over what is left of the first save
        tally.lost.append(f"{name}: {found['said']}")
    if not found["right"]:
        tally.wrong.append(f"{name}: other values")


def _engine(place: Path) -> Any:
    module = _import()
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    module.init_distributed("gloo", verbose=False, auto_mpi_discovery=False)
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    engine, *_ = module.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
        dist_init_required=False,
    )
    place.mkdir(parents=True, exist_ok=True)
    return engine


def _saves(place: Path, acts: _Acts, right: Path | None = None) -> None:
    """Train a step, save, SAVES times. right: where the true weights of each step are kept."""
    import deepspeed.runtime.engine as engine_module

    engine, true = _engine(place), {}
    with (place / "done").open("a") as done:
        acts.patch(engine_module)
        for step in range(1, SAVES + 1):
            engine.backward(engine(torch.full((2, 5), float(step))).pow(2).sum())
            engine.step()
            true[str(step)] = [parameter.detach().clone() for parameter in engine.module.parameters()]
            acts.written.clear()
            engine.save_checkpoint(str(place / "saved"), tag=f"step-{step}", client_state={"mine": step})
            done.write(f"{step}\n")
            done.flush()
    if right:
        acts._save(true, right)
        (place / "count").write_text(str(acts.count))


def _look(place: Path, right: Path) -> None:
    """In a fresh process: what `load_checkpoint` gives."""
    engine = _engine(place)
    try:
        path, state = engine.load_checkpoint(str(place / "saved"))
        step, said = (state["mine"], "") if path else (None, "")
    except BaseException as error:
        step, said = None, f"{type(error).__name__}: {str(error)[:80]}"
    good = step is None
    if step is not None:
        true = torch.load(right, weights_only=True).get(str(step), [])
        own = [parameter.detach() for parameter in engine.module.parameters()]
        good = len(true) == len(own) and all(torch.equal(a, b) for a, b in zip(true, own, strict=True))
    (place / "found.json").write_text(json.dumps({"step": step, "right": good, "said": said}))


def _flips(per_part: int) -> Found:
    _import()
    with tempfile.TemporaryDirectory() as scratch:
        place, found = Path(scratch), Path(scratch) / "found"
        forked(lambda: _saves(place, _Acts(), place / "right"))
        forked(lambda: _turn(place, per_part, found))
        tried, missed = json.loads(found.read_text())
        return Found(tried, missed)


def _turn(place: Path, per_part: int, said: Path) -> None:
    """One engine serves all loads: each overwrites all that the one before has loaded."""
    engine, tried, missed, draw = _engine(place), 0, [], random.Random(0)
    saved = place / "saved"
    for path in [*sorted((saved / f"step-{SAVES}").iterdir()), saved / "latest"]:
        data = path.read_bytes()
        for part in range(PARTS * per_part):
            at = min(len(data) - 1, len(data) * part // (PARTS * per_part) + draw.randrange(max(1, len(data) // PARTS)))
            turned = bytearray(data)
            turned[at] ^= 1 << draw.randrange(8)
            path.write_bytes(turned)
            tried += 1
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                if engine.load_checkpoint(str(saved))[0]:
                    missed.append(f"byte {at} of {path.name}")
        path.write_bytes(data)
    said.write_text(json.dumps([tried, missed]))
