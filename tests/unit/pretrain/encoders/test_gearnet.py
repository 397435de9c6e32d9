"""GearNet: its graph against brute force, its arithmetic against sums over edges, awkward geometry."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.batch import Structures, offsets_of
from pretrain.encoders import neighbours
from pretrain.encoders.gearnet import NEAREST, RADIUS, RELATIONS, RESIDUES, GearNet, GearNetConfig, RunningNorm, edges

SMALL = GearNetConfig(weights="random", layers=3, hidden=8)


def structures(
    chains: list[np.ndarray], residues: list[list[int]] | None = None, missing: tuple[int, ...] = ()
) -> Structures:
    """Chains of Cα [L, 3]; `residues` their numbers; `missing` rows of the whole batch without Cα."""
    count = sum(map(len, chains))
    coordinates = torch.zeros(count, 4, 3)
    if count:
        coordinates[:, 1] = torch.from_numpy(np.concatenate(chains).astype(np.float32))
    mask = torch.zeros(count, 4, dtype=torch.bool)
    mask[:, 1] = True
    mask[list(missing), 1] = False
    coordinates[list(missing)] = 0
    letters = (RESIDUES + "XU").encode()
    numbers = residues or [list(range(len(chain))) for chain in chains]
    return Structures(
        coordinates=coordinates,
        mask=mask,
        letters=torch.tensor([letters[i % 22] for chain in chains for i in range(len(chain))], dtype=torch.uint8),
        positions=torch.tensor([number for chain in numbers for number in chain], dtype=torch.int64),
        confidence=torch.full((count,), 100.0),
        offsets=offsets_of(torch.tensor([len(chain) for chain in chains], dtype=torch.int64)),
    )


def walk(length: int, seed: int) -> np.ndarray:
    """A chain folded back on itself: random steps of 3.8 Å held within a ball."""
    rng, points = np.random.default_rng(seed), [np.zeros(3)]
    while len(points) < length:
        step = rng.normal(size=3)
        point = points[-1] + 3.8 * step / np.linalg.norm(step)
        if np.linalg.norm(point) < 14:
            points.append(point)
    return np.array(points)


def brute_force(batch: Structures) -> set[tuple[int, int, int]]:
    """Every pair of residues held against the definition."""
    owners = torch.repeat_interleave(torch.arange(len(batch.offsets) - 1), batch.offsets.diff()).tolist()
    points, has = batch.coordinates[:, 1].double().numpy(), batch.mask[:, 1].tolist()
    number, found = batch.positions.tolist(), set()
    for target in range(len(owners)):
        mates = [i for i in range(len(owners)) if owners[i] == owners[target]]
        found |= {(i, target, 2 + number[target] - number[i]) for i in mates if abs(number[target] - number[i]) <= 2}
        if not has[target]:
            continue
        away = {i: float(np.linalg.norm(points[i] - points[target])) for i in mates if i != target and has[i]}
        near = sorted(away, key=lambda i: away[i])[:10]
        for relation, chosen in ((5, [i for i in away if away[i] <= 10]), (6, near)):
            found |= {(i, target, relation) for i in chosen if abs(number[i] - number[target]) >= 5 and away[i] > 0}
    return found


def listed(batch: Structures) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in edges(batch)), strict=True))


@pytest.mark.parametrize("missing", [(), (3, 4, 30, 70)])
def test_edges_equal_brute_force(missing: tuple[int, ...]) -> None:
    gapped = [i + 4 * (i > 11) + (i > 20) for i in range(30)]
    batch = structures(
        [walk(40, 1), walk(0, 0)[:0], walk(30, 2), walk(9, 3)], [[*range(40)], [], gapped, [*range(9)]], missing
    )
    found = listed(batch)
    assert len(found) == len(set(found)) and set(found) == brute_force(batch)
    assert {relation for _, _, relation in found} == set(range(RELATIONS))


def pairs(found: tuple[neighbours.Pairs, neighbours.Pairs]) -> list[set[tuple[int, int]]]:
    return [set(zip(source.tolist(), target.tolist(), strict=True)) for source, target in found]


@pytest.mark.parametrize("at_once", [1, 700, 1 << 22])
def test_a_search_on_the_device_finds_what_the_trees_find(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Here on the CPU, where nothing but the time tells that it is not its place."""
    monkeypatch.setattr(neighbours, "PAIRS", at_once)
    for missing in ((), (0, 3, 4, 30, 70, 78), tuple(range(79))):
        batch = structures([walk(40, 1), walk(0, 0)[:0], walk(30, 2), walk(9, 3), walk(1, 4)[:0]], missing=missing)
        searched = neighbours._searched(batch, RADIUS, NEAREST)
        assert pairs(searched) == pairs(neighbours._looked_up(batch, RADIUS, NEAREST))
        assert [len(each) for each in pairs(searched)] == [len(source) for source, _ in searched], "none is found twice"
    assert pairs(neighbours._searched(structures([]), RADIUS, NEAREST)) == [set(), set()]
    on_lattice = structures([np.array([[0, 0, 0], [6, 8, 0], [6, 8.25, 0]], np.float32)], [[0, 5, 10]])
    assert (
        pairs(neighbours._searched(on_lattice, RADIUS, NEAREST))[0]
        == pairs(neighbours._looked_up(on_lattice, RADIUS, NEAREST))[0]
        == {(0, 1), (1, 0), (1, 2), (2, 1)}
    )


@pytest.mark.parametrize(
    "chain",
    [
        np.zeros((1, 3)),
        np.zeros((2, 3)),
        np.arange(12)[:, None] * np.array([[3.8, 0, 0]]),
        np.zeros((25, 3)),
        np.repeat(walk(8, 5), 3, axis=0),
    ],
    ids=["one residue", "two at one place", "collinear", "all at one place", "triplets"],
)
def test_awkward_geometry(chain: np.ndarray) -> None:
    batch = structures([chain])
    if len(np.unique(chain, axis=0)) in (1, len(chain)) and len(chain) != 12:
        assert set(listed(batch)) == brute_force(batch)
    else:  # equal distances: which of them are nearest is open, how many is not
        among = {(i, j) for i, j, relation in listed(batch) if relation == 6}
        assert all(abs(i - j) >= 5 for i, j in among)
    assert GearNet.build(SMALL)(batch).values.isfinite().all()


def test_a_structure_without_any_alpha_carbon_has_its_chain_only() -> None:
    batch = structures([walk(8, 1)], missing=tuple(range(8)))
    assert {relation for _, _, relation in listed(batch)} == {0, 1, 2, 3, 4}
    assert GearNet.build(SMALL)(batch).values.isfinite().all()


def plain(encoder: GearNet, batch: Structures) -> Tensor:
    """Relation by relation, edge by edge."""
    kinds = [(RESIDUES + "X").find(chr(letter)) for letter in batch.letters.tolist()]
    hidden = torch.stack([torch.eye(21)[kind if kind >= 0 else 20] for kind in kinds])
    kept = []
    layer: Any
    for layer, norm in zip(encoder.layers, encoder.norms, strict=True):
        sums = torch.zeros(len(hidden), RELATIONS, hidden.shape[1])
        for i, j, relation in brute_force(batch):
            sums[j, relation] += hidden[i]
        after = layer.norm(layer.linear(sums.flatten(1)) + layer.self_loop(hidden)).relu()
        hidden = norm(after + hidden if after.shape == hidden.shape else after)
        kept.append(hidden)
    return torch.cat(kept, dim=1)


def test_features_equal_sums_over_edges() -> None:
    encoder, batch = GearNet.build(SMALL), structures([walk(30, 1), walk(21, 2)])
    got = encoder(batch)
    assert got.values.shape == (51, encoder.width) and encoder.width == 24
    torch.testing.assert_close(got.values, plain(encoder, batch), atol=2e-5, rtol=0)
    assert torch.equal(got.positions, batch.positions) and torch.equal(got.offsets, batch.offsets)


def torchdrug(path: Path) -> Path:
    """A state dict with TorchDrug's names, its running statistics away from their defaults."""
    random = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def norm(name: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(8, generator=random) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for i, before in enumerate((21, 8, 8)):
        for name, columns in (("linear", RELATIONS * before), ("self_loop", before)):
            state[f"layers.{i}.{name}.weight"] = torch.randn(8, columns, generator=random) * 0.1
            state[f"layers.{i}.{name}.bias"] = torch.randn(8, generator=random)
        norm(f"layers.{i}.batch_norm")
        norm(f"batch_norms.{i}")
    torch.save(state, path)
    return path


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_protein_does_not_depend_on_its_batch_mates(tmp_path: Path, loaded: bool, training: bool) -> None:
    config = SMALL.model_copy(update={"weights": str(torchdrug(tmp_path / "gearnet.pth"))}) if loaded else SMALL
    encoder = GearNet.build(config).train(training)
    chains = [walk(30, 1), walk(1, 2), walk(44, 3)]
    with torch.no_grad():
        together = encoder(structures(chains))
        for b, chain in enumerate(chains):
            alone = encoder(structures([chain])).values
            own = together.values[together.offsets[b] : together.offsets[b + 1]]
            torch.testing.assert_close(own, alone, atol=1e-6 * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_torchdrug_keep_their_running_statistics(tmp_path: Path, suffix: str) -> None:
    state = torch.load(torchdrug(tmp_path / "gearnet.pth"))
    path = tmp_path / f"gearnet.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    encoder = GearNet.build(SMALL.model_copy(update={"weights": str(path)}))
    assert isinstance(encoder.norms[1], RunningNorm)
    assert torch.equal(encoder.norms[1].running_mean, state["batch_norms.1.running_mean"])  # type: ignore[arg-type]
    batch = structures([walk(30, 1)])
    expected = plain(encoder.eval(), batch)
    torch.testing.assert_close(
        encoder(batch).values, expected, atol=1e-6 * float(expected.detach().abs().max()), rtol=0
    )


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = torchdrug(tmp_path / "gearnet.pth")
    with pytest.raises(ValueError, match=r"36 tensors differ, the first being .*, \(8,\) there and \(16,\)"):
        GearNet.build(GearNetConfig(weights=str(path), layers=3, hidden=16))
    torch.save({**torch.load(path), "edge_layers.0.linear.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="GearNet-Edge"):
        GearNet.build(SMALL.model_copy(update={"weights": str(path)}))


@pytest.mark.parametrize("chains", [[], [np.zeros((0, 3))] * 2])
def test_no_rows_give_no_rows(chains: list[np.ndarray]) -> None:
    got = GearNet.build(SMALL)(structures(chains))
    assert got.values.shape == (0, 24) and len(got.offsets) == len(chains) + 1


def test_gradients_reach_every_parameter_of_an_unfrozen_one() -> None:
    encoder = GearNet.build(SMALL)
    encoder(structures([walk(30, 1)])).values.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())
