"""Plots as SVG, of the few kinds a report needs. Colours and fonts are the page's: see page.css.

A plot is 480 px wide, so that its letters can be read on a phone, where it is scaled to the screen's width.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 480, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 44
_TICKS, _MARGIN = 5, 1.02
_RANK_PX = 36


class Point(NamedTuple):
    """A point, how far its interval reaches to each side, and what is told where one points at it."""

    x: float
    y: float
    reach: float = 0.0
    told: str = ""


class Series(NamedTuple):
    """Points of one colour, 1 to 4, which is the legend's too."""

    name: str
    colour: int
    points: Sequence[Point]
    form: Literal["line", "dots", "crosses", "steps"] = "line"


class Band(NamedTuple):
    """A stretch of the x axis that is shaded, and its name, told where one points at it."""

    from_x: float
    to_x: float
    name: str


class Mark(NamedTuple):
    """A dashed line across, at an x or at a y, with its name beside."""

    at: float
    name: str
    axis: Literal["x", "y"] = "x"


class Scale:
    """From values to pixels along one axis; from 0 to the most, or to the round number above it."""

    def __init__(self, most: float, low_px: float, high_px: float, *, is_rounded: bool) -> None:
        most = most if most > 0 else 1.0
        self._step = _round_step(most)
        self._most = self._step * ceil(most / self._step - 1e-9) if is_rounded else most
        self._low_px, self._high_px = low_px, high_px

    def __call__(self, value: float) -> float:
        """Where it lies, in px."""
        share = min(1.0, max(0.0, value / self._most))
        return round(self._low_px + share * (self._high_px - self._low_px), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values, from 0 to the most."""
        return [round(index * self._step, 10) for index in range(floor(self._most / self._step + 1e-9) + 1)]


def plot(
    x_label: str, y_label: str, series: Sequence[Series], bands: Sequence[Band] = (), marks: Sequence[Mark] = ()
) -> str:
    """Series over one x axis, with axes that begin at 0."""
    points = [point for each in series for point in each.points]
    at = {axis: [mark.at for mark in marks if mark.axis == axis] for axis in ("x", "y")}
    x_most = max([*(point.x for point in points), *(band.to_x for band in bands), *at["x"]], default=1)
    x = Scale(_MARGIN * x_most, _LEFT, WIDTH - _RIGHT, is_rounded=False)
    y = _y_scale([*(point.y + point.reach for point in points), *at["y"]])
    parts = [
        *(_band(band, x, number) for number, band in enumerate(bands)),
        *_axes(x, y, x_label, y_label),
        *(part for each in series for part in _series(each, x, y)),
        *(_mark(mark, x, y) for mark in marks),
    ]
    return _svg(f"{y_label} over {x_label}", "".join(parts), HEIGHT)


def bars(x_label: str, y_label: str, heights: Sequence[tuple[str, float]]) -> str:
    """One bar for each name."""
    y = _y_scale([height for _, height in heights])
    room = (WIDTH - _LEFT - _RIGHT) / max(1, len(heights))
    parts = _y_axis(y, y_label)
    for index, (name, height) in enumerate(heights):
        left, top = _LEFT + index * room, y(height)
        parts.append(
            f'<rect class="fill c1" x="{left + 0.1 * room:.1f}" y="{top}" width="{0.8 * room:.1f}"'
            f' height="{HEIGHT - _BOTTOM - top:.1f}"><title>{escape(name)}: {height:g}</title></rect>'
        )
        parts.append(_text((left + room / 2, HEIGHT - _BOTTOM + 16), name))
    parts.append(_x_label(x_label))
    return _svg(f"{y_label} by {x_label}", "".join(parts), HEIGHT)


def ranks(what: str, lengths: Sequence[tuple[str, float]]) -> str:
    """One bar across for each name, its name above it and its value at its end."""
    most = max((length for _, length in lengths), default=0.0) or 1.0
    parts = []
    for index, (name, length) in enumerate(lengths):
        top, width = 6 + index * _RANK_PX, length / most * (WIDTH - 70)
        parts.append(_text((0, top + 11), name, "start"))
        parts.append(f'<rect class="fill c1" x="0" y="{top + 16}" width="{max(width, 1):.1f}" height="10" rx="2"/>')
        parts.append(f'<text x="{width + 8:.1f}" y="{top + 26}">{length:.2f}</text>')
    return _svg(what, "".join(parts), 6 + len(lengths) * _RANK_PX)


def stack(pieces: Sequence[tuple[str, float]], unit: str) -> str:
    """One bar across, of pieces one after the other; those too narrow for their names have them in the legend."""
    total = sum(size for _, size in pieces) or 1.0
    left = 1.0
    parts = []
    for index, (name, size) in enumerate(pieces):
        width = size / total * (WIDTH - 2)
        parts.append(
            f'<rect class="fill c{index + 1}" x="{left:.1f}" y="4"'
            f' width="{max(width - 1, 0.5):.1f}" height="34"><title>{escape(name)}: {size:.2f} {unit}</title></rect>'
        )
        left += width
    return _svg(", ".join(f"{name} {size:.2f} {unit}" for name, size in pieces), "".join(parts), 42)


def _y_scale(values: Sequence[float]) -> Scale:
    return Scale(max(values, default=1), HEIGHT - _BOTTOM, _TOP, is_rounded=True)


def _series(series: Series, x: Scale, y: Scale) -> Iterable[str]:
    colour = f"c{series.colour}"
    at = [(x(point.x), y(point.y)) for point in series.points]
    if series.form == "line" and len(at) > 1:
        yield f'<polyline class="line {colour}" points="{_joined(at)}"/>'
    if series.form == "steps":
        steps = [(x(after.x), y(before.y)) for before, after in pairwise(series.points)]
        yield f'<polyline class="line {colour}" points="{_joined([*_interleaved(at, steps)])}"/>'
        return
    for point, (x_px, y_px) in zip(series.points, at, strict=True):
        told = f"<title>{escape(point.told)}</title>" if point.told else ""
        if point.reach:
            low_px, high_px = y(max(0.0, point.y - point.reach)), y(point.y + point.reach)
            yield f'<path class="reach {colour}" d="M{x_px} {low_px}V{high_px}m-4 0h8M{x_px - 4} {low_px}h8"/>'
        if series.form == "crosses":
            yield f'<path class="line {colour}" d="M{x_px - 3} {y_px - 3}l6 6m0-6l-6 6">{told}</path>'
        elif point.told or series.form == "dots":
            radius = 2.2 if series.form == "dots" else 4
            yield f'<circle class="fill {colour}" cx="{x_px}" cy="{y_px}" r="{radius}">{told}</circle>'


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    parts = _y_axis(y, y_label)
    for tick in x.ticks:
        parts.append(f'<path class="axis" d="M{x(tick)} {HEIGHT - _BOTTOM}v4"/>')
        parts.append(_text((x(tick), HEIGHT - _BOTTOM + 18), f"{tick:g}"))
    return [*parts, _x_label(x_label)]


def _y_axis(y: Scale, label: str) -> list[str]:
    parts = []
    for tick in y.ticks:
        parts.append(f'<path class="{"grid" if tick else "axis"}" d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}"/>')
        parts.append(_text((_LEFT - 6, y(tick) + 4), f"{tick:g}", "end"))
    return [*parts, _y_label(label)]


def _band(band: Band, x: Scale, number: int) -> str:
    left = x(band.from_x)
    return (
        f'<rect class="band{" odd" if number % 2 else ""}" x="{left}" y="{_TOP}" width="{x(band.to_x) - left:.1f}"'
        f' height="{HEIGHT - _TOP - _BOTTOM}"><title>{escape(band.name)}</title></rect>'
    )


def _mark(mark: Mark, x: Scale, y: Scale) -> str:
    if mark.axis == "y":
        line = f'<path class="mark" d="M{_LEFT} {y(mark.at)}H{WIDTH - _RIGHT}"/>'
        return line + _text((WIDTH - _RIGHT - 4, y(mark.at) - 5), mark.name, "end")
    line = f'<path class="mark" d="M{x(mark.at)} {_TOP}V{HEIGHT - _BOTTOM}"/>'
    is_left = x(mark.at) > WIDTH / 2
    return line + _text((x(mark.at) + (-5 if is_left else 5), _TOP + 12), mark.name, "end" if is_left else "start")


def _text(at: tuple[float, float], words: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _x_label(words: str) -> str:
    middle_px = (_LEFT + WIDTH - _RIGHT) / 2
    return f'<text x="{middle_px}" y="{HEIGHT - 6}" text-anchor="middle">{escape(words)}</text>'


def _y_label(words: str) -> str:
    middle_px = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f'transform="translate(12 {middle_px}) rotate(-90)"'
    return f'<text {turned} text-anchor="middle">{escape(words)}</text>'


def _svg(title: str, content: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _interleaved(
    points: Sequence[tuple[float, float]], steps: Sequence[tuple[float, float]]
) -> Iterable[tuple[float, float]]:
    for point, step in zip(points, steps, strict=False):
        yield point
        yield step
    yield from points[-1:]


def _round_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that about five of them reach the most."""
    rough = most / _TICKS
    power = 10.0 ** floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
