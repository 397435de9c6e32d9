"""Drawn images in the layout of fluorescence microscopy: four channels of one or two cells. They are NOT microscopy.

Where a protein's channel is bright follows the cellular component that Gene Ontology annotates, so that an image says
something true of its protein, and nothing more. Every value comes from a generator seeded by the image's name.
"""

import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pretrain.sample import CHANNELS

Plane = NDArray[np.float64]
SIZE = 96  # pixels
UNLABELLED = "unlabelled_1"  # the image of no known protein
EXPERIMENTAL = {"IDA", "HDA", "EXP", "IMP", "IPI"}
COMPARTMENTS = {  # the first that a protein is annotated with, by experiment if any; the more particular first
    "GO:0005730": "nucleolus",
    "GO:0005759": "mitochondria",
    "GO:0005743": "mitochondria",
    "GO:0005739": "mitochondria",
    "GO:0005789": "er",
    "GO:0005783": "er",
    "GO:0000139": "golgi",
    "GO:0005794": "golgi",
    "GO:0005764": "vesicles",
    "GO:0005770": "vesicles",
    "GO:0005615": "vesicles",
    "GO:0005576": "vesicles",
    "GO:0005923": "membrane",
    "GO:0005886": "membrane",
    "GO:0005654": "nucleus",
    "GO:0005634": "nucleus",
    "GO:0005829": "cytosol",
    "GO:0005737": "cytosol",
}


def main(proteins: list[dict[str, str]], human: Path, out: Path) -> None:
    """Write the images that `proteins.tsv` asks for, one that is to be rejected, and `manifest.tsv`.

    `bands:n` is n PNGs of four bands, `channels:n` one grey PNG per channel, `pair:n` protein and nucleus alone.
    """
    rows = []
    with sqlite3.connect(human) as genes:
        for protein in (p for p in proteins if p["images"] and UNLABELLED not in p["key"]):
            place = compartment(genes, protein["key"])
            wishes = [wish.split(":") for wish in protein["images"].split()]
            for i, kind in enumerate([kind for kind, count in wishes for _ in range(int(count))], 1):
                rows += write(protein["key"], f"{protein['key']}_{i}", kind, place, out)
        rows += write("", UNLABELLED, "bands", "cytosol", out)
    rows.append(("missing.png", "P62258", "P62258_missing", "", "exercise: listed, but not there"))
    data = (out / "P62258_1.png").read_bytes()
    (out / "reject_truncated.png").write_bytes(data[: len(data) // 2])
    rows.append(("reject_truncated.png", "P62258", "P62258_truncated", "", "exercise: the first half of P62258_1.png"))
    lines = [("path", "accession", "image", "channel", "source"), *rows]
    (out / "manifest.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))


def write(key: str, name: str, kind: str, place: str, out: Path) -> list[tuple[str, ...]]:
    planes, source = draw(name, place), f"drawn: {place}"
    if kind == "bands":
        Image.fromarray(np.stack(list(planes.values()), axis=-1), "RGBA").save(out / f"{name}.png", optimize=True)
        return [(f"{name}.png", key, name, "", source)]
    rows = []
    for channel in CHANNELS[:2] if kind == "pair" else CHANNELS:
        Image.fromarray(planes[channel], "L").save(out / f"{name}_{channel}.png", optimize=True)
        rows.append((f"{name}_{channel}.png", key, name, channel, source))
    return rows


def compartment(genes: sqlite3.Connection, key: str) -> str:
    """Where the protein is drawn; `cytosol` where nothing fits."""
    query = "SELECT go_id, evidence FROM uniprot JOIN go_cc USING (_id) WHERE uniprot_id = ?"
    found = set(genes.execute(query, (key,)))
    certain = {term for term, evidence in found if evidence in EXPERIMENTAL}
    for terms in (certain, {term for term, _ in found}):
        if places := [place for term, place in COMPARTMENTS.items() if term in terms]:
            return places[0]
    return "cytosol"


def draw(name: str, place: str) -> dict[str, NDArray[np.uint8]]:
    """{channel: uint8 [SIZE, SIZE]} of one or two cells."""
    random = np.random.default_rng(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big"))
    planes = {channel: np.zeros((SIZE, SIZE)) for channel in CHANNELS}
    centres = [(0.5, 0.5)] if random.random() < 0.5 else [(0.3, 0.33), (0.68, 0.66)]
    for row, column in centres:
        cell = Cell(random, row * SIZE, column * SIZE, SIZE * (0.4 if len(centres) == 1 else 0.27))
        planes["nucleus"] += cell.nucleus * (0.8 + 0.2 * cell.texture(2))
        planes["microtubules"] += cell.filaments()
        planes["er"] += cell.reticulum()
        planes["protein"] += PATTERNS[place](cell)
    return {channel: expose(plane, random) for channel, plane in planes.items()}


def expose(plane: Plane, random: np.random.Generator) -> NDArray[np.uint8]:
    """Blurred, with shot noise over a dark background, in 8 bits. Noise is coarse, for PNG's sake."""
    bright = gaussian_filter(plane, 0.7)
    photons = random.poisson(3 + 60 * bright / max(bright.max(), 1e-9))
    return (np.clip(photons * 3.2, 0, 255) // 4 * 4).astype(np.uint8)


class Cell:
    """One cell's geometry. Planes are [SIZE, SIZE], 0 to about 1. distance: 0 at the centre, 1 at the cell's edge."""

    def __init__(self, random: np.random.Generator, row: float, column: float, radius: float) -> None:
        self.random, self.radius = random, radius
        rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
        self.angle = np.arctan2(rows - row, columns - column)
        wobble = sum(random.uniform(0.02, 0.08) * np.sin(k * self.angle + random.uniform(0, 6.3)) for k in (2, 3, 5))
        self.distance = np.hypot((rows - row) * random.uniform(0.9, 1.15), columns - column) / (radius * (1 + wobble))
        shift = random.uniform(-0.1, 0.1, 2) * radius
        self.inner = np.hypot(rows - row - shift[0], (columns - column - shift[1]) * random.uniform(0.8, 1.2)) / radius
        self.body = edge(self.distance, 1.0)
        self.nucleus = edge(self.inner, 0.42)
        self.cytosol = self.body * (1 - self.nucleus)

    def texture(self, scale: float) -> Plane:
        """Smooth noise from 0 to 1, about `scale` pixels coarse."""
        noise = gaussian_filter(self.random.standard_normal((SIZE, SIZE)), scale)
        return (noise - noise.min()) / (noise.max() - noise.min())

    def spots(self, count: int, width: float, where: Plane) -> Plane:
        """`count` blurred points, placed with probability `where`."""
        chosen = self.random.choice(where.size, count, p=(where / where.sum()).ravel())
        plane = np.zeros(where.size)
        plane[chosen] = 1
        plane = gaussian_filter(plane.reshape(where.shape), width)
        return plane / plane.max()

    def filaments(self) -> Plane:
        bend = self.random.uniform(1, 3) * self.distance
        count = self.random.integers(14, 22)
        turned = self.angle + 0.15 * np.sin(bend + self.random.uniform(0, 6.3))
        rays = np.sin(count * turned) ** 8
        return self.cytosol * (0.15 + rays) * np.clip(1.3 - self.distance, 0, 1)

    def reticulum(self) -> Plane:
        lines = np.abs(self.texture(1.5) - 0.5) < 0.06
        return self.cytosol * (0.2 + lines) * np.clip(1.5 - 1.3 * self.distance, 0.1, 1)

    def mitochondria(self) -> Plane:
        worms = np.abs(self.texture(2.0) - 0.5) < 0.03
        return self.cytosol * worms * (self.texture(4) > 0.4)

    def golgi(self) -> Plane:
        side = np.cos(self.angle - self.random.uniform(0, 6.3)) > 0.6
        return side * self.cytosol * np.exp(-(((self.inner - 0.52) / 0.07) ** 2)) * (0.3 + self.texture(1.2))


PATTERNS: dict[str, Callable[[Cell], Plane]] = {
    "nucleus": lambda cell: cell.nucleus * (0.6 + 0.4 * cell.texture(1.5)) + 0.05 * cell.body,
    "nucleolus": lambda cell: cell.spots(4, 2.5, cell.nucleus**4) + 0.15 * cell.nucleus,
    "mitochondria": Cell.mitochondria,
    "er": Cell.reticulum,
    "golgi": Cell.golgi,
    "vesicles": lambda cell: cell.spots(40, 0.9, cell.cytosol) + 0.08 * cell.cytosol,
    "membrane": lambda cell: np.exp(-(((cell.distance - 0.97) / 0.05) ** 2)) + 0.08 * cell.body,
    "cytosol": lambda cell: cell.cytosol * (0.6 + 0.4 * cell.texture(3)) * np.clip(1.4 - cell.distance, 0, 1),
}


def edge(distance: Plane, at: float) -> Plane:
    """1 inside, 0 outside, soft over a few pixels."""
    return 1 / (1 + np.exp((distance - at) * 30))
