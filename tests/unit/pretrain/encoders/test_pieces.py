"""Encoders run a few layers at a time: the same to the bit, and open to whoever comes in between."""

from typing import Any

import pytest
import torch

from pretrain.batch import Sequences
from pretrain.encoders.bundle import ENCODERS, EncodersConfig
from tests.models import EGNN, ESM, GEARNET, GVP
from tests.unit.pretrain.encoders.test_graphs import batch

SIZES: dict[str, dict[str, Any]] = {
    "esm": {**ESM, "kind": "esm", "layers": 3}, "gearnet": {**GEARNET, "layers": 3}, "gvp": {**GVP, "layers": 3},
    "egnn": {**EGNN, "layers": 3},
}  # fmt: skip


@pytest.fixture(params=SIZES)
def encoder(request: pytest.FixtureRequest) -> Any:
    field = "sequence" if request.param == "esm" else "structure"
    config = EncodersConfig.model_validate({field: SIZES[request.param]})
    return ENCODERS[request.param].build(getattr(config, field))


def given(encoder: Any, lengths: list[int]) -> Any:
    structures = batch(lengths)
    return Sequences(structures.letters, structures.offsets) if encoder.config.kind == "esm" else structures


@pytest.mark.parametrize("lengths", [[14, 0, 1, 20], [0, 0], []])
@torch.no_grad()
def test_in_pieces_it_is_the_same_to_the_bit(encoder: Any, lengths: list[int]) -> None:
    whole, state = encoder(given(encoder, lengths)), encoder.begin(given(encoder, lengths))
    for layers in (range(1), range(1, 1), range(1, 3)):
        state = encoder.run(state, layers)
        rows = state.rows
        assert layers == range(1, 1) or rows.shape == (sum(lengths), encoder.between)
        state = state.with_rows(rows.clone())
        assert torch.equal(state.rows, rows)
    assert torch.equal(encoder.finish(state), whole.values)
    assert whole.values.shape == (sum(lengths), encoder.width)


@torch.no_grad()
def test_what_is_put_in_reaches_the_protein_and_no_other(encoder: Any) -> None:
    state = encoder.run(encoder.begin(given(encoder, [14, 20])), range(1))
    rows = state.rows.clone()
    rows[3] += 1.0
    here, there = (encoder.finish(encoder.run(each, range(1, 3))) for each in (state, state.with_rows(rows)))
    changed = (here != there).any(1)
    assert changed[3] and changed[:14].sum() > 1 and not changed[14:].any()
