"""What `benchmarks.gpu_acceptance` found, as a table in Markdown and as a drawing in SVG."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean, median
from typing import NamedTuple

WIDTH, TOP, LINE, BAR = 960, 70, 30, 16  # of the drawing, in pixels
LABEL, PANEL, GAP = 130, 260, 14
_WORDS = 118  # of a reason, in letters, that a line of the drawing holds


@dataclass(frozen=True)
class Row:
    """A candidate; where `trouble` says why it did not run, nothing else. `psnr_db`: not of the reference."""

    name: str
    trouble: str = ""
    opened_s: float = 0.0
    steps_s: Sequence[float] = ()
    images_s: Sequence[float] = ()
    peak_bytes: int = 0
    psnr_db: Sequence[float] = ()
    is_reference: bool = False


class Panel(NamedTuple):
    """A quantity: its title, and each row's value and text, None where it has none."""

    title: str
    colour: str
    bars: list[tuple[float, str] | None]


def markdown(title: str, rows: Sequence[Row]) -> str:
    """One line for each candidate, then why some did not run."""
    head = ("Candidate", "Step, ms", "Image, s", "Peak memory, GB", "PSNR against BF16 eager, dB", "Opened in, s")
    lines = [title, "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    troubles = [f"- {row.name}: {row.trouble}" for row in rows if row.trouble]
    return "\n".join([*lines, *(["", *troubles] if troubles else []), ""])


def svg(title: str, rows: Sequence[Row]) -> str:
    """A line for each candidate, a bar for each quantity."""
    height = TOP + LINE * len(rows) + 10
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, row in enumerate(rows):
        y = _middle(number)
        parts.append(f'<text x="10" y="{y + 4}">{escape(row.name)}</text>')
        if row.trouble:
            words = f"not run: {row.trouble}"
            words = words if len(words) <= _WORDS else words[: _WORDS - 1] + "…"
            parts.append(f'<text x="{LABEL}" y="{y + 4}" fill="#777" font-style="italic">{escape(words)}</text>')
    for index, panel in enumerate(_panels(rows)):
        parts += _drawn(panel, LABEL + index * (PANEL + GAP))
    return "\n".join([*parts, "</svg>", ""])


def _cells(row: Row) -> Iterator[str]:
    yield row.name
    if row.trouble:
        yield from ("not run", "", "", "", "")
        return
    yield f"{_step_ms(row):.1f}"
    yield f"{median(row.images_s):.2f}"
    yield f"{_peak_gb(row):.2f}"
    yield _psnr_text(row)
    yield f"{row.opened_s:.1f}"


def _psnr_text(row: Row) -> str:
    if row.is_reference:
        return "itself"
    return f"{mean(row.psnr_db):.1f} (least {min(row.psnr_db):.1f})" if row.psnr_db else "nothing to compare with"


def _panels(rows: Sequence[Row]) -> Iterator[Panel]:
    def panel(title: str, colour: str, value: Callable[[Row], float], text: Callable[[Row], str]) -> Panel:
        return Panel(title, colour, [None if row.trouble else (value(row), text(row)) for row in rows])

    yield panel("a step, ms (less is better)", "#4c72b0", _step_ms, lambda r: f"{_step_ms(r):.1f}")
    yield panel("peak memory, GB (less is better)", "#dd8452", _peak_gb, lambda r: f"{_peak_gb(r):.2f}")
    yield panel("PSNR against BF16, dB (more is better)", "#55a868", _psnr_db, _psnr_text)


def _step_ms(row: Row) -> float:
    return 1000 * median(row.steps_s)


def _peak_gb(row: Row) -> float:
    return row.peak_bytes / 1e9


def _psnr_db(row: Row) -> float:
    return mean(row.psnr_db) if row.psnr_db else 0.0


def _drawn(panel: Panel, left: int) -> Iterator[str]:
    room = PANEL - 50 if "PSNR" not in panel.title else PANEL - 110  # the rest is for the numbers
    most = max([bar[0] for bar in panel.bars if bar] or [0.0]) or 1.0
    yield f'<text x="{left}" y="{TOP - 20}" fill="#555">{panel.title}</text>'
    for number, bar in enumerate(panel.bars):
        if bar:
            value, text = bar
            long, y = room * value / most, _middle(number)
            size = f'x="{left}" y="{y - BAR // 2}" width="{long:.1f}" height="{BAR}"'
            yield f'<rect {size} fill="{panel.colour}"/>'
            yield f'<text x="{left + long + 5:.1f}" y="{y + 4}">{escape(text)}</text>'


def _middle(number: int) -> int:
    return TOP + LINE * number + LINE // 2
