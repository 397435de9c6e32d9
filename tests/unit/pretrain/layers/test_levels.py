"""What is known of whole proteins, and the fusion that reads residues: against loops over proteins."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pretrain.batch import Batch, Features, Tokens, lengths_of, offsets_of
from pretrain.layers.levels import LevelFusion, ProteinLevels
from pretrain.layers.transformer import sinusoid
from pretrain.sample import Modality, Sample
from tests.models import TERMS, batch_of, build, sample

FUNCTION, IMAGE = Modality.FUNCTION, Modality.IMAGE
WIDTH = 8


def made() -> tuple[ProteinLevels, Features, Batch, list[Sample]]:
    """Proteins with one image and with two, one with neither, one without a text."""
    _, encoders = build("ssgi")
    samples = [sample(0, FUNCTION, IMAGE), sample(1, IMAGE), sample(2, Modality.SEQUENCE), sample(3, FUNCTION)]
    batch = batch_of(samples, encoders)
    torch.manual_seed(2)
    return ProteinLevels({FUNCTION: 12, IMAGE: 16}, WIDTH, 4, TERMS), encoders(batch), batch, samples


def test_levels_are_those_of_a_slow_twin() -> None:
    module, features, batch, samples = made()
    found = module(features, batch)
    assert {m: rows.tolist() for m, rows in module.present(batch).items()} == {
        "terms": [True, False, False, True], "text": [True, False, False, True], "image": [True, True, False, False]
    }  # fmt: skip

    def project(m: Modality, values: Tensor, positions: Tensor) -> Tensor:
        one = module.projections[m.value]
        return values @ one.linear.weight.T + one.linear.bias + sinusoid(positions, WIDTH) + one.mark.vector  # type: ignore

    def cut(m: Modality, i: int) -> tuple[Tensor, Tensor]:
        part = slice(*features[m].offsets[i : i + 2].tolist())
        return features[m].values[part], features[m].positions[part]

    for i, one in enumerate(samples):
        if one.images:
            patches = project(IMAGE, *cut(IMAGE, i)).split(4)
            assert len(patches) == len(one.images)
            images = torch.stack([image.mean(0) for image in patches])
            pooled = _pooled(module.poolings["image"], images)
            torch.testing.assert_close(found.vectors["image"][i], _seen(module.towers["image"], pooled))
            rows, owners = found.tokens["image"]
            torch.testing.assert_close(rows[owners == i], images)
        if one.function:
            text = project(FUNCTION, *cut(FUNCTION, i)).mean(0)
            torch.testing.assert_close(found.vectors["text"][i], _seen(module.towers["text"], text))
            ids = TERMS.rows(term.id for term in one.function.terms)
            assert module.ontology is not None
            terms = module.mark(module.norm(module.ontology(torch.tensor(ids))))
            rows, owners = found.tokens["terms"]
            torch.testing.assert_close(rows[owners == i], terms)
            pooled = _pooled(module.poolings["terms"], terms)
            torch.testing.assert_close(found.vectors["terms"][i], _seen(module.towers["terms"], pooled))
    assert [found.tokens[level][1].tolist() for level in ("text", "image")] == [[0, 3], [0, 1, 1]]


def _pooled(pooling: nn.Module, rows: Tensor) -> Tensor:
    tell, gate = pooling.sides(rows).chunk(2, 1)  # type: ignore[operator]
    shares = pooling.score(tell.tanh() * gate.sigmoid()).softmax(0)  # type: ignore[operator]
    return (shares * rows).sum(0)


def _seen(tower: Any, row: Tensor) -> Tensor:
    norm, up, gelu, down = tower.head
    return normalize(down(gelu(up(norm(row)))), dim=0)


def fused(tokens: list[int], residues: list[int]) -> tuple[LevelFusion, Tokens, Tokens, Tensor]:
    """Proteins with so many tokens and so many residues; what the fusion makes of them."""
    torch.manual_seed(3)
    module = LevelFusion(WIDTH, 2, 2, 2.0)
    first, second = (
        Tokens(
            torch.randn(sum(each), WIDTH), offsets_of(torch.tensor(each, dtype=torch.int64)), torch.arange(sum(each))
        )
        for each in (tokens, residues)
    )
    return module, first, second, module([(first.values, first.owners)], second.values, second.offsets)


def test_the_fusion_is_that_of_one_protein_at_a_time() -> None:
    counts = [2, 0, 3, 0], [5, 4, 0, 0]
    module, tokens, residues, found = fused(*counts)
    assert found.shape == (4, WIDTH)
    for i in range(4):
        own, context = (part.values[part.offsets[i] : part.offsets[i + 1]].unsqueeze(0) for part in (tokens, residues))
        rows = torch.cat([module.token.vector.expand(1, 1, -1), own], 1)
        for read, join in zip(module.reads, module.joins, strict=True):
            rows = _block(read, rows, read.context_norm(context))  # type: ignore[operator]
            rows = _block(join, rows, join.attention_norm(rows))  # type: ignore[operator]
        torch.testing.assert_close(found[i], module.norm(rows[0, 0]), atol=1e-5, rtol=1e-5)


def _block(block: nn.Module, rows: Tensor, context: Tensor) -> Tensor:
    """A pre-norm attention block over [1, n, width], from its parameters."""
    block_: nn.Module = block
    a, normed = block_.attention, block_.attention_norm(rows)  # type: ignore[operator]
    heads = a.heads  # type: ignore[union-attr]
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in (a.query(normed), a.key(context), a.value(context))  # type: ignore[union-attr, operator]
    )
    if key.shape[2]:
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        read = (weights @ value).transpose(1, 2).flatten(2)
    else:
        read = torch.zeros_like(rows)
    rows = rows + a.out(read)  # type: ignore[union-attr, operator]
    return rows + block_.mlp(block_.mlp_norm(rows))  # type: ignore[operator]


@pytest.mark.parametrize("counts", [([0, 0], [0, 0]), ([], []), ([1, 0], [0, 0])])
def test_nothing_to_read_calls_everything_and_gives_a_vector(counts: tuple[list[int], list[int]]) -> None:
    module, _, _, found = fused(*counts)
    assert found.shape == (len(counts[0]), WIDTH) and found.isfinite().all()
    found.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_proteins_tokens_and_residues_reach_its_vector_and_no_other() -> None:
    module, tokens, residues, found = fused([2, 1], [3, 4])
    for part, row in ((tokens, 2), (residues, 6)):
        changed = part.values.clone()
        changed[row, 0] += 1
        values = {id(tokens): tokens.values, id(residues): residues.values, id(part): changed}
        again = module([(values[id(tokens)], tokens.owners)], values[id(residues)], residues.offsets)
        assert torch.equal(again[0], found[0]) and not torch.allclose(again[1], found[1], atol=1e-4)
    assert lengths_of(residues.offsets).tolist() == [3, 4]
