"""What saving costs training: the time that steps wait for it, against deepspeed.save_checkpoint and torch's async DCP.

    python benchmarks/checkpoint.py [--quick] [--json FILE]

One process, ZeRO 2, fp32, AMMA on made-up features; after every tenth step one of them saves, in turn. Measured are the
call itself, with what of the writing must be waited for ten steps later, and, because on few cores a background is not
free, how much longer the next ten steps take than ten that follow no save. Asserted: what ours wrote last is whole.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import torch
from torch.distributed.checkpoint.state_dict_saver import async_save
from train_step import FEATURES, lengths, proteins

from pretrain import checkpoint, models
from pretrain.checkpoint import CheckpointConfig, Writer
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from pretrain.models.amma import AmmaConfig
from pretrain.sample import Modality

EVERY = 10  # steps
BLOCKED = 0.02  # of the time between saves


class Run:
    """An engine and a batch; `steps` takes steps and gives the seconds that they took."""

    def __init__(self, width: int, depth: int, number: int) -> None:
        config = EngineConfig(stage=2, precision="fp32")
        self.device = start(config)
        torch.manual_seed(0)
        size = {"width": width, "depth": depth, "heads": width // 64}
        model = models.build(AmmaConfig.model_validate(size), FEATURES)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.engine = Engine(model, config, OptimizerConfig(), self.device)
        residues = lengths(number).clamp(max=300).tolist()
        counts = dict.fromkeys((Modality.SEQUENCE, Modality.STRUCTURE), residues)
        counts |= {Modality.FUNCTION: [60] * number, Modality.IMAGE: [0] * number}
        self.features, self.batch = proteins(counts, self.device.type)

    def steps(self, count: int = EVERY) -> float:
        started = time.perf_counter()
        for _ in range(count):
            self.engine.step([self.batch], lambda _: self.features, 1e-4)
        return time.perf_counter() - started


def claims(quick: bool) -> list[rows.Row]:
    run = Run(*((256, 4, 2) if quick else (512, 8, 4)))
    rounds = 2 if quick else 5
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        writer = Writer(checkpoint.folder_of(folder / "ours"), CheckpointConfig(keep=2))
        ways: dict[str, tuple[Callable[[int], Any], Callable[[], Any]]] = {
            "ours": (lambda number: writer.save(run.engine, number, {}), writer.settle),
            "deepspeed.save_checkpoint": (lambda number: _deepspeed(run, folder / "deepspeed", number), lambda: None),
            "torch DCP, async_save": (lambda number: _dcp(run, folder / "dcp", number), lambda: _wait()),
        }
        called: dict[str, list[float]] = {name: [] for name in ways}
        slowed: dict[str, list[float]] = {name: [] for name in ways}
        plain = []
        run.steps(3)
        for number in range(rounds + 1):
            plain.append(run.steps())
            for name, (save, settle) in ways.items():
                started = time.perf_counter()
                save(number + 1)
                waited = time.perf_counter() - started
                after = run.steps()
                started = time.perf_counter()
                settle()  # as the next save would, ten steps later: what is not written by then is waited for, too
                waited += time.perf_counter() - started
                if number:  # the first round makes buffers and files
                    called[name].append(waited)
                    slowed[name].append(after)
        found = checkpoint.latest(folder / "ours")
        assert found is not None and found.step == rounds + 1
        writer.close()
        return _table(run, found, called, slowed, statistics.median(plain[1:]))


def _table(
    run: Run,
    found: checkpoint.Checkpoint,
    called: dict[str, list[float]],
    slowed: dict[str, list[float]],
    plain: float,
) -> list[rows.Row]:
    size = sum(file.stat().st_size for file in found.path.iterdir()) / 1e6
    what = f"{run.parameters / 1e6:.0f}M parameters, {size:.0f} MB, ten steps of {plain / EVERY:.2f} s"
    waits = {name: statistics.median(each) for name, each in called.items()}
    whole = {name: waits[name] + max(0.0, statistics.median(each) - plain) for name, each in slowed.items()}
    ours = waits.pop("ours")
    table = [rows.within(f"training waits for a save: {what}", 100 * ours / plain, 100 * BLOCKED, "% of the time")]
    for name, peer in waits.items():
        table.append(rows.Row("the call that saves", ours, peer, name, peer / ours, 1.0, "s"))
    for name in waits:
        told = "the call, and what the next ten steps lose"
        table.append(rows.Row(told, whole["ours"], whole[name], name, whole[name] / max(whole["ours"], 1e-9), 1.0, "s"))
    started = time.perf_counter()
    assert checkpoint.verify(found.path) == []
    table.append(rows.within("verifying it, per GB", (time.perf_counter() - started) / (size / 1e3), 2.0, "s"))
    return table


def _deepspeed(run: Run, folder: Path, number: int) -> None:
    run.engine.deepspeed.save_checkpoint(str(folder), tag=str(number % 2))


_pending: list[Any] = []


def _dcp(run: Run, folder: Path, number: int) -> None:
    """The same content: fp32 weights and AdamW's moments, as the flat partitions that stage 2 has."""
    fragments = {
        f"{fragment.name}.{state}": value
        for fragment, values in run.engine.read_all()
        for state, value in values.items()
        if value is not None
    }
    _pending.append(async_save(fragments, checkpoint_id=folder / str(number % 2)))


def _wait() -> None:
    while _pending:
        _pending.pop().result()


def main() -> None:
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    options = rows.options(__doc__).parse_args()
    torch.set_num_threads(1)
    rows.report(claims(options.quick), options.json)


if __name__ == "__main__":
    main()
