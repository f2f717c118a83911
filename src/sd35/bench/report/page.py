"""The report as one HTML page for screens, phones and print. It needs no scripts and no other files."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sd35.bench.load.workload import Workload
from sd35.bench.quality.comparison import Quality
from sd35.bench.report.charts import matrix_charts, result_charts
from sd35.bench.report.formatting import (
    CLASS_COLUMNS,
    cell_figures,
    class_rows,
    counted,
    describe_load,
    describe_machine,
    describe_matrix,
    describe_models,
    describe_quality,
    describe_server,
    describe_software,
    facts,
    format_bytes,
    format_estimate,
    format_psnr,
    skipped_cells,
)
from sd35.bench.results import Matrix, Result

_CSS = Path(__file__).with_name("page.css")


def report_page(result: Result | Matrix) -> str:
    """Render the report of a run or of a matrix."""
    if isinstance(result, Result):
        return html_page(f"sd35 bench, {result.created_at}", _render_result(result))
    return html_page(f"sd35 bench --matrix, {result.created_at}", _render_matrix(result))


def html_page(title: str, content: str) -> str:
    """Wrap HTML content into a page with the report's style."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_CSS.read_text(encoding='utf-8')}</style>\n"
        f"<body>\n{content}\n</body>\n</html>\n"
    )


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table of text cells. It scrolls sideways if it is wider than the screen."""
    return _render_scrolling_table(head, "".join(f"<tr>{_render_cells(row)}</tr>" for row in rows))


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Render pairs of a name and a description as a definition list. Without pairs, returns an empty string."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f"<dl>{items}</dl>" if items else ""


def _render_result(result: Result) -> str:
    """Render all parts of the report of a run."""
    parts = [
        f"<h1>{escape(describe_models(result))}</h1>",
        f'<p class="quiet">{escape(describe_server(result))}; sd35 bench, {escape(result.created_at)}</p>',
        _render_background_load(result),
        _render_main_figures(result),
        "<h2>Images</h2>" if result.plan.quality_images else "",
        _render_images(result.quality),
        "<h2>Plots</h2>",
        f'<div class="plots">{"".join(result_charts(result))}</div>',
        "<h2>Loads and request classes</h2>",
        _render_loads(result),
        "<h2>Other figures and the machine</h2>",
        definitions(facts(result)),
        _render_workload_and_settings(result.workload, result.server.settings),
    ]
    return "\n".join(part for part in parts if part)


def _render_matrix(matrix: Matrix) -> str:
    """Render all parts of the report of a matrix."""
    ran = [cell for cell in matrix.cells if not cell.skip_reason]
    figures = [cell_figures(matrix, cell) for cell in ran]
    rows = [[cell.name, *values.values()] for cell, values in zip(ran, figures, strict=True)]
    skipped = [(names, reason) for reason, names in skipped_cells(matrix)]
    parts = [
        f"<h1>Backends of {escape(', '.join(matrix.checkpoints))} on one machine</h1>",
        f'<p class="quiet">{escape(describe_matrix(matrix))}; sd35 bench --matrix, {escape(matrix.created_at)}</p>',
        _render_background_load(matrix),
        f'<div class="plots">{"".join(matrix_charts(matrix))}</div>' if ran else "",
        "<h2>Figures</h2>",
        table(("backend/precision, rows", *figures[0]), rows) if ran else "<p>No combination ran.</p>",
        "<h2>Not run</h2>" if skipped else "",
        f'<div class="long">{definitions(skipped)}</div>',
        "<h2>Machine</h2>",
        definitions([("machine", describe_machine(matrix.machine)), ("software", describe_software(matrix.machine))]),
        _render_workload_and_settings(matrix.workload, matrix.settings),
    ]
    return "\n".join(part for part in parts if part)


def _render_background_load(result: Result | Matrix) -> str:
    busy = " busy" if result.background.is_busy else ""
    return f'<p class="banner{busy}">{escape(result.background.description)}</p>'


def _render_main_figures(result: Result) -> str:
    """Render the main figures of a run as tiles."""
    closed, cold, quality = result.closed, result.cold_start, result.quality
    tiles = [
        (format_estimate(closed.images_per_s), "images a second", closed.name),
        (f"{format_estimate(closed.all.p95_s)} s", "95th percentile of latency", closed.name),
        (format_bytes(result.memory.peak_bytes), "peak memory", "of the server's processes"),
        ("-" if cold.ready_s is None else f"{cold.ready_s:.2f} s", "from start to ready", "of the server's process"),
    ]
    if quality and not quality.skip_reason:
        tiles.append((format_psnr(quality, " dB"), "quality: PSNR of its images", f"against {quality.reference}"))
    return f'<div class="tiles">{"".join(_render_tile(*tile) for tile in tiles)}</div>'


def _render_tile(value: str, name: str, detail: str) -> str:
    """Render a tile. Everything after the first space of the value, such as a unit, is in small print."""
    number, space, unit = escape(value).partition(" ")
    labels = f"<span>{escape(name)}</span><span>{escape(detail)}</span>"
    return f'<div class="tile"><b>{number}{space}<small>{unit}</small></b>{labels}</div>'


def _render_images(quality: Quality | None) -> str:
    """Render the comparison of images: a sentence, and the pairs of thumbnails. Empty without a comparison."""
    if quality is None:
        return ""
    pairs = "".join(
        f'<figure><div><span><img alt="" src="data:image/webp;base64,{pair.image}">the server</span>'
        f'<span><img alt="" src="data:image/webp;base64,{pair.reference_image}">the reference</span></div>'
        f"<figcaption>{escape(pair.prompt)}</figcaption></figure>"
        for pair in quality.examples
    )
    text = describe_quality(quality)
    return f'<p>{escape(text[0].upper() + text[1:])}.</p><div class="images">{pairs}</div>'


def _render_loads(result: Result) -> str:
    """Render a table of all loads. Each has a heading, a row for each class, and a row for each kind of error."""
    rows = []
    for load in result.loads:
        rows.append(_render_wide_row("head", describe_load(load, result.plan)))
        rows += [f'<tr class="class">{_render_cells(row)}</tr>' for row in class_rows(load)]
        for message, count in load.errors.items():
            rows.append(_render_wide_row("error", f"{counted(count, 'time')}: {message}"))
    return _render_scrolling_table(("", *CLASS_COLUMNS), "".join(rows))


def _render_wide_row(style: str, text: str) -> str:
    """Render a row of the table of loads with one cell over all its columns: the class, then `CLASS_COLUMNS`."""
    return f'<tr class="{style}"><td colspan="{1 + len(CLASS_COLUMNS)}"><div>{escape(text)}</div></td></tr>'


def _render_cells(row: Iterable[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)


def _render_scrolling_table(head: Iterable[str], body: str) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _render_workload_and_settings(workload: Workload, settings: dict[str, str] | None) -> str:
    """Render a workload as JSON, and the settings of the server if they are known."""
    content = json.dumps(workload.model_dump(exclude_defaults=True), indent=1)
    parts = [f'<h2>Workload</h2><div class="wide"><pre>{escape(content)}</pre></div>']
    if settings:
        lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
        parts.append(f'<h2>Settings of the server</h2><div class="wide"><pre>{escape(lines)}</pre></div>')
    return "".join(parts)
