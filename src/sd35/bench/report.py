"""A report as one HTML page that needs nothing else: no script, no file, no address. It prints, and fits a phone."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sd35.bench.charts import charts, matrix_charts
from sd35.bench.formatting import (
    bytes_in_words,
    facts,
    figure,
    load_in_words,
    machine_in_words,
    matrix_figures,
    matrix_in_words,
    models_in_words,
    not_run,
    quality_in_words,
    served_in_words,
    software_in_words,
)
from sd35.bench.quality import Quality
from sd35.bench.results import Matrix, OfKind, Result
from sd35.bench.workload import Workload

_CSS = Path(__file__).with_name("report.css")


def page(found: Result | Matrix) -> str:
    """The page of a run, or of a matrix."""
    content = _of_result(found) if isinstance(found, Result) else _of_matrix(found)
    title = "sd35 bench" if isinstance(found, Result) else "sd35 bench --matrix"
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}, {escape(found.made_at)}</title>\n<style>\n{_CSS.read_text(encoding='utf-8')}</style>\n"
        f"<body>\n{content}\n</body>\n</html>\n"
    )


def _of_result(result: Result) -> str:
    parts = [
        f"<h1>{escape(models_in_words(result))}</h1>",
        f'<p class="quiet">{escape(served_in_words(result))}; sd35 bench, {escape(result.made_at)}</p>',
        _banner(result),
        _tiles(result),
        "<h2>Images</h2>" if result.plan.judged else "",
        _images(result.quality),
        "<h2>Plots</h2>",
        f'<div class="plots">{"".join(charts(result))}</div>',
        "<h2>Every load, every class</h2>",
        _loads(result),
        "<h2>What was measured, and on what</h2>",
        _list(facts(result)),
        _settings(result.workload, result.served.settings),
    ]
    return "\n".join(part for part in parts if part)


def _of_matrix(found: Matrix) -> str:
    ran = [cell for cell in found.cells if not cell.why_not]
    figures = [matrix_figures(found, cell) for cell in ran]
    rows = [[cell.name, *of_cell.values()] for cell, of_cell in zip(ran, figures, strict=True)]
    missing = [(why_not, names) for why_not, names in not_run(found)]
    parts = [
        f"<h1>Backends of {escape(', '.join(found.checkpoints))} on one machine</h1>",
        f'<p class="quiet">{escape(matrix_in_words(found))}; sd35 bench --matrix, {escape(found.made_at)}</p>',
        _banner(found),
        f'<div class="plots">{"".join(matrix_charts(found))}</div>' if ran else "",
        "<h2>Figures</h2>",
        _table(("backend/precision, rows", *figures[0]), rows) if ran else "<p>Nothing ran.</p>",
        "<h2>Not run</h2>" if missing else "",
        f'<div class="long">{_list([(names, why_not) for why_not, names in missing])}</div>',
        "<h2>On what</h2>",
        _list([("machine", machine_in_words(found.machine)), ("software", software_in_words(found.machine))]),
        _settings(found.workload, found.settings),
    ]
    return "\n".join(part for part in parts if part)


def _banner(found: Result | Matrix) -> str:
    return f'<p class="banner{" busy" if found.busy.is_busy else ""}">{escape(found.busy.words)}</p>'


def _tiles(result: Result) -> str:
    closed, cold = result.closed, result.cold_start
    quality = result.quality
    tiles = [
        (figure(closed.images_per_s), "images a second", closed.name),
        (f"{figure(closed.all.p95_s)} s", "95th percentile of latency", closed.name),
        (bytes_in_words(result.memory.peak_bytes), "memory at the most", "the server's processes"),
        ("-" if cold.ready_s is None else f"{cold.ready_s:.2f} s", "from start to ready", "of the server's process"),
    ]
    if quality and not quality.why_not:
        psnr = "equal" if quality.psnr_db is None else f"{quality.psnr_db:.1f} dB"
        tiles.append((psnr, "quality: PSNR of its images", f"against {quality.reference}"))
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in tiles)}</div>'


def _tile(value: str, what: str, of: str) -> str:
    number, space, rest = escape(value).partition(" ")
    told = f"<span>{escape(what)}</span><span>{escape(of)}</span>"
    return f'<div class="tile"><b>{number}{space}<small>{rest}</small></b>{told}</div>'


def _images(quality: Quality | None) -> str:
    if quality is None:
        return ""
    shown = "".join(
        f'<figure><div><span><img alt="" src="data:image/webp;base64,{each.image}">the server</span>'
        f'<span><img alt="" src="data:image/webp;base64,{each.expected}">the reference</span></div>'
        f"<figcaption>{escape(each.prompt)}</figcaption></figure>"
        for each in quality.shown
    )
    words = quality_in_words(quality)
    return f'<p>{escape(words[0].upper() + words[1:])}.</p><div class="images">{shown}</div>'


def _loads(result: Result) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "p50, s", "p95, s", "p99, s", "made", "refused", "failed"))
    body = []
    for part in result.parts:
        words = escape(load_in_words(part, result.plan))
        body.append(f'<tr class="head"><td colspan="7"><div>{words}</div></td></tr>')
        body += [_kind(kind) for kind in (*(part.kinds if len(part.kinds) > 1 else ()), part.all)]
        body += [
            f'<tr class="trouble"><td colspan="7"><div>{times} times: {escape(said)}</div></td></tr>'
            for said, times in part.trouble.items()
        ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _kind(kind: OfKind) -> str:
    cells = [*map(figure, (kind.p50_s, kind.p95_s, kind.p99_s)), *map(str, (kind.made, kind.refused, kind.failed))]
    return f'<tr class="kind"><td>{escape(kind.name)}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in pairs)
    return f"<dl>{items}</dl>" if items else ""


def _settings(workload: Workload, settings: dict[str, str] | None) -> str:
    asked = json.dumps(workload.model_dump(exclude_defaults=True), indent=1)
    given = "\n".join(f"{name} = {value}" for name, value in (settings or {}).items())
    parts = [f'<h2>The workload</h2><div class="wide"><pre>{escape(asked)}</pre></div>']
    if given:
        parts.append(f'<h2>The server\'s settings</h2><div class="wide"><pre>{escape(given)}</pre></div>')
    return "".join(parts)
