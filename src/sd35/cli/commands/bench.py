"""The commands `sd35 bench` and `sd35 bench compare`."""

import json
import math
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from sd35.backends.registry import BACKENDS, check_available
from sd35.bench.compare import compare as compare_runs
from sd35.bench.load.dialects import dialect_of
from sd35.bench.load.workload import read_workload
from sd35.bench.matrix import BATCH_ROWS, combinations, run_matrix
from sd35.bench.monitoring.machine import process_tree
from sd35.bench.report.page import report_page
from sd35.bench.results import Cell, Plan, check_writable, read, write
from sd35.bench.run import OnProgress, duration_s
from sd35.bench.session import Session, run_session
from sd35.cli.bench_tables import as_dict, show, show_comparison
from sd35.cli.options import PIPELINE, AsJson, SettingFlags, with_settings
from sd35.cli.progress import progress_bar
from sd35.errors import InvalidSetting
from sd35.settings.proxies import is_address

_SHARES = (0.5, 0.8, 1.2)  # rates of the open loops without --rate, relative to the throughput of the closed loop
_KEY_VARIABLE = "BENCH_API_KEY"  # not a flag, which other users of the machine could read
_NO_REFERENCE = "none"
_load_option = partial(typer.Option, rich_help_panel="Load")
_quality_option = partial(typer.Option, rich_help_panel="Quality")
_matrix_option = partial(typer.Option, rich_help_panel="Matrix")
app = typer.Typer(invoke_without_command=True)


@app.callback()
@with_settings(*PIPELINE, "offline", "max_in_flight", "max_batch_rows", "reproducible")
def bench(
    context: typer.Context,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Directory for the report: bench.json and bench.html, or with --matrix, matrix.json and matrix.html.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address of a running server.", show_default="starts `sd35 serve` on a free port"
        ),
    ] = None,
    dialect: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="API of the server: sd35, openai, a1111 or stability, or plain for the servers in benchmarks/.",
        ),
    ] = "sd35",
    workload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON file of requests.", show_default="a mix of 4, 12 and 28 steps"),
    ] = None,
    as_json: AsJson = False,
    clients: Annotated[
        int,
        _load_option(
            metavar="COUNT",
            min=1,
            max=1000,
            help="Number of clients in the closed loop. Each sends a request as soon as its last one is answered.",
        ),
    ] = 8,
    rate: Annotated[
        list[float] | None,
        _load_option(
            metavar="RATE",
            help="Requests per second of an open loop, sent at random times without waiting for responses. May be"
            " repeated.",
            show_default="0.5, 0.8 and 1.2 times the throughput of the closed loop",
        ),
    ] = None,
    rounds: Annotated[
        int, _load_option(metavar="COUNT", min=1, max=100, help="Number of times that each load is measured.")
    ] = 4,
    seconds: Annotated[
        float, _load_option(metavar="SECONDS", help="Duration of each load in a round, in seconds.")
    ] = 5.0,
    warm_up: Annotated[
        float, _load_option(metavar="SECONDS", help="Duration of the load before the first round, in seconds.")
    ] = 6.0,
    reference: Annotated[
        str,
        _quality_option(
            metavar="BACKEND",
            help="Backend that generates the reference images: onnx, openvino, diffusers or tensorrt; none skips the"
            " comparison.",
        ),
    ] = "onnx",
    judged: Annotated[int, _quality_option(metavar="COUNT", min=1, max=1000, help="Number of images to compare.")] = 16,
    matrix: Annotated[
        bool, _matrix_option("--matrix", help="Measure all combinations of backend, precision and batch.")
    ] = False,
    batch: Annotated[
        list[int] | None,
        _matrix_option(
            metavar="ROWS",
            min=1,
            help="Largest batch of a step, in transformer rows. Only with --matrix; may be repeated.",
            show_default="2 and 8",
        ),
    ] = None,
    flags: SettingFlags,
) -> None:
    """Measure a server: throughput, latency, memory, start-up time and image quality.

    Without --url, starts a server with a temporary data directory, and stops it at the end. The default takes about two
    minutes. If a running server needs an API key, set the variable BENCH_API_KEY.

    [bold]Examples[/bold]

      sd35 bench --out report
      sd35 bench --url http://127.0.0.1:7860 --dialect a1111 --clients 2 --rate 0.5 --reference none
      sd35 bench --matrix --out matrix
      sd35 bench compare before/bench.json after/bench.json
    """
    if context.invoked_subcommand:
        return
    settings = flags.load()
    _check_combination(flags, url, dialect, rate, batch, is_matrix=matrix)
    plan = Plan(
        clients=clients,
        rates=tuple(rate or ()),
        shares=() if rate or matrix else _SHARES,
        rounds=rounds,
        seconds=seconds,
        warmup_s=warm_up,
        quality_images=0 if reference == _NO_REFERENCE else judged,
        max_first_image_s=seconds if matrix else None,
        seed_offset=secrets.randbits(32) if url else 0,  # a running server may have images of an earlier run
    )
    _check_plan(plan)
    _check_target(url, reference, out)
    protocol = dialect_of(dialect)
    session = Session(
        key=_read_key(),
        settings=settings,
        workload=read_workload(workload) if workload else protocol.default_workload(),
        plan=plan,
        url=url.rstrip("/") if url else None,
        dialect=protocol.name,
        reference=reference,
    )
    cells = list(combinations(session, batch or BATCH_ROWS)) if matrix else None
    _measure_and_report(session, cells, out, as_json=as_json)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="Result of `sd35 bench --out`.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another result, to compare with A.json.")],
    *,
    different_workloads: Annotated[
        bool, typer.Option("--different-workloads", help="Compare runs even if their workloads differ.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the ratio of each figure, and whether the difference is more than chance.

    A difference is more than chance if the confidence intervals of the two runs do not overlap.

    [bold]Examples[/bold]

      sd35 bench compare before/bench.json after/bench.json
    """
    comparison = compare_runs(read(before), read(after), different_workloads=different_workloads)
    if as_json:
        print(json.dumps(as_dict(comparison)))
    else:
        show_comparison(comparison, Console(highlight=False))


def _measure_and_report(session: Session, cells: list[Cell] | None, out: Path | None, *, as_json: bool) -> None:
    """Measure one server, or a matrix: one server for each of `cells`, a combination of backend, precision and batch.

    Print the result, and write it to the directory `out`.
    """
    total_s = duration_s(session.plan) * (1 if cells is None else len(cells))
    with _terminate_children(), _show_progress(total_s) as on_progress:
        result = run_session(session, on_progress) if cells is None else run_matrix(session, cells, on_progress)
    if as_json:
        print(result.model_dump_json())
    else:
        show(result, Console(highlight=False))
    if out:
        path = out / ("bench" if cells is None else "matrix")
        write(result, path.with_suffix(".json"), report_page(result))
        print(f"Wrote {path}.json and {path}.html", file=sys.stderr)


def _check_combination(
    flags: SettingFlags,
    url: str | None,
    dialect: str,
    rate: list[float] | None,
    batch: list[int] | None,
    *,
    is_matrix: bool,
) -> None:
    """Raise InvalidSetting for flags that exclude each other."""
    if url and {"backend", "precision"} & flags.given.keys():
        raise InvalidSetting(
            "--backend, --precision: allowed only without --url, because a running server has its own backend"
        )
    if batch and not is_matrix:
        raise InvalidSetting("--batch: allowed only with --matrix; use --max-batch-rows for a single server")
    if is_matrix and (url or dialect != "sd35"):
        raise InvalidSetting("--matrix: allowed only without --url and --dialect, because it starts its own servers")
    if is_matrix and rate:
        raise InvalidSetting("--matrix: allowed only without --rate, because it measures only a closed loop")


def _check_plan(plan: Plan) -> None:
    """Raise InvalidSetting for a rate or duration that is not above 0, or for a repeated rate."""
    for flag, values in (("--rate", plan.rates), ("--seconds", (plan.seconds,)), ("--warm-up", (plan.warmup_s,))):
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise InvalidSetting(f"{flag}: got {value:g}; allowed: a number above 0")
    if repeated := next((rate for rate in plan.rates if plan.rates.count(rate) > 1), None):
        raise InvalidSetting(f"--rate: got {repeated:g} twice; allowed: each rate once, because --rounds repeats it")


def _check_target(url: str | None, reference: str, out: Path | None) -> None:
    """Check the address of the server, the reference backend and the directory of the report.

    Raises InvalidSetting if one is invalid, BackendUnavailable if the reference backend cannot run here.
    """
    if url is not None and not is_address(url, ("http", "https")):
        raise InvalidSetting(f"--url: got {url!a}; allowed: an http or https address, such as http://127.0.0.1:8000")
    if url is not None and "@" in urlsplit(url).netloc:
        raise InvalidSetting(
            f"--url: contains a user name or password, which the report would show; set {_KEY_VARIABLE} to an API key"
        )
    if reference not in {*BACKENDS, _NO_REFERENCE}:
        allowed = ", ".join((*BACKENDS, _NO_REFERENCE))
        raise InvalidSetting(f"--reference: got {reference!r}; allowed: {allowed}")
    if reference != _NO_REFERENCE:
        check_available(reference, "--reference")
    if out is not None:
        check_writable(out)


def _read_key() -> str | None:
    """Return the API key from the environment, if set. Raises InvalidSetting if a header cannot contain it."""
    key = os.environ.get(_KEY_VARIABLE)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidSetting(
            f"{_KEY_VARIABLE}: got a key with characters that a header cannot contain; allowed: visible ASCII"
            " characters"
        )
    return key


@contextmanager
def _terminate_children() -> Iterator[None]:
    """On SIGTERM or Ctrl-C, terminate all servers that this process has started, and wait for their end."""

    def exit_on_signal(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        for process in process_tree(os.getpid())[1:]:  # the first is this process
            process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _show_progress(total_s: float) -> Iterator[OnProgress]:
    """Show a progress bar. Yields a function that takes the name of the current part and the elapsed seconds."""
    with progress_bar(TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()) as bar:
        task = bar.add_task("checking the machine", total=total_s)
        yield lambda name, elapsed_s: bar.update(task, description=name, completed=elapsed_s)
