"""Pictures of a sample's parts, as PNG: a structure as a shaded ribbon, its expected errors, an image's channels."""

import io

import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from data_prep.views.ribbon import Ribbon, ribbon
from pretrain.sample import CHANNELS, Image, Structure

DPI = 200
SIZE = (5.2, 4.2)  # inches
GROUND = np.ones(3)  # white
FOG = 0.62  # of the ground's colour, over what is farthest
RIM = 0.2  # Å: width of the line around what is seen
LIFT = 0.25  # Å by which it lies before its own faces
LIGHT = np.array([-0.35, 0.55, 0.76])
PLDDT = ((90, "#0053d6", "very high"), (70, "#65cbf3", "high"), (50, "#ffdb13", "low"), (0, "#ff7d45", "very low"))
TINTS = {
    "protein": (0.1, 1.0, 0.25),
    "nucleus": (0.2, 0.35, 1.0),
    "microtubules": (1.0, 0.15, 0.15),
    "er": (1.0, 0.9, 0.1),
}
THUMB = 256  # pixels of a channel's longer side


def structure(chain: Structure) -> bytes:
    """Coloured by pLDDT where there is one, otherwise from the chain's beginning (blue) to its end (red)."""
    drawn = ribbon(chain)
    figure, axes = _figure()
    _draw(axes, drawn, colors(chain))
    _frame(axes, drawn)
    _legend(figure, chain)
    return _png(figure)


def colors(chain: Structure) -> NDArray[np.float64]:
    """RGB of each residue: [L, 3]."""
    if chain.confidence is None:
        where = np.linspace(0.06, 0.94, len(chain)) if len(chain) > 1 else np.array([0.5])
        return colormaps["turbo"](where)[:, :3] * 0.86 + 0.14 * np.array([0.9, 0.95, 1.0])
    out = np.empty((len(chain), 3))
    for least, color, _ in reversed(PLDDT):
        out[chain.confidence >= least] = _rgb(color)
    return out


def errors(chain: Structure) -> bytes:
    """The predicted aligned error: dark green where two residues' places are certain, white at 30 Å."""
    assert chain.pae is not None
    figure = Figure(figsize=(3.6, 3.2), dpi=DPI)
    axes = figure.add_axes((0.15, 0.13, 0.68, 0.84))
    shown = axes.imshow(chain.pae, cmap="Greens_r", vmin=0, vmax=30, interpolation="nearest")
    bar = figure.colorbar(shown, cax=figure.add_axes((0.855, 0.165, 0.03, 0.77)))
    bar.set_label("expected error, Å", fontsize=7)
    bar.ax.tick_params(labelsize=6.5)
    axes.tick_params(labelsize=6.5)
    axes.set_xlabel("scored residue", fontsize=7)
    axes.set_ylabel("aligned residue", fontsize=7)
    return _png(figure)


def channels(image: Image) -> list[tuple[str, bytes]]:
    """(name, PNG) of the channels together, then of each one that is there.

    Each is stretched between its 1st and its 99.8th percentile: what is dim in one picture may be bright in another.
    """
    with PIL.Image.open(io.BytesIO(image.data)) as opened:
        opened.thumbnail((THUMB, THUMB))
        planes = np.atleast_3d(np.asarray(opened)).astype(np.float64)
    found = [(name, _stretched(planes[..., CHANNELS.index(name)])) for name in image.present]
    merged = np.clip(sum(plane[..., None] * np.array(TINTS[name]) for name, plane in found), 0, 1)
    pictures = [("together", merged)] if len(found) > 1 else []
    pictures += [(name, plane[..., None] * (0.25 + 0.75 * np.array(TINTS[name]))) for name, plane in found]
    return [(name, _pixels(picture)) for name, picture in pictures]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.015, 0.1, 0.97, 0.885))
    axes.set_axis_off()
    axes.set_aspect("equal")
    return figure, axes


def _draw(axes: Axes, drawn: Ribbon, base: NDArray[np.float64]) -> None:
    """Faces and rims from back to front; what is far is pale."""
    half = LIGHT + np.array([0.0, 0.0, 1.0])
    light = np.clip(drawn.normals @ LIGHT, 0, 1)[:, None]
    glint = np.clip(drawn.normals @ (half / np.linalg.norm(half)), 0, 1)[:, None] ** 22
    faces = base[drawn.residue] * (0.5 + 0.5 * light) + 0.2 * glint
    side = drawn.rims[:, 1, :2] - drawn.rims[:, 0, :2]
    side = np.stack([-side[:, 1], side[:, 0]], axis=1) / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    side *= RIM / 2
    begin, end = drawn.rims[:, 0, :2], drawn.rims[:, 1, :2]
    rims = np.stack([begin - side, end - side, end + side, begin + side], axis=1)
    flat = np.concatenate([drawn.corners[..., :2], rims])
    tint = np.concatenate([faces, base[drawn.rim_residue] * 0.22])
    depth = np.concatenate([drawn.corners[..., 2].mean(axis=1), drawn.rims[..., 2].mean(axis=1) + LIFT])
    near, far = depth.max(), depth.min()
    fog = FOG * ((near - depth) / max(near - far, 12.0))[:, None]
    tint = np.clip(tint * (1 - fog) + GROUND * fog, 0, 1)
    order = np.argsort(depth, kind="stable")
    if len(drawn.gaps):
        axes.add_collection(LineCollection(list(drawn.gaps[..., :2]), colors="#9aa1ab", linestyles=":", linewidths=0.9))
    axes.add_collection(
        PolyCollection(list(flat[order]), facecolors=tint[order], edgecolors=tint[order], linewidths=0.25)
    )


def _frame(axes: Axes, drawn: Ribbon) -> None:
    """The picture fills its frame; a bar tells the scale."""
    corners = drawn.corners[..., :2].reshape(-1, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    ratio = SIZE[0] * 0.97 / (SIZE[1] * 0.885)
    height = max(high[1] - low[1], (high[0] - low[0]) / ratio, 12.0) * 1.06
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - height * ratio / 2, middle[0] + height * ratio / 2)
    axes.set_ylim(middle[1] - height / 2, middle[1] + height / 2)
    long = max(length for length in (5, 10, 20, 50, 100) if length < height * ratio / 4 or length == 5)
    figure = axes.figure
    width = 0.97 * long / (height * ratio)
    figure.add_artist(Line2D([0.03, 0.03 + width], [0.058, 0.058], color="#444a52", linewidth=1.4))
    figure.text(0.03, 0.018, f"{long} Å", fontsize=7, color="#444a52")


def _legend(figure: Figure, chain: Structure) -> None:
    """What the colours mean, in the lower right corner."""
    if chain.confidence is None:
        ramp = figure.add_axes((0.72, 0.05, 0.18, 0.022))
        ramp.imshow(np.linspace(0.06, 0.94, 256)[None], cmap="turbo", vmin=0, vmax=1, aspect="auto")
        ramp.set_axis_off()
        for x, text, side in ((0.71, "N", "right"), (0.91, "C", "left")):
            figure.text(x, 0.045, text, fontsize=8, ha=side, color="#444a52")
        return
    x = 0.36
    figure.text(x - 0.01, 0.045, "pLDDT", fontsize=7, ha="right", color="#444a52")
    for i, (least, color, word) in enumerate(PLDDT):
        label = f"{word} ≥ {least}" if least else f"{word} < {PLDDT[i - 1][0]}"
        figure.add_artist(Rectangle((x, 0.044), 0.016, 0.02, facecolor=color, edgecolor="none"))
        figure.text(x + 0.022, 0.045, label, fontsize=6.5, color="#444a52")
        x += 0.045 + 0.0095 * len(label)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return out.getvalue()


def _stretched(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.percentile(plane, (1, 99.8))
    return np.clip((plane - low) / max(high - low, 1.0), 0, 1)


def _pixels(picture: NDArray[np.float64]) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(out, "png")
    return out.getvalue()


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
