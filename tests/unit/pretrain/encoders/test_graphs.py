"""GVP and EGNN: what turning, moving and mirroring a protein changes, batch mates, what is missing, and slow twins."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.batch import Structures, offsets_of
from pretrain.encoders import egnn, gvp
from pretrain.encoders.egnn import Egnn, EgnnConfig
from pretrain.encoders.gvp import Gvp, GvpConfig, Pair
from pretrain.encoders.letters import LETTERS

GVP = GvpConfig(weights="random", layers=2, scalars=12, vectors=4, edge_scalars=8, nearest=6)
EGNN = EgnnConfig(weights="random", layers=2, hidden=12, nearest=6)
Encoder = Gvp | Egnn


def backbone(length: int, seed: int) -> Tensor:
    """float32 [L, 4, 3]: a chain of atoms with steps of 1.5 Å, held within a ball."""
    draw = np.random.default_rng(seed)
    points = [np.zeros(3)]
    while len(points) < 4 * length:
        step = draw.normal(size=3)
        point = points[-1] + 1.5 * step / np.linalg.norm(step)
        if np.linalg.norm(point) < 12:
            points.append(point)
    return torch.tensor(np.array(points)[: 4 * length].reshape(length, 4, 3), dtype=torch.float32)


def batch(lengths: list[int], gap: int | None = None) -> Structures:
    """Chains of these lengths; `gap`: five residues are left out of the first one before this row."""
    count = sum(lengths)
    chains = [backbone(length, seed) for seed, length in enumerate(lengths)]
    positions = [torch.arange(length) for length in lengths]
    if gap is not None:
        positions[0] = positions[0] + 5 * (positions[0] >= gap)
    letters = (LETTERS + "X").encode()
    return Structures(
        coordinates=torch.cat([*chains, torch.zeros(0, 4, 3)]),
        mask=torch.ones(count, 4, dtype=torch.bool),
        letters=torch.tensor([letters[7 * i % 21] for length in lengths for i in range(length)], dtype=torch.uint8),
        positions=torch.cat([*positions, torch.zeros(0, dtype=torch.int64)]),
        confidence=torch.full((count,), 100.0),
        offsets=offsets_of(torch.tensor(lengths, dtype=torch.int64)),
    )


def without(structures: Structures, rows: list[int], atom: int) -> Structures:
    mask, coordinates = structures.mask.clone(), structures.coordinates.clone()
    mask[rows, atom], coordinates[rows, atom] = False, 0.0
    return replace(structures, mask=mask, coordinates=coordinates)


def turned(structures: Structures, rotation: Tensor) -> Structures:
    """Turned, and moved elsewhere."""
    moved = structures.coordinates @ rotation.T + torch.tensor([3.0, -40.0, 11.0])
    return replace(structures, coordinates=moved * structures.mask.unsqueeze(-1))


def rotation(seed: int) -> Tensor:
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return (matrix * torch.linalg.det(matrix)).float()


MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0]))


@pytest.fixture(params=["gvp", "egnn"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return Gvp.build(GVP) if request.param == "gvp" else Egnn.build(EGNN)


@torch.no_grad()
def test_features_do_not_turn_with_the_protein(encoder: Encoder) -> None:
    structures = without(batch([30, 20], gap=12), [4, 33], 2)
    here = encoder(structures).values
    assert here.std(0).min() > 1e-3
    for seed in range(3):
        torch.testing.assert_close(encoder(turned(structures, rotation(seed))).values, here, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vectors_do_turn_with_it() -> None:
    encoder, structures, turn = Gvp.build(GVP), batch([25], gap=9), rotation(5)
    here, there = encoder.begin(structures), encoder.begin(turned(structures, turn))
    for layer in (None, *encoder.layers):
        here, there = (graph if layer is None else layer(graph) for graph in (here, there))
        for before, after in ((here.nodes, there.nodes), (here.edges, there.edges)):
            assert before.vectors.norm(dim=-1).max() > 0.1
            torch.testing.assert_close(after.vectors, before.vectors @ turn.T, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(after.scalars, before.scalars, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_coordinates_move_with_it() -> None:
    encoder, structures, turn = Egnn.build(EGNN), batch([25]), rotation(5)
    here, there = encoder.begin(structures), encoder.begin(turned(structures, turn))
    for layer in encoder.layers:
        before, here, there = here.points, layer(here), layer(there)
        last = layer is encoder.layers[-1]
        assert torch.equal(here.points, before) if last else (here.points - before).norm(dim=1).min() > 1e-4
        moved = here.points @ turn.T + torch.tensor([3.0, -40.0, 11.0]) / egnn.UNIT
        torch.testing.assert_close(there.points, moved, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_only_gvp_tells_a_protein_from_its_mirror_image() -> None:
    structures = batch([30])
    for encoder, differ in ((Gvp.build(GVP), True), (Egnn.build(EGNN), False)):
        apart = (encoder(turned(structures, MIRROR)).values - encoder(structures).values).abs().max()
        assert (apart > 1e-2) == differ and (differ or apart < 1e-4)


@torch.no_grad()
def test_batch_mates_do_not_matter(encoder: Encoder) -> None:
    lengths = [12, 0, 1, 17, 0]
    together, structures = encoder(batch(lengths)), batch(lengths)
    for i, (start, stop) in enumerate(
        zip(structures.offsets[:-1].tolist(), structures.offsets[1:].tolist(), strict=True)
    ):
        rows = slice(start, stop)
        fields = {
            name: getattr(structures, name)[rows]
            for name in ("coordinates", "mask", "letters", "positions", "confidence")
        }
        alone = encoder(Structures(**fields, offsets=torch.tensor([0, lengths[i]])))
        torch.testing.assert_close(together.values[rows], alone.values, rtol=1e-5, atol=1e-5)


def test_nothing_in_nothing_out_and_every_parameter_is_used(encoder: Encoder) -> None:
    encoder.requires_grad_(True)
    nothing = encoder(batch([0, 0]))
    assert nothing.values.shape == (0, encoder.width) and nothing.values.requires_grad
    nothing.values.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters() if p.requires_grad)
    encoder.zero_grad()
    encoder(batch([20])).values.square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_what_is_missing_breaks_no_gradient(encoder: Encoder) -> None:
    """Absent atoms lie at 0, so directions and distances between them are 0, where roots have no slope."""
    structures = batch([15, 1])
    for atom in range(4):
        structures = without(structures, [2, 3, 4, 9, 15], atom)
    encoder.requires_grad_(True)
    values = encoder(structures).values
    values.square().sum().backward()
    assert values.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def dihedral(a: Any, b: Any, c: Any, d: Any) -> float:
    """By the planes' normals, in degrees (IUPAC's sign)."""
    first, second, third = b - a, c - b, d - c
    n1, n2 = np.cross(first, second), np.cross(second, third)
    return math.degrees(math.atan2(np.linalg.norm(second) * (first @ n2), n1 @ n2))


def test_angles_and_directions_are_those_of_a_slow_twin() -> None:
    structures = without(batch([12, 9], gap=5), [7], 0)
    angles, directions = (part.double().numpy() for part in gvp.described(structures))
    points, has = structures.coordinates.double().numpy(), structures.mask.numpy()
    positions, starts = structures.positions.tolist(), {0, 12}
    for i in range(21):
        before = i - 1 if i not in starts and positions[i] == positions[i - 1] + 1 else None
        after = i + 1 if i + 1 < 21 and i + 1 not in starts and positions[i + 1] == positions[i] + 1 else None
        n, ca, c = range(3)
        four = {
            0: None if before is None else ((before, c), (i, n), (i, ca), (i, c)),
            1: None if after is None else ((i, n), (i, ca), (i, c), (after, n)),
            2: None if after is None else ((i, ca), (i, c), (after, n), (after, ca)),
        }
        for kind, atoms in four.items():
            known = atoms is not None and all(has[atom] for atom in atoms)
            want = math.radians(dihedral(*(points[atom] for atom in atoms))) if known and atoms else None
            expected = [0.0, 0.0] if want is None else [math.cos(want), math.sin(want)]
            assert angles[i, [kind, kind + 3]] == pytest.approx(expected, abs=1e-4), (i, kind)
        for which, mate in enumerate((after, before)):
            step = None if mate is None else points[mate, 1] - points[i, 1]
            want_step = np.zeros(3) if step is None else step / np.linalg.norm(step)
            assert directions[i, which] == pytest.approx(want_step, abs=1e-5)
        side = directions[i, 2]
        if not has[i, :3].all():
            assert not side.any()
            continue
        bonds = [(points[i, atom] - points[i, 1]) / np.linalg.norm(points[i, atom] - points[i, 1]) for atom in (0, 2)]
        assert np.linalg.norm(side) == pytest.approx(1, abs=1e-5)
        assert side @ bonds[0] == pytest.approx(side @ bonds[1], abs=1e-5) and side @ bonds[0] < 0


def test_a_perceptron_is_its_equations() -> None:
    """Jing et al. 2021b, algorithm 1 with vector gates, one row at a time."""
    torch.manual_seed(0)
    perceptron = gvp.Perceptron((5, 3), (4, 2))
    pair = Pair(torch.randn(6, 5), torch.randn(6, 3, 3))
    found = perceptron(pair)
    weight = {name: p.detach().double() for name, p in perceptron.named_parameters()}
    for row in range(6):
        s, v = pair.scalars[row].double(), pair.vectors[row].double()
        hidden = weight["hidden.weight"] @ v
        joined = torch.cat([s, hidden.norm(dim=1)])
        scalars = torch.nn.functional.silu(weight["scalar.weight"] @ joined + weight["scalar.bias"])
        gate = (weight["gate.weight"] @ scalars + weight["gate.bias"]).sigmoid()
        vectors = gate.unsqueeze(1) * (weight["vector.weight"] @ hidden)
        torch.testing.assert_close(found.scalars[row].double(), scalars, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.vectors[row].double(), vectors, rtol=1e-5, atol=1e-5)


def test_a_layer_of_egnn_is_its_equations() -> None:
    encoder, structures = Egnn.build(EGNN).double(), batch([9, 4])
    layer: Any = encoder.layers[0]
    with torch.no_grad():
        graph = encoder.begin(structures)
        found = layer(graph)
        normed = layer.norm(graph.nodes)
        for i in range(13):
            sources = [int(s) for s, t in zip(graph.source, graph.target, strict=True) if int(t) == i]
            moved, heard = torch.zeros(3), torch.zeros(12, dtype=torch.float64)
            for j in sources:
                away = graph.points[i] - graph.points[j]
                along = (
                    int((structures.positions[j] - structures.positions[i]).clamp(-egnn.REACH, egnn.REACH)) + egnn.REACH
                )
                ends = torch.cat([normed[i], normed[j], away.square().sum()[None].double()])
                message = layer.message(layer.ends(ends) + layer.along.weight[along])
                moved, heard = moved + away * layer.move(message).float(), heard + message
            torch.testing.assert_close(found.points[i], graph.points[i] + moved / len(sources), rtol=1e-5, atol=1e-5)
            node = graph.nodes[i] + layer.node(torch.cat([normed[i], heard / math.sqrt(len(sources))]))
            torch.testing.assert_close(found.nodes[i], node, rtol=1e-4, atol=1e-4)


def test_edges_of_gvp_are_those_of_a_slow_twin() -> None:
    structures = batch([9, 4], gap=4)
    source, target = torch.tensor([3, 0, 8, 10]), torch.tensor([5, 8, 0, 12])
    lengths, ways = gvp.between(structures, source, target)
    points, places = structures.coordinates[:, 1].double(), structures.positions.tolist()
    for edge, (j, i) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        away = points[j] - points[i]
        far, apart = float(away.norm()), places[j] - places[i]
        bumps = [math.exp(-(((far - 20 * k / 15) / (20 / 16)) ** 2)) for k in range(16)]
        turns = [apart / 10_000 ** (2 * k / 16) for k in range(8)]
        want = [*bumps, *map(math.cos, turns), *map(math.sin, turns)]
        assert lengths[edge].tolist() == pytest.approx(want, abs=1e-4)
        torch.testing.assert_close(ways[edge, 0].double(), away / far, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_of_gvp_is_its_equations() -> None:
    """Messages edge by edge, their mean, and the step; a residue that nobody is near hears 0."""
    encoder, structures = Gvp.build(GVP), without(batch([9, 4, 1]), [2], 1)
    graph, layer = encoder.begin(structures), encoder.layers[0]
    assert isinstance(layer, gvp.Layer)
    found, normed = layer(graph).nodes, layer.norm(graph.nodes)
    for i in range(14):
        heard = [torch.zeros(12), torch.zeros(4, 3)]
        edges = [e for e, target in enumerate(graph.target.tolist()) if target == i]
        assert bool(edges) == (i not in (2, 13))
        for e in edges:
            j = int(graph.source[e])
            scalars = torch.cat([normed.scalars[j], normed.scalars[i], graph.edges.scalars[e]])
            vectors = torch.cat([normed.vectors[j], normed.vectors[i], graph.edges.vectors[e]])
            told = layer.message(Pair(scalars, vectors))
            heard = [total + part / len(edges) for total, part in zip(heard, told, strict=True)]
        node = Pair(graph.nodes.scalars[i] + heard[0], graph.nodes.vectors[i] + heard[1])
        step = layer.step(layer.step_norm(node))
        torch.testing.assert_close(found.scalars[i], node.scalars + step.scalars, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.vectors[i], node.vectors + step.vectors, rtol=1e-4, atol=1e-5)
