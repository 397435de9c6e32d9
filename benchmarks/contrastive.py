"""InfoNCE over a large step, forward and backward: memory beyond its inputs and time, against open_clip's loss.

python benchmarks/contrastive.py [--quick] [--json FILE]

The peer is open_clip's own ClipLoss where `pip install --no-deps open_clip_torch` put it, and otherwise the same
formula: two S × S matrices of logits and a cross entropy of each. Asserted: that losses agree. Memory on a CPU is the
kernel's high-water mark in a process of its own, on a GPU the allocator's. On two ranks, which each have half of the
step, the peer gathers the features with their gradients and scores its own half (`local_loss`, `gather_with_grad`).
"""

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import rows
import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy, normalize

from pretrain.objectives.contrastive import Rows, gather, info_nce
from pretrain.sample import Modality

MEMORY, TIME = 20, 1.0  # targets
TEMPERATURE = 0.07
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(left: Tensor, right: Tensor, temperature: Tensor) -> Tensor:
    every = torch.ones(len(left), dtype=torch.bool, device=left.device)
    return info_nce(left, right, every, every, temperature) / len(left)


def formula(left: Tensor, right: Tensor, temperature: Tensor) -> Tensor:
    labels = torch.arange(len(left), device=left.device)
    forth, back = left @ right.T / temperature, right @ left.T / temperature
    return (cross_entropy(forth, labels) + cross_entropy(back, labels)) / 2


def clip(**options: Any) -> Any:
    """open_clip's ClipLoss, from its file alone, because the package around it wants torchvision and timm; or None."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "loss.py"
    alone = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert alone is not None and alone.loader is not None
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return module.ClipLoss(**options)


def peer() -> tuple[str, Loss]:
    loss = clip()
    if loss is None:
        return "open_clip's formula", formula
    return "open_clip's ClipLoss", lambda left, right, temperature: loss(left, right, 1 / temperature)


def inputs(size: int, width: int, device: str) -> list[Tensor]:
    draw = torch.Generator(device).manual_seed(0)
    tables = [normalize(torch.randn(size, width, generator=draw, device=device), dim=1) for _ in range(2)]
    return [each.requires_grad_() for each in (*tables, torch.tensor([TEMPERATURE], device=device))]


def run(loss: Loss, given: list[Tensor]) -> float:
    """One pass forward and backward; the loss."""
    value = loss(given[0], given[1], given[2])
    torch.autograd.grad(value, given)
    return float(value.detach())


def peak(mine: bool, size: int, width: int, device: str) -> float:
    """Most MiB that a pass holds beyond its inputs, their gradients included. On a CPU the process does only this."""
    loss = ours if mine else peer()[1]
    run(loss, inputs(64, width, device))  # libraries load at first use
    given = inputs(size, width, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(loss, given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    run(loss, given)
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def claims(size: int, width: int, device: str, rounds: int) -> list[rows.Row]:
    name, theirs = peer()
    what = f"B = {size:,}, D = {width}"
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        memory = [alone.submit(peak, mine, size, width, device).result() for mine in (True, False)]
    given = inputs(size, width, device)
    values = [run(loss, given) for loss in (ours, theirs)]
    assert abs(values[0] - values[1]) < 1e-4 * abs(values[1]), f"losses differ: {values}"

    def once(loss: Loss) -> int:
        run(loss, given)
        return size

    rates = rows.race(lambda: once(ours), lambda: once(theirs), rounds)
    return [
        rows.Row(f"InfoNCE memory, {what}", memory[0], memory[1], name, memory[1] / memory[0], MEMORY, "MiB"),
        rows.faster(f"InfoNCE time, {what}", rates, name, TIME, "pairs/s"),
    ]


def on_ranks(size: int, width: int, rounds: int, world: int = 2) -> list[rows.Row]:
    """The step shared out over gloo ranks, one thread each."""
    what = f"B = {size:,} on {world} ranks, D = {width}"
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, folder, size, width, rounds), nprocs=world)
        told = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    mine, theirs = (max(each["memory"][i] for each in told) for i in range(2))
    name = f"{peer()[0]}, local_loss"
    return [
        rows.Row(f"InfoNCE memory of a rank, {what}", mine, theirs, name, theirs / mine, MEMORY, "MiB"),
        rows.faster(f"InfoNCE time, {what}", tuple(told[0]["rates"]), name, TIME, "pairs/s"),
    ]


def _rank(rank: int, world: int, folder: str, size: int, width: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    left, right, temperature = inputs(size, width, "cpu")
    share = slice(rank * size // world, (rank + 1) * size // world)
    own = [left.detach()[share].requires_grad_(), right.detach()[share].requires_grad_(), temperature]
    ways = {"ours": gathered, "theirs": local_peer(rank, world)}
    values = [torch.stack([way(*own).detach()]) for way in ways.values()]
    for value in values:
        dist.all_reduce(value)
    assert abs(float(values[0] - values[1])) < 1e-4 * abs(float(values[1])), f"losses differ: {values}"

    def once(way: Loss) -> int:
        run(way, own)
        dist.barrier()
        return size

    memory = []
    for way in ways.values():
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        once(way)
        memory.append((_status("VmHWM") - before) / 2**10)
    rates = rows.race(lambda: once(ways["ours"]), lambda: once(ways["theirs"]), rounds)
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"memory": memory, "rates": rates}))
    dist.destroy_process_group()


def gathered(left: Tensor, right: Tensor, temperature: Tensor) -> Tensor:
    """This rank's part of the mean loss."""
    every, (a, b) = torch.ones(len(left), dtype=torch.bool), (Modality.SEQUENCE, Modality.FUNCTION)
    step = gather(Rows({a: left, b: right}, {a: every, b: every}, [(a, b)], temperature))
    return step.info_nce((a, b))[0] / len(step.own)


def local_peer(rank: int, world: int) -> Loss:
    """open_clip's, or its formula: the rank's part of the mean loss."""

    def local(left: Tensor, right: Tensor, temperature: Tensor) -> Tensor:
        all_left, all_right = (torch.cat(torch.distributed.nn.all_gather(each)) for each in (left, right))  # type: ignore[arg-type]
        labels = torch.arange(len(left)) + rank * len(left)
        forth, back = left @ all_right.T / temperature, right @ all_left.T / temperature
        return (cross_entropy(forth, labels) + cross_entropy(back, labels)) / 2 / world

    made = clip(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)
    if made is None:
        return local
    return lambda left, right, temperature: made(left, right, 1 / temperature) / world


def alone(size: int, width: int) -> list[rows.Row]:
    """What nobody can do with the whole matrix: goals instead of a peer."""
    memory = peak(True, size, width, "cuda")
    given = inputs(size, width, "cuda")
    started = time.perf_counter()
    run(ours, given)
    seconds = time.perf_counter() - started
    what = f"B = {size:,}, D = {width}"
    return [
        rows.within(f"InfoNCE memory, {what}", memory, 16_384, "MiB"),
        rows.within(f"InfoNCE time, {what}", seconds, 300, "s"),
    ]


def main() -> None:
    chosen = rows.options(__doc__).parse_args()
    if torch.cuda.is_available():
        found = claims(65_536, 256, "cuda", rounds=3)
        found += [] if chosen.quick else alone(1_000_000, 256)
    else:
        torch.set_num_threads(1)
        found = claims(8_192, 256, "cpu", rounds=2) if chosen.quick else []
        for width in () if chosen.quick else (256, 512):
            found += claims(16_384, width, "cpu", rounds=3)
        found += on_ranks(4_096 if chosen.quick else 16_384, 256, rounds=3)
    rows.report(found, chosen.json)


if __name__ == "__main__":
    main()
