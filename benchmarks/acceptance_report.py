"""The results of `benchmarks.gpu_acceptance` as a Markdown table and as a page in the style of `sd35 bench`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean, median

from sd35.bench.report.charts import figure
from sd35.bench.report.page import definitions, html_page, table
from sd35.bench.report.plots import ranks

_HEAD = ("Candidate", "Step, ms", "Image, s", "Peak memory, GB", "PSNR against BF16 eager, dB", "Opened in, s")


@dataclass(frozen=True)
class Row:
    """The results of a candidate, or the `error` that prevented its run.

    Attributes:
        name: Name of the candidate.
        error: Why the candidate did not run. Empty if it ran.
        opened_s: Seconds to open the backend.
        steps_s: Seconds of each step of all images.
        images_s: Seconds of each image, from its text to its pixels.
        peak_bytes: Peak memory of the device; on a CPU, of the process.
        psnr_db: Similarity of each image to the same image of the reference. Empty for the reference.
        is_reference: Whether this is the candidate with which the others are compared.
    """

    name: str
    error: str = ""
    opened_s: float = 0.0
    steps_s: Sequence[float] = ()
    images_s: Sequence[float] = ()
    peak_bytes: int = 0
    psnr_db: Sequence[float] = ()
    is_reference: bool = False


def markdown(title: str, rows: Sequence[Row]) -> str:
    """Return a Markdown table with one line for each candidate, then a list of the errors."""
    lines = [title, "", f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    errors = [f"- {name}: {error}" for name, error in _errors(rows)]
    return "\n".join([*lines, *(["", *errors] if errors else []), ""])


def acceptance_page(title: str, rows: Sequence[Row]) -> str:
    """Return an HTML page with a bar chart of each quantity, the table, and the errors."""
    charts = [
        _chart("Step, ms", "Less is better.", rows, _step_ms),
        _chart("Peak memory, GB", "Less is better.", rows, _peak_gb),
        _chart("PSNR against BF16, dB", "More is better.", [row for row in rows if row.psnr_db], _psnr_db),
    ]
    errors = _errors(rows)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="plots">{"".join(charts)}</div>',
        table(_HEAD, [list(_cells(row)) for row in rows]),
        f"<h2>Not run</h2>{definitions(errors)}" if errors else "",
    ]
    return html_page(title, "\n".join(parts))


def _chart(title: str, sentence: str, rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    """Return a bar chart with the `value` of each candidate that ran, and a sentence below its title."""
    return figure(title, sentence, ranks(title, [(row.name, value(row)) for row in rows if not row.error]))


def _errors(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the name and the error of each candidate that did not run."""
    return [(row.name, row.error) for row in rows if row.error]


def _cells(row: Row) -> Iterator[str]:
    """Yield the texts of a row in the order of `_HEAD`."""
    yield row.name
    if row.error:
        yield from ("not run", "", "", "", "")
        return
    yield f"{_step_ms(row):.1f}"
    yield f"{median(row.images_s):.2f}"
    yield f"{_peak_gb(row):.2f}"
    yield _psnr_text(row)
    yield f"{row.opened_s:.1f}"


def _psnr_text(row: Row) -> str:
    """Return the mean and the worst PSNR of a candidate, or why it has none."""
    if row.is_reference:
        return "reference"
    return f"{mean(row.psnr_db):.1f} (worst {min(row.psnr_db):.1f})" if row.psnr_db else "no reference"


def _step_ms(row: Row) -> float:
    return 1000 * median(row.steps_s)


def _peak_gb(row: Row) -> float:
    return row.peak_bytes / 1e9


def _psnr_db(row: Row) -> float:
    return mean(row.psnr_db)
