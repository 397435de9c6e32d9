"""Save on some ranks, load on others: what every element was, it is again, at every ZeRO stage."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain import checkpoint, distributed
from pretrain.checkpoint import STATES, convert
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from tests.ranks.processes import run
from tests.ranks.toy import Toy, encode, share

SHAPES = {name: parameter.shape for name, parameter in Toy().named_parameters()}


def _train(folder: str, world: int, stages: list[tuple], first: int, last: int) -> list[dict]:
    """As `_course`, in processes that do nothing else."""
    found = _course(folder, world, stages, first, last)
    dist.destroy_process_group()
    return found


def _whole_and_half(folder: str, world: int, stages: list[tuple], half: int, last: int) -> list[dict]:
    """A run to `last` in one folder, whose losses and state are returned, and one to `half` in another."""
    found = _course(f"{folder}/whole", world, stages, 0, last)
    _course(f"{folder}/parts", world, stages, 0, half)
    dist.destroy_process_group()
    return found


def _course(folder: str, world: int, stages: list[tuple], first: int, last: int) -> list[dict]:
    """Resume what the folder holds, step `first` to `last`, save; losses and full state.

    stages: (stage, precision), and "offload" after them where optimizer states lie in host memory.
    """
    found = []
    for stage, precision, *offload in stages:
        place = Path(folder) / "-".join([str(stage), precision, *offload])
        config = EngineConfig.model_validate({"stage": stage, "precision": precision, "offload": bool(offload)})
        device = start(config)
        model, saved = Toy(), checkpoint.latest(place)
        if saved:
            saved.load_model(model)
        engine = Engine(model, config, OptimizerConfig(), device)
        if saved:
            saved.load_engine(engine)
        totals = []
        for step in range(first, last):
            result = engine.step(share(distributed.rank(), world, 1, step), encode, 1e-2)
            totals.append(result.total)
        path = checkpoint.save(place, engine, last, {"note": precision}, checkpoint.CheckpointConfig(every=1, keep=2))
        state = checkpoint.Checkpoint.read(path)
        full = {
            f"{name}.{kind}": state.slice(checkpoint.Fragment(name, 0, shape.numel()), kind)
            for name, shape in SHAPES.items()
            for kind in checkpoint.STATES
        }
        found.append({"totals": totals, "full": full, "steps": state.optimizer_steps})
    return found


STAGES: list[tuple] = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (2, "bf16"), (3, "bf16")]
STAGES += [(1, "bf16", "offload"), (2, "fp32", "offload"), (3, "fp32", "offload")]


def test_resume_is_bitwise_on_the_same_ranks_and_close_on_others(tmp_path: Path) -> None:
    whole = run(_whole_and_half, 2, str(tmp_path), 2, STAGES, 2, 4)
    shutil.copytree(tmp_path / "parts", tmp_path / "elastic")
    resumed = run(_train, 2, str(tmp_path / "parts"), 2, STAGES, 2, 4)
    elastic = run(_train, 1, str(tmp_path / "elastic"), 1, STAGES, 2, 4)
    for place, (stage, precision, *offload) in enumerate(STAGES):
        want, got, other = whole[0][place], resumed[0][place], elastic[0][place]
        assert want["steps"] == got["steps"] == other["steps"] == 4
        assert want["totals"][2:] == got["totals"], (stage, precision, offload)
        for name, value in want["full"].items():
            assert torch.equal(value, got["full"][name]), (stage, precision, offload, name)
            tolerance = 1e-6 if precision == "fp32" else 2e-2
            torch.testing.assert_close(other["full"][name], value, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_from_any_other(tmp_path: Path) -> None:
    """1 → 2 → 3 → 1 ranks, two steps each, against one rank all the way: every stage, weights and moments."""
    stages = [(stage, "fp32") for stage in range(4)]
    whole = run(_train, 1, str(tmp_path / "whole"), 1, stages, 0, 8)
    parts = [
        run(_train, world, str(tmp_path / "parts"), world, stages, first, first + 2)
        for world, first in ((1, 0), (2, 2), (3, 4), (1, 6))
    ]
    for place, stage in enumerate(stages):
        want, got = whole[0][place], parts[-1][0][place]
        assert got["steps"] == want["steps"] == 8
        curve = [total for part in parts for total in part[0][place]["totals"]]
        assert curve == pytest.approx(want["totals"], rel=1e-5), stage
        for name, value in want["full"].items():
            torch.testing.assert_close(got["full"][name], value, rtol=1e-4, atol=1e-6, msg=f"{stage} {name}")
    saved = checkpoint.latest(tmp_path / "parts" / "3-fp32")
    assert saved is not None
    for ranks in (1, 3):
        folder = checkpoint.folder_of(tmp_path / f"as-{ranks}")
        convert.reshard(saved, folder, ranks)
        again = checkpoint.latest(folder)
        assert again is not None and again.world == ranks and again.state == saved.state
        whole_runs = [
            (checkpoint.Fragment(n, 0, shape.numel()), kind) for n, shape in SHAPES.items() for kind in STATES
        ]
        assert all(torch.equal(again.slice(*which), saved.slice(*which)) for which in whole_runs)
        assert all(torch.equal(value, saved.buffers()[name]) for name, value in again.buffers().items())


def test_a_broken_checkpoint_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(_train, 1, str(tmp_path), 1, [(2, "fp32")], 0, 1)
    run(_train, 1, str(tmp_path), 1, [(2, "fp32")], 1, 2)
    place = tmp_path / "2-fp32"
    older, newer = checkpoint.committed(place)
    assert checkpoint.verify(older) == checkpoint.verify(newer) == []
    (place / ".step-00000003.partial").mkdir()  # what a kill during saving leaves
    file = newer / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = checkpoint.latest(place)
    assert found is not None and found.path == older
    assert "step-00000002" in caplog.text and "SHA-256" in caplog.text
    file.write_bytes(data[:-1])
    assert "bytes" in checkpoint.verify(newer)[0]
    (newer / "COMMIT.json").unlink()
    assert "COMMIT.json" in checkpoint.verify(newer)[0]


def test_a_model_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    run(_train, 1, str(tmp_path), 1, [(2, "fp32")], 0, 1)
    saved = checkpoint.latest(tmp_path / "2-fp32")
    assert saved is not None
    model = Toy()
    model.branches["sequence"] = torch.nn.Sequential(torch.nn.Linear(5, 17))
    with pytest.raises(ValueError, match=r"branches\.sequence\.\d\.(bias|weight)"):
        saved.load_model(model)
