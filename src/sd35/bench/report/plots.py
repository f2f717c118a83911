"""Draw the plots of a report as SVG. Colours and fonts come from page.css.

Written by hand because no library gives as good a page: Leather and pygal have no error bars and no shaded spans,
pygal's SVG is four times as large and refers to scripts, and Matplotlib installs more than 100 MB. None of them follows
the page's dark and print colours. A plot is 480 px wide, so that its text stays readable on a phone.

All positions are in pixels from the upper left corner.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain, pairwise
from math import ceil, floor, log10
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 480, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 44  # margins around the axes, for labels
_TICKS = 5  # wanted on an axis
_MARGIN = 1.02  # the x axis ends 2 % beyond the largest value, so that its point is not cut off
_RANK_PX = 36  # height of a name and its bar in `ranks`


class Point(NamedTuple):
    """A point. `half_width` is half of the confidence interval of `y`. `tooltip` is shown under the mouse."""

    x: float
    y: float
    half_width: float = 0.0
    tooltip: str = ""


class Series(NamedTuple):
    """Points of one colour. `colour` is a number from 1 to 4, for the classes c1 to c4 of page.css."""

    name: str
    colour: int
    points: Sequence[Point]
    style: Literal["line", "dots", "crosses", "steps"] = "line"


class Band(NamedTuple):
    """A shaded range of the x axis. `name` is its tooltip."""

    start: float
    end: float
    name: str


class Mark(NamedTuple):
    """A dashed line across the plot at a value of one axis. `name` is its label."""

    value: float
    name: str
    axis: Literal["x", "y"] = "x"


class Scale:
    """Maps values from 0 to a maximum to pixels along one axis, from `low_px` to `high_px`.

    `is_rounded` extends the axis to a multiple of the distance between ticks.
    """

    def __init__(self, maximum: float, low_px: float, high_px: float, *, is_rounded: bool) -> None:
        maximum = maximum if maximum > 0 else 1.0
        self._step = _round_step(maximum)
        # Here and in `ticks`, 1e-9 absorbs rounding errors of the division.
        self._maximum = self._step * ceil(maximum / self._step - 1e-9) if is_rounded else maximum
        self._low_px, self._high_px = low_px, high_px

    def __call__(self, value: float) -> float:
        """Return the position of a value in pixels. A value outside the axis is placed at its end."""
        share = min(1.0, max(0.0, value / self._maximum))
        return round(self._low_px + share * (self._high_px - self._low_px), 1)

    @property
    def ticks(self) -> list[float]:
        """The values with a tick, from 0 to at most the maximum."""
        return [round(index * self._step, 10) for index in range(floor(self._maximum / self._step + 1e-9) + 1)]


def plot(
    x_label: str, y_label: str, series: Sequence[Series], bands: Sequence[Band] = (), marks: Sequence[Mark] = ()
) -> str:
    """Plot series over a common x axis. Both axes begin at 0."""
    points = [point for one_series in series for point in one_series.points]
    x_values = [point.x for point in points] + [band.end for band in bands]
    x_values += [mark.value for mark in marks if mark.axis == "x"]
    y_values = [point.y + point.half_width for point in points] + [mark.value for mark in marks if mark.axis == "y"]
    x = Scale(_MARGIN * max(x_values, default=1), _LEFT, WIDTH - _RIGHT, is_rounded=False)
    y = _y_scale(y_values)
    parts = [_draw_band(band, x, index) for index, band in enumerate(bands)]
    parts += _draw_axes(x, y, x_label, y_label)
    for one_series in series:
        parts += _draw_series(one_series, x, y)
    parts += [_draw_mark(mark, x, y) for mark in marks]
    return _svg(f"{y_label} over {x_label}", "".join(parts), HEIGHT)


def bars(x_label: str, y_label: str, heights: Sequence[tuple[str, float]]) -> str:
    """Draw one vertical bar for each pair of a name and a height."""
    y = _y_scale([height for _, height in heights])
    slot_px = (WIDTH - _LEFT - _RIGHT) / max(1, len(heights))
    parts = _draw_y_axis(y, y_label)
    for index, (name, height) in enumerate(heights):
        left, top = _LEFT + index * slot_px, y(height)
        parts.append(
            f'<rect class="fill c1" x="{left + 0.1 * slot_px:.1f}" y="{top}" width="{0.8 * slot_px:.1f}"'
            f' height="{HEIGHT - _BOTTOM - top:.1f}"><title>{escape(name)}: {height:g}</title></rect>'
        )
        parts.append(_draw_text((left + slot_px / 2, HEIGHT - _BOTTOM + 16), name))
    parts.append(_draw_x_label(x_label))
    return _svg(f"{y_label} by {x_label}", "".join(parts), HEIGHT)


def ranks(title: str, lengths: Sequence[tuple[str, float]]) -> str:
    """Draw one horizontal bar for each pair of a name and a length: the name above it, the length at its end."""
    longest = max((length for _, length in lengths), default=0.0) or 1.0
    parts = []
    for index, (name, length) in enumerate(lengths):
        top, width = 6 + index * _RANK_PX, length / longest * (WIDTH - 70)
        parts.append(_draw_text((0, top + 11), name, "start"))
        parts.append(f'<rect class="fill c1" x="0" y="{top + 16}" width="{max(width, 1):.1f}" height="10" rx="2"/>')
        parts.append(f'<text x="{width + 8:.1f}" y="{top + 26}">{length:.2f}</text>')
    return _svg(title, "".join(parts), 6 + len(lengths) * _RANK_PX)


def stack(pieces: Sequence[tuple[str, float]], unit: str) -> str:
    """Draw one horizontal bar of consecutive pieces: pairs of a name and a size in `unit`. Tooltips show them."""
    total = sum(size for _, size in pieces) or 1.0
    left = 1.0  # a margin of 1 px on each side
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
    """Return the scale of a y axis that is long enough for the values."""
    return Scale(max(values, default=1), HEIGHT - _BOTTOM, _TOP, is_rounded=True)


def _draw_series(series: Series, x: Scale, y: Scale) -> Iterable[str]:
    """Yield the SVG elements of a series: its line, and the interval and the symbol of each point."""
    colour = f"c{series.colour}"
    positions = [(x(point.x), y(point.y)) for point in series.points]
    if series.style == "line" and len(positions) > 1:
        yield f'<polyline class="line {colour}" points="{_joined(positions)}"/>'
    if series.style == "steps":  # a horizontal line from each point to the x of the next, then a vertical line
        corners = (((x1, y1), (x2, y1)) for (x1, y1), (x2, _) in pairwise(positions))
        path = [*chain.from_iterable(corners), *positions[-1:]]
        yield f'<polyline class="line {colour}" points="{_joined(path)}"/>'
        return
    for point, (x_px, y_px) in zip(series.points, positions, strict=True):
        tooltip = f"<title>{escape(point.tooltip)}</title>" if point.tooltip else ""
        if point.half_width:
            low_px, high_px = y(max(0.0, point.y - point.half_width)), y(point.y + point.half_width)
            # A vertical line with a short horizontal line at each end.
            yield f'<path class="interval {colour}" d="M{x_px} {low_px}V{high_px}m-4 0h8M{x_px - 4} {low_px}h8"/>'
        if series.style == "crosses":
            yield f'<path class="line {colour}" d="M{x_px - 3} {y_px - 3}l6 6m0-6l-6 6">{tooltip}</path>'
        elif point.tooltip or series.style == "dots":
            radius = 2.2 if series.style == "dots" else 4
            yield f'<circle class="fill {colour}" cx="{x_px}" cy="{y_px}" r="{radius}">{tooltip}</circle>'


def _draw_axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    """Return the SVG elements of both axes."""
    parts = _draw_y_axis(y, y_label)
    for tick in x.ticks:
        parts.append(f'<path class="axis" d="M{x(tick)} {HEIGHT - _BOTTOM}v4"/>')
        parts.append(_draw_text((x(tick), HEIGHT - _BOTTOM + 18), f"{tick:g}"))
    return [*parts, _draw_x_label(x_label)]


def _draw_y_axis(y: Scale, label: str) -> list[str]:
    """Return the SVG elements of the y axis: a horizontal line and a number for each tick, and the label."""
    parts = []
    for tick in y.ticks:
        parts.append(f'<path class="{"grid" if tick else "axis"}" d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}"/>')
        parts.append(_draw_text((_LEFT - 6, y(tick) + 4), f"{tick:g}", "end"))
    return [*parts, _draw_y_label(label)]


def _draw_band(band: Band, x: Scale, index: int) -> str:
    """Draw a band over the height of the plot. Every second band has another shade."""
    left = x(band.start)
    return (
        f'<rect class="band{" odd" if index % 2 else ""}" x="{left}" y="{_TOP}" width="{x(band.end) - left:.1f}"'
        f' height="{HEIGHT - _TOP - _BOTTOM}"><title>{escape(band.name)}</title></rect>'
    )


def _draw_mark(mark: Mark, x: Scale, y: Scale) -> str:
    """Draw a mark and its label. The label of a vertical line is on the side with more space."""
    if mark.axis == "y":
        y_px = y(mark.value)
        line = f'<path class="mark" d="M{_LEFT} {y_px}H{WIDTH - _RIGHT}"/>'
        return line + _draw_text((WIDTH - _RIGHT - 4, y_px - 5), mark.name, "end")
    x_px = x(mark.value)
    line = f'<path class="mark" d="M{x_px} {_TOP}V{HEIGHT - _BOTTOM}"/>'
    if x_px > WIDTH / 2:
        return line + _draw_text((x_px - 5, _TOP + 12), mark.name, "end")
    return line + _draw_text((x_px + 5, _TOP + 12), mark.name, "start")


def _draw_text(position: tuple[float, float], text: str, anchor: str = "middle") -> str:
    """Draw a text at a position (x, y). `anchor` says which part of it is there: "start", "middle" or "end"."""
    x, y = position
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_x_label(text: str) -> str:
    middle_px = (_LEFT + WIDTH - _RIGHT) / 2
    return f'<text x="{middle_px}" y="{HEIGHT - 6}" text-anchor="middle">{escape(text)}</text>'


def _draw_y_label(text: str) -> str:
    middle_px = (_TOP + HEIGHT - _BOTTOM) / 2
    rotation = f'transform="translate(12 {middle_px}) rotate(-90)"'
    return f'<text {rotation} text-anchor="middle">{escape(text)}</text>'


def _svg(title: str, content: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _round_step(maximum: float) -> float:
    """Return the distance between ticks: 1, 2 or 5 times a power of ten, for about five ticks up to the maximum."""
    rough = maximum / _TICKS
    power = 10.0 ** floor(log10(rough))
    # 0.999 absorbs rounding errors, which could otherwise choose the next larger factor.
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
