"""The tables that `sd35 bench` prints in the terminal."""

from rich.console import Console
from rich.table import Table

from sd35.bench.compare import Comparison
from sd35.bench.report.formatting import (
    CLASS_COLUMNS,
    cell_figures,
    class_rows,
    counted,
    describe_load,
    describe_matrix,
    describe_models,
    describe_server,
    facts,
    format_estimate,
    skipped_cells,
)
from sd35.bench.results import LoadResult, Matrix, Result


def show(result: Result | Matrix, console: Console) -> None:
    """Print a run or a matrix."""
    if isinstance(result, Matrix):
        _show_matrix(result, console)
    else:
        _show_run(result, console)


def _show_run(result: Result, console: Console) -> None:
    """Print the figures of each load and of its classes of requests, then the facts about the run."""
    console.print(f"{describe_models(result)}, {describe_server(result)}", markup=False)
    console.print(result.background.description, style="bold red" if result.background.is_busy else "dim", markup=False)
    for load in result.loads:
        console.print()
        console.print(describe_load(load, result.plan), style="bold", markup=False)
        console.print(_latency_table(load))
        for message, count in load.errors.items():
            console.print(f"  {counted(count, 'time')}: {message}", style="yellow", markup=False)
    console.print()
    for name, text in facts(result):
        console.print(f"{name:<12}{text}", markup=False)


def _latency_table(load: LoadResult) -> Table:
    """Return a table of a load: latencies in seconds and counts of each class of requests, then of all requests."""
    table = Table("  class", box=None)
    for name in CLASS_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True, min_width=11 if name.startswith("p") else None)
    for name, *cells in class_rows(load):
        table.add_row(f"  {name}", *cells)
    return table


def _show_matrix(matrix: Matrix, console: Console) -> None:
    """Print a row for each combination of backend, precision and batch, with its ratios to the first that ran."""
    console.print(f"{', '.join(matrix.checkpoints)}: {describe_matrix(matrix)}", markup=False)
    console.print(matrix.background.description, style="bold red" if matrix.background.is_busy else "dim", markup=False)
    ran = [(cell, cell_figures(matrix, cell)) for cell in matrix.cells if not cell.skip_reason]
    table = Table("backend", box=None, padding=(0, 1, 0, 0))
    table.add_column("rows", justify="right")
    columns = [name for name in (ran[0][1] if ran else {}) if name != "row-steps/s"]  # to fit in 80 columns
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for cell, figures in ran:
        values = {**figures, "p95, s": figures["p95, s"].partition(" ")[0]}  # without the interval, to save space
        table.add_row(f"{cell.backend}/{cell.precision}", str(cell.batch_rows), *(values[column] for column in columns))
    console.print(table)
    for reason, names in skipped_cells(matrix):
        console.print(f"not run: {names}: {reason}", markup=False)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print a row for each figure of two runs, A and B, then the warnings."""
    table = Table("load", "figure", box=None)
    for name in ("A", "B", "B / A", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    previous = ""
    for row in comparison.rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        style = {"better": "green", "worse": "red"}.get(row.verdict)
        figures = format_estimate(row.before), format_estimate(row.after)
        table.add_row(row.load if row.load != previous else "", row.figure, *figures, ratio, row.verdict, style=style)
        previous = row.load
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"WARNING: {warning}", style="yellow", markup=False)


def as_dict(comparison: Comparison) -> dict[str, object]:
    """Return a comparison as an object for JSON: `rows`, a list of objects, and `warnings`, a list of strings."""
    names = ("load", "figure", "before", "after", "ratio", "differs", "verdict")
    rows = [
        {name: getattr(row, name) for name in names}
        | {"before": row.before.model_dump(), "after": row.after.model_dump()}
        for row in comparison.rows
    ]
    return {"rows": rows, "warnings": comparison.warnings}
