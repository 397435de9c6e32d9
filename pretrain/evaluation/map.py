"""Where an exported model puts a data set's proteins: t-SNE of each modality alone, and texts that look for theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain import inference
from pretrain.data.index import MANIFEST, Dataset
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
class Map:
    """classes: one cloud per modality; empty, with a `note` that says why, where there is too little to draw.

    links: between the modalities of one held-out protein.
    """

    classes: tuple[Scatter, ...]
    links: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    searches: tuple[Search, ...]
    note: str

    @staticmethod
    def draw(data: Path, folder: Path) -> "Map | None":
        """Embed up to LIMIT proteins of the held-out and of the training split. None where data or model is missing."""
        if not (data / MANIFEST).is_file() or not (folder / inference.CONFIG).is_file():
            return None
        model, dataset = inference.load(folder), Dataset.open(data)
        held_out, trained = (_samples(dataset, split) for split in (HELD_OUT, TRAINED))
        if not held_out and not trained:
            return Map((), (), (), "The data set has no proteins to draw.")
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
    rows = [(modality, i) for modality, present in embeddings.present.items() for i in np.flatnonzero(present).tolist()]
    if len(rows) < FEWEST:
        return Map((), (), searches, f"There are {len(rows)} embeddings; a t-SNE of fewer than {FEWEST} shows nothing.")
    points, perplexity = tsne(np.stack([embeddings.alone[modality][i] for modality, i in rows]))
    at = {row: (float(x), float(y)) for row, (x, y) in zip(rows, points, strict=True)}
    classes = []
    for modality in embeddings.present:
        own = [i for m, i in rows if m == modality]
        if own:
            spots = np.array([at[modality, i] for i in own])
            titles = [f"{embeddings.keys[i]}, {modality}" for i in own]
            classes.append(Scatter(str(modality), spots, f"--{modality}", titles, [i >= held_out for i in own]))
    links = [
        (at[a, i], at[b, i])
        for i in range(held_out)
        for a, b in combinations([m for m, present in embeddings.present.items() if present[i]], 2)
    ]
    note = (
        f"A point is one modality of one protein, encoded alone. Full: the {held_out} held-out proteins, each one's "
        f"modalities linked; rings: {trained} that were trained on. t-SNE by cosine, perplexity {perplexity:g}, fixed "
        "seed. Clouds apart by modality mean that the modality decides where a point lies; short links mean that the "
        "protein does. Distances between clouds mean nothing."
    )
    return Map(tuple(classes), tuple(links), searches, note)


def tsne(rows: NDArray[np.floating]) -> tuple[NDArray[np.floating], float]:
    """([N, 2], perplexity): t-SNE by cosine distance; perplexity 30, or less where there are few points. N ≥ 4."""
    from sklearn.manifold import TSNE

    perplexity = float(min(30, max(2, (len(rows) - 1) // 4)))
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    model = TSNE(2, perplexity=perplexity, metric="cosine", init="random", learning_rate="auto", random_state=0)
    return model.fit_transform(unit.astype(np.float64)), perplexity


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
