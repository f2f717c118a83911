"""The tables that `sd35 bench` prints."""

from rich.console import Console
from rich.table import Table

from sd35.bench.compare import Comparison
from sd35.bench.formatting import (
    facts,
    figure,
    load_in_words,
    matrix_figures,
    matrix_in_words,
    models_in_words,
    not_run,
    served_in_words,
)
from sd35.bench.results import Matrix, Part, Result


def show(result: Result, console: Console) -> None:
    """Print a result: the figures of each load and class, then the rest."""
    console.print(f"{models_in_words(result)}, {served_in_words(result)}", markup=False)
    console.print(result.busy.words, style="bold red" if result.busy.is_busy else "dim", markup=False)
    for part in result.parts:
        console.print()
        console.print(load_in_words(part, result.plan), style="bold", markup=False)
        console.print(_latencies(part))
        for message, times in part.trouble.items():
            console.print(f"  {times} times: {message}", style="yellow", markup=False)
    console.print()
    for name, words in facts(result):
        console.print(f"{name:<11}{words}", markup=False)


def _latencies(part: Part) -> Table:
    """Return a table with a row for each class, if there are several, and one for all together."""
    table = Table("  class", box=None)
    for name in ("p50, s", "p95, s", "p99, s", "made", "refused", "failed"):
        table.add_column(name, justify="right", no_wrap=True, min_width=11 if name.startswith("p") else None)
    for kind in (*(part.kinds if len(part.kinds) > 1 else ()), part.all):
        latencies = map(figure, (kind.p50_s, kind.p95_s, kind.p99_s))
        table.add_row(f"  {kind.name}", *latencies, str(kind.made), str(kind.refused), str(kind.failed))
    return table


def show_matrix(matrix: Matrix, console: Console) -> None:
    """Print a line for each combination, with ratios to the first that ran."""
    console.print(f"{', '.join(matrix.checkpoints)}: {matrix_in_words(matrix)}", markup=False)
    console.print(matrix.busy.words, style="bold red" if matrix.busy.is_busy else "dim", markup=False)
    ran = [(cell, matrix_figures(matrix, cell)) for cell in matrix.cells if not cell.why_not]
    table = Table("backend", box=None, padding=(0, 1, 0, 0))
    table.add_column("rows", justify="right")
    columns = [name for name in (ran[0][1] if ran else {}) if name != "row-steps/s"]  # too wide for 80 characters
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for cell, figures in ran:
        values = {**figures, "p95, s": figures["p95, s"].partition(" ")[0]}
        table.add_row(f"{cell.backend}/{cell.precision}", str(cell.batch), *(values[column] for column in columns))
    console.print(table)
    for why_not, names in not_run(matrix):
        console.print(f"not run: {names}: {why_not}", markup=False)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print a line for each figure, then the warnings."""
    table = Table("load", "figure", box=None)
    for name in ("A", "B", "B / A", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    part = ""
    for line in comparison.lines:
        ratio = "-" if line.ratio is None else f"{line.ratio:.2f}"
        style = {"better": "green", "worse": "red"}.get(line.verdict)
        shown = line.part if line.part != part else ""
        part = line.part
        table.add_row(shown, line.what, figure(line.before), figure(line.after), ratio, line.verdict, style=style)
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"beware: {warning}", style="yellow", markup=False)


def as_dict(comparison: Comparison) -> dict[str, object]:
    """Return a comparison as JSON for scripts."""
    lines = [
        {
            "part": line.part,
            "figure": line.what,
            "before": line.before.model_dump(),
            "after": line.after.model_dump(),
            "ratio": line.ratio,
            "differs": line.differs,
            "verdict": line.verdict,
        }
        for line in comparison.lines
    ]
    return {"lines": lines, "warnings": comparison.warnings}
