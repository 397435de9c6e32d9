"""Validation: sums, not means of means; nothing for what was not measured; two ranks with unequal batches equal one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from pretrain.batch import Batch, Images, Loss, Sequences, Structures, Texts, offsets_of
from pretrain.evaluation.evaluate import text_codes, validate
from pretrain.evaluation.metrics import alignment, cloud
from pretrain.sample import Modality
from tests import models
from tests.models import build, sample

SEQUENCE, STRUCTURE, FUNCTION = Modality.SEQUENCE, Modality.STRUCTURE, Modality.FUNCTION


def batch_of(texts: list[list[int]], first: int = 0) -> Batch:
    """A batch whose only content is its texts' word pieces; keys number the proteins from `first`."""
    b = len(texts)
    none = torch.zeros(b + 1, dtype=torch.int64)
    ids = torch.tensor([i for text in texts for i in text], dtype=torch.int64)
    return Batch(
        keys=tuple(str(first + i) for i in range(b)),
        seed=0,
        step=0,
        slots=torch.arange(b),
        window=torch.zeros(b, 2, dtype=torch.int64),
        lengths={},
        sequence=Sequences(torch.zeros(0, dtype=torch.uint8), none),
        structure=Structures(
            torch.zeros(0, 4, 3),
            torch.zeros(0, 4, dtype=torch.bool),
            torch.zeros(0, dtype=torch.uint8),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0),
            none,
        ),
        function=Texts(ids, offsets_of(torch.tensor([len(text) for text in texts], dtype=torch.int64))),
        image=Images(torch.zeros(0, 4, 8, 8), torch.zeros(0, 4, dtype=torch.bool), none),
    )


TEXTS = [[1, 2], [1, 2], [3], [], [4, 5], [4], [6, 7], [8]]


def forward(batch: Batch):
    """Embeddings that depend on the protein alone; protein 3 has no function, odd ones have no structure."""
    numbers = [int(key) for key in batch.keys]
    torch.manual_seed(0)
    table = torch.randn(len(TEXTS), 5)
    values = table[numbers]
    noisy = values + 0.9 * torch.randn(len(TEXTS), 5)[numbers]
    everywhere = torch.ones(len(batch), dtype=torch.bool)
    losses = {
        "sequence": Loss(torch.tensor(float(sum(numbers))), len(numbers)),
        "structure": Loss(torch.tensor(float(sum(numbers)) * 2), sum(n % 2 == 0 for n in numbers), weight=0.5),
        "image": Loss(torch.tensor(0.0), 0),
    }
    return losses, {
        SEQUENCE: (values, everywhere),
        STRUCTURE: (noisy, torch.tensor([n % 2 == 0 for n in numbers], dtype=torch.bool)),
        FUNCTION: (noisy.flip(1), torch.tensor([n != 3 for n in numbers], dtype=torch.bool)),
    }


def cut(sizes: list[int]) -> list[Batch]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [batch_of(TEXTS[start : start + size], start) for start, size in zip(starts, sizes, strict=True)]


def test_losses_are_means_over_elements():
    found = validate(forward, cut([5, 3]), k=2)
    assert found.losses == {"sequence": pytest.approx(28 / 8), "structure": pytest.approx(56 / 4)}  # and no image
    assert found.loss == pytest.approx(28 / 8 + 0.5 * 56 / 4)
    assert found.samples == 8
    assert found == validate(forward, cut([1, 0, 6, 1]), k=2)  # also with an empty batch among them


def test_retrieval_is_over_proteins_that_have_both():
    found = validate(forward, cut([8]), k=2).retrieval
    assert {name: result.n for name, result in found.items()} == {
        "sequence-structure": 4,
        "sequence-function": 7,
        "structure-function": 4,
    }
    assert found["sequence-structure"].chance == pytest.approx(2 / 4)
    assert found["sequence-function"].chance > 2 / 7  # two proteins share a text


def test_annotations_without_a_text_are_not_all_the_same():
    """A model that reads GO terms has function of proteins without a text: these are not each other's partners."""

    def collapsed(batch):
        losses, embedded = forward(batch)
        everywhere, same = torch.ones(len(batch), dtype=torch.bool), torch.ones(len(batch), 5)
        return losses, {SEQUENCE: embedded[SEQUENCE], FUNCTION: (same, everywhere)}

    found = validate(collapsed, [batch_of([[]] * 6)], k=1).retrieval["sequence-function"]
    assert found.chance == pytest.approx(1 / 6) and found.recall < 0.5


def test_centred_retrieval_sees_through_an_offset():
    """Modalities that agree but for a long common vector: plain recall suffers, centred does not."""

    def shifted(batch):
        losses, embedded = forward(batch)
        values, present = embedded[SEQUENCE]
        offset = torch.linspace(-99, 99, values.shape[1])
        return losses, {SEQUENCE: (values + offset, present), STRUCTURE: (values - 7 * offset, present)}

    found = validate(shifted, cut([5, 3]), k=1)
    assert found.centred["sequence-structure"].recall == 1.0
    assert found.retrieval["sequence-structure"].recall < 0.6


def test_clouds_are_of_proteins_that_have_the_modality():
    found = validate(forward, cut([5, 3]), k=2)
    assert {name: each.n for name, each in found.embeddings.items()} == {"sequence": 8, "structure": 4, "function": 7}
    values = torch.cat([forward(batch)[1][SEQUENCE][0] for batch in cut([5, 3])])
    assert found.embeddings["sequence"] == cloud(values)
    assert found.alignment.keys() == found.retrieval.keys()
    assert found.alignment["sequence-structure"] == alignment(values[::2], forward(cut([8])[0])[1][STRUCTURE][0][::2])


def test_what_differs_by_rounding_alone_is_one_point():
    """A model in bf16 whose head says the same of every protein, to a bit or two: its embeddings come as float32."""
    model, encoders = build("align-pro")
    last: Any = model.bfloat16().heads["sequence"][-1]  # type: ignore[union-attr, index]
    with torch.no_grad():
        last.weight.mul_(0.02)
        last.bias.copy_(torch.linspace(-2, 2, len(last.bias)))

    def nearly_one(batch):
        found = model(encoders(batch), batch, task="embeddings")
        return {}, {SEQUENCE: (found.values[SEQUENCE], found.present[SEQUENCE])}

    batches = [models.batch_of([sample(i, SEQUENCE) for i in some], encoders) for some in (range(12), range(12, 20))]
    fine, coarse = (validate(nearly_one, batches, precision=p).embeddings["sequence"] for p in ("fp32", "bf16"))
    assert 1e-5 < fine.spread < 1 / 128 and fine.effective_rank > 2  # rounding points everywhere
    assert coarse.effective_rank == 0 and coarse.spread == fine.spread


def test_nothing_to_validate_is_an_empty_result():
    found = validate(forward, [])
    assert (found.losses, found.retrieval, found.samples, found.loss) == ({}, {}, 0, 0)


def test_the_record_is_json():
    record = validate(forward, cut([8])).record()
    assert json.loads(json.dumps(record))["retrieval"]["sequence-structure"]["k"] == 10


def test_equal_texts_have_equal_codes():
    codes = text_codes(batch_of(TEXTS)).tolist()
    assert codes[0] == codes[1] and codes[3] == 0
    assert len(set(codes)) == 7


def test_broken_embeddings_are_left_out_and_counted():
    def broken(batch):
        losses, embedded = forward(batch)
        embedded[STRUCTURE][0][0] = torch.nan
        return losses, embedded

    whole, found = validate(forward, cut([8])), validate(broken, cut([8]))
    assert whole.not_finite == 0 and found.not_finite == 1
    assert found.retrieval["sequence-structure"].n == whole.retrieval["sequence-structure"].n - 1
    assert found.embeddings[STRUCTURE].n == whole.embeddings[STRUCTURE].n - 1


CUTS = [[[3, 2, 1], [2]], [[], [8]]]  # batch sizes by rank


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    records = []
    for sizes in CUTS:
        before = sum(len(part) for part in sizes[:rank])
        batches = cut([size for part in sizes for size in part])[before : before + len(sizes[rank])]
        records.append(validate(forward, batches, k=2).record())
    Path(folder, f"{rank}.json").write_text(json.dumps(records))
    torch.distributed.destroy_process_group()


def test_two_ranks_with_unequal_batches_equal_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    one = json.loads(json.dumps(validate(forward, cut([8]), k=2).record()))
    for rank in range(2):
        for record in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert record["retrieval"] == one["retrieval"]
            assert record["losses"] == pytest.approx(one["losses"])
            assert record["alignment"] == one["alignment"] and record["embeddings"] == one["embeddings"]
            assert record["samples"] == 8
