"""Where an exported model puts a data set's proteins: t-SNE of each modality alone, and texts that look for theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain import inference
from pretrain.data.dataset import Dataset
from pretrain.data.index import MANIFEST
from pretrain.embeddings import Embeddings, Hit
from pretrain.evaluation.figures import Scatter
from pretrain.inference import Exported
from pretrain.sample import CorruptSample, Modality, Sample

HELD_OUT, TRAINED = "valid", "train"
LIMIT = 300  # proteins of each split: the picture stays legible and the page small
FEWEST = 8  # points; fewer have no neighbourhoods to keep
SEARCHES = 3


@dataclass(frozen=True)
class Search:
    """A held-out protein's text, searched among `among` proteins; its own came out at `rank` (from 1)."""

    key: str
    text: str
    hits: tuple[Hit, ...]
    rank: int
    among: int


@dataclass(frozen=True, eq=False)
class Panel:
    """classes: one cloud per modality. links: between the modalities of one held-out protein."""

    title: str
    classes: tuple[Scatter, ...]
    links: tuple[tuple[tuple[float, float], tuple[float, float]], ...]


@dataclass(frozen=True, eq=False)
class Map:
    """panels: the same points as they are and centred; none, with a `note` that says why, where there is too little."""

    panels: tuple[Panel, ...]
    searches: tuple[Search, ...]
    note: str

    @staticmethod
    def draw(data: Path, folder: Path) -> "Map | None":
        """Embed up to LIMIT proteins of the held-out and of the training split. None where data or model is missing."""
        if not (data / MANIFEST).is_file() or not (folder / inference.CONFIG).is_file():
            return None
        model, dataset = inference.load(folder), Dataset.open(data)
        held_out, trained = (list(filter(model.sees, _samples(dataset, split))) for split in (HELD_OUT, TRAINED))
        if not held_out and not trained:
            return Map((), (), "The data set has no proteins that this model sees.")
        embeddings = model.embed(held_out + trained)
        searches = tuple(_searches(model, embeddings, held_out))
        return _project(embeddings, len(held_out), len(trained), searches)


def _samples(dataset: Dataset, split: str) -> list[Sample]:
    """The split's first LIMIT samples in the order of their keys (which are accessions: no order of merit)."""
    groups = dataset.splits.get(split, {})
    places = sorted((group.key(i), name, i) for name, group in groups.items() for i in range(len(group)))
    samples = []
    for _, name, i in places[:LIMIT]:
        try:
            samples.append(dataset.read(split, name, i))
        except CorruptSample:
            continue  # training named and counted it
    return samples


def _project(embeddings: Embeddings, held_out: int, trained: int, searches: tuple[Search, ...]) -> Map:
    there = {m: np.flatnonzero(present) for m, present in embeddings.present.items() if present.any()}
    count = sum(map(len, there.values()))
    if count < FEWEST:
        return Map((), searches, f"There are {count} embeddings; a t-SNE of fewer than {FEWEST} shows nothing.")
    raw = {m: embeddings.alone[m][rows] for m, rows in there.items()}
    centred = {m: rows - rows.mean(0) for m, rows in raw.items()}
    panels = (
        _panel("as they are", raw, there, embeddings.keys, held_out),
        _panel("less each modality's mean", centred, there, embeddings.keys, held_out),
    )
    note = (
        f"t-SNE. A point is one modality of one protein, encoded alone. Full: the {held_out} held-out proteins, each "
        f"one's modalities linked; rings: {trained} that were trained on. Clouds apart by modality mean that the "
        "modality decides where a point lies; short links mean that the protein does. Distances between clouds mean "
        "nothing. By cosine, fixed seed."
    )
    return Map(panels, searches, note)


def _panel(
    title: str,
    values: Mapping[Modality, NDArray[np.floating]],
    there: Mapping[Modality, NDArray[np.integer]],
    keys: Sequence[str],
    held_out: int,
) -> Panel:
    """values: modality → [n, D]; there: modality → int [n], the proteins they are of, the first `held_out` held out."""
    places = iter(tsne(np.concatenate(list(values.values()))))
    at = {(m, int(i)): next(places) for m, rows in there.items() for i in rows}
    classes = [
        Scatter(
            str(m),
            np.array([at[m, i] for i in rows.tolist()]),
            f"--{m}",
            [f"{keys[i]}, {m}" for i in rows.tolist()],
            [i >= held_out for i in rows.tolist()],
        )
        for m, rows in there.items()
    ]
    links = [
        ((float(at[a, i][0]), float(at[a, i][1])), (float(at[b, i][0]), float(at[b, i][1])))
        for i in range(held_out)
        for a, b in combinations([m for m in there if (m, i) in at], 2)
    ]
    return Panel(title, tuple(classes), tuple(links))


def tsne(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """[N, 2]: t-SNE by cosine distance; perplexity 30, or less where there are few points. N ≥ 4."""
    from sklearn.manifold import TSNE

    perplexity = float(min(30, max(2, (len(rows) - 1) // 4)))
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    model = TSNE(2, perplexity=perplexity, metric="cosine", init="random", learning_rate="auto", random_state=0)
    return model.fit_transform(unit.astype(np.float64))


def _searches(model: Exported, embeddings: Embeddings, held_out: Sequence[Sample]) -> list[Search]:
    """The first few held-out proteins that have a text and something else to be found by."""
    found = []
    for sample in held_out:
        texts = sample.function.texts if sample.function else ()
        if not texts or len(sample.modalities) < 2 or Modality.FUNCTION not in model.modalities:
            continue
        hits = model.search(texts[0].text, embeddings, len(embeddings.keys))
        ranks = [i + 1 for i, hit in enumerate(hits) if hit.key == sample.key]
        if ranks:
            found.append(Search(sample.key, texts[0].text, tuple(hits[:5]), ranks[0], len(hits)))
        if len(found) == SEARCHES:
            break
    return found
