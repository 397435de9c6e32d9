"""Two ranks are one, for every model at every ZeRO stage, also where a step or a rank has one modality alone; and two
micro-batches are one.

Losses, the gradient's norm and the gradients themselves, with encoders frozen around the engine or trained inside it.
"""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from pretrain import distributed
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from pretrain.sample import Modality
from tests.models import EACH, MODELS, batch_of, build, config_of, sample
from tests.ranks.processes import run

PROTEINS, STAGES, FEWER = 4, (0, 1, 2, 3), (2, 3)
pytestmark = pytest.mark.timeout(900)  # one fixture runs all models: three minutes on two free cores


def _mixtures(modalities: tuple[Modality, ...]) -> list[list[tuple[Modality, ...]]]:
    """Per step, what each of the proteins has: each modality alone; the first half one, the second another; all."""
    alone = [[(m,)] * PROTEINS for m in modalities]
    parted = [[(a,)] * (PROTEINS // 2) + [(b,)] * (PROTEINS // 2) for a, b in pairwise(modalities)]
    return [*alone, *parted, [modalities] * (PROTEINS - 1) + [modalities[:1]]]


def _every(stages: tuple[int, ...]) -> dict[str, list[list[dict]]]:
    """All models in one process group: starting one takes longer than a model."""
    found = {name: _steps(name, [stage for stage in stages if stage in _stages(name)]) for name in MODELS}
    dist.destroy_process_group()
    return found


def _cut() -> dict[str, list[list[dict]]]:
    """Every step in two micro-batches, in one process."""
    found = {name: _steps(name, [2], 2) for name in sorted(EACH | {"amma-contrastive"})}
    dist.destroy_process_group()
    return found


def _stages(name: str) -> tuple[int, ...]:
    return STAGES if name in EACH else FEWER  # those that cut most


def _steps(name: str, stages: Sequence[int], cuts: int = 1) -> list[list[dict]]:
    """Per stage and step: losses, norm, and the gradient as Adam saw it. The weights stay as they are."""
    found = []
    for stage in stages:
        config = EngineConfig.model_validate({"stage": stage, "precision": "fp32", "accumulate": cuts})
        device = start(config)
        model, encoders = build(name)
        plain = OptimizerConfig(betas=(0.0, 0.99), clip=0.0, weight_decay=0.0)  # the first moment is the gradient
        engine = Engine(model, config, plain, device)
        rank, world = distributed.rank(), distributed.world()
        mine = range(PROTEINS * rank // world, PROTEINS * (rank + 1) // world)
        steps = []
        for step, mixture in enumerate(_mixtures(model.modalities)):
            parts = [mine[cut * len(mine) // cuts : (cut + 1) * len(mine) // cuts] for cut in range(cuts)]
            batches = [batch_of([sample(i, *mixture[i]) for i in part], encoders, step, list(part)) for part in parts]
            result = engine.step(batches, encoders, 0.0)
            held = engine.read_all() if result.losses else ()  # a step without a loss is not taken
            gradients = {f"{f.name}@{f.start}": values["exp_avg"].clone() for f, values in held}  # type: ignore[union-attr]
            steps.append({"losses": result.losses | {"norm": result.gradient_norm}, "gradients": gradients})
        found.append(steps)
        engine.close()
    return found


def _whole(ranks: list[dict]) -> dict[str, torch.Tensor]:
    """Parameter → its gradient, put together from every rank's fragments."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for rank in ranks:
        for place, value in rank["gradients"].items():
            name, _, begin = place.rpartition("@")
            parts.setdefault(name, []).append((int(begin), value))
    return {name: torch.cat([value for _, value in sorted(found, key=lambda p: p[0])]) for name, found in parts.items()}


@pytest.fixture(scope="module")
def found() -> tuple[list[dict], list[dict], list[dict]]:
    """What one process finds at one stage, two at every stage, and one in two micro-batches; by rank."""
    return run(_every, 1, (2,)), run(_every, 2, STAGES), run(_cut, 1)


def test_every_model_is_there_at_every_stage() -> None:
    assert MODELS.keys() >= EACH and {config_of(name).kind for name in EACH} == {config_of(m).kind for m in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_equal_one(found: tuple[list[dict], ...], name: str) -> None:
    (one,), several = ([rank[name] for rank in ranks] for ranks in found[:2])
    assert any(len(step["losses"]) > 1 for step in one[0])
    for i, stage in enumerate(_stages(name)):
        for step, want in enumerate(one[0]):
            _same([rank[i][step] for rank in several], want, (name, stage, step))


@pytest.mark.parametrize("name", sorted(EACH | {"amma-contrastive"}))
def test_two_micro_batches_equal_one(found: tuple[list[dict], ...], name: str) -> None:
    for step, (got, want) in enumerate(zip(found[2][0][name][0], found[0][0][name][0], strict=True)):
        _same([got], want, (name, step))


def _same(ranks: list[dict], want: dict, where: tuple) -> None:
    """Losses, norm and gradients."""
    assert all(rank["losses"] == ranks[0]["losses"] for rank in ranks), where
    assert ranks[0]["losses"] == pytest.approx(want["losses"], rel=1e-5, abs=1e-7), where
    exact, whole = _whole([want]), _whole(ranks)
    scale = max((float(value.abs().max()) for value in exact.values()), default=0.0)
    assert exact.keys() == whole.keys() and bool(exact) == bool(scale) == (len(want["losses"]) > 1), where
    for parameter, value in exact.items():
        assert float((whole[parameter] - value).abs().max()) <= 1e-5 * scale, (*where, parameter)
