"""Charts as SVG text: no plotting library, no identifiers, and colours from the page's variables, for light and dark.

A chart is drawn 360 units wide, which is a phone's width: a page places several side by side on a wide screen, and its
text stays legible on a narrow one. Equal input gives equal text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 18, 26  # margins, in the same units
POINTS = 400  # a longer line is drawn as means of this many stretches

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line or row of dots. color: a CSS variable's name. style: `line`, `faint` (a thin, pale line) or `dots`."""

    label: str
    points: Sequence[Point]
    color: str
    style: str = "line"


@dataclass(frozen=True)
class Scatter:
    """One class of points. hollow: bool per point, drawn as a ring (what was trained on, beside what was held out)."""

    label: str
    points: NDArray[np.floating]
    color: str
    titles: Sequence[str]
    hollow: Sequence[bool]


def chart(
    title: str, series: Sequence[Series], marks: Sequence[tuple[float, str]] = (), x: str = "step", zero: bool = False
) -> str:
    """Lines over a common x axis. marks: vertical dashed lines, (x, label). zero: the y axis begins at 0.

    Values that are not finite are left out.

    Returns a sentence instead of a chart where no series has a point.
    """
    drawn = [(one, thin([p for p in one.points if math.isfinite(p[0]) and math.isfinite(p[1])])) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    if not drawn:
        return f'<p class="none">{escape(title)}: nothing was logged.</p>'
    xs = [p[0] for _, points in drawn for p in points] + [at for at, _ in marks]
    ys = [p[1] for _, points in drawn for p in points] + [0.0] * zero
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5, whole=True), ticks(min(ys), max(ys), 4)
    place = _Frame((min(xs), max(xs)), (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))))
    parts = [_grid(place, x_ticks, y_ticks, x)]
    for at, label in marks:
        px = place.x(at)
        side = "end" if px > WIDTH * 0.6 else "start"
        shift = -4 if side == "end" else 4
        parts.append(f'<line class="mark" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="mark" x="{px + shift:.1f}" y="{TOP - 4}" text-anchor="{side}">{escape(label)}</text>'
        )
    parts += [_stroke(place, one, points) for one, points in drawn]
    return _svg(title, HEIGHT, parts)


def scatter(title: str, classes: Sequence[Scatter], links: Sequence[tuple[Point, Point]] = ()) -> str:
    """Points on a square without axes (t-SNE's have no meaning), thin `links` underneath."""
    every = np.concatenate([one.points for one in classes]).astype(float)
    low, high = every.min(0), every.max(0)
    scale = (WIDTH - 24) / max(float((high - low).max()), 1e-9)
    shift = (WIDTH - (high - low) * scale) / 2

    def at(point: Point | NDArray[np.floating]) -> tuple[float, float]:
        return tuple(((np.asarray(point, float) - low) * scale + shift).tolist())

    parts = []
    for start, stop in links:
        (x1, y1), (x2, y2) = at(start), at(stop)
        parts.append(f'<line class="link" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for one in classes:
        for point, name, hollow in zip(one.points, one.titles, one.hollow, strict=True):
            x, y = at(point)
            style = f'class="ring" stroke="var({one.color})"' if hollow else f'class="dot" fill="var({one.color})"'
            parts.append(f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="3.4"><title>{escape(name)}</title></circle>')
    return _svg(title, WIDTH, parts)


def bar(share: float, color: str, mark: float | None = None, label: str = "") -> str:
    """A horizontal bar of `share` (0..1) with an optional tick at `mark`: inline, for a table's cell."""
    tick = "" if mark is None else f'<i style="left:{100 * min(mark, 1):.2f}%"></i>'
    fill = f'<b style="width:{100 * min(share, 1):.2f}%;background:var({color})"></b>'
    return f'<span class="bar" role="img" aria-label="{escape(label)}">{fill}{tick}</span>'


def thin(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points: means of equal stretches, so a long run stays a small page."""
    if len(points) <= POINTS:
        return list(points)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(np.asarray(points), POINTS)]


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round values covering low..high: steps of 1, 2 or 5 times a power of ten (whole: no fractions)."""
    span = high - low or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """Data to drawing units."""

    x_range: Point
    y_range: Point

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)


def _grid(place: _Frame, x_ticks: list[float], y_ticks: list[float], x: str) -> str:
    parts = []
    for value in y_ticks:
        y = place.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    inside = [value for value in x_ticks if place.x_range[0] <= value <= place.x_range[1]]
    for value in inside:
        label = f"{x} {number(value)}" if value == inside[-1] else number(value)
        anchor = "end" if value == inside[-1] else "middle"
        position = min(place.x(value) + (12 if value == inside[-1] else 0), WIDTH - RIGHT)
        parts.append(f'<text x="{position:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(label)}</text>')
    return "".join(parts)


def _stroke(place: _Frame, one: Series, points: list[Point]) -> str:
    spots = [(place.x(x), place.y(y)) for x, y in points]
    out = ""
    if one.style == "dots" or len(spots) == 1:
        out = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" fill="var({one.color})"/>' for x, y in spots)
    if len(spots) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        kind = "faint" if one.style == "faint" else "line"
        out = f'<polyline class="{kind}" stroke="var({one.color})" points="{line}"/>' + out
    return out


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def number(value: float) -> str:
    """Short and readable: 0.25, 3.1, 1,240, 35k, 2.1M."""
    size = abs(value)
    if size >= 999_500:
        return f"{value / 1e6:.3g}M"
    if size >= 10_000:
        return f"{value / 1e3:.3g}k"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if size < 1 else f"{value:.3g}"
