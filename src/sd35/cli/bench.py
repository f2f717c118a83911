"""`sd35 bench`, `sd35 bench compare`: from flags to a session, a bar while it runs, tables and files at its end."""

import json
import math
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sd35.backends.registry import BACKENDS, check_available
from sd35.bench.compare import compare as compare_runs
from sd35.bench.load.dialects import Dialect, dialect_of
from sd35.bench.load.workload import read_workload
from sd35.bench.matrix import BATCH_ROWS, combinations, run_matrix
from sd35.bench.monitoring.machine import process_tree
from sd35.bench.report.page import report_page
from sd35.bench.results import Matrix, Plan, Result, check_writable, read, write
from sd35.bench.run import OnProgress, duration_s
from sd35.bench.session import Session, run_session
from sd35.cli.bench_tables import as_dict, show, show_comparison, show_matrix
from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.settings.proxies import is_address

SHARES = (0.5, 0.8, 1.2)
KEY_VARIABLE = "BENCH_API_KEY"  # a flag would show it to everyone on the machine
_NO_REFERENCE = "none"


@dataclass(frozen=True)
class BenchOptions:
    """What the command line asks for."""

    out: Path | None
    url: str | None
    dialect: str
    workload: Path | None
    clients: int
    rates: tuple[float, ...]
    rounds: int
    seconds: float
    warmup_s: float
    reference: str
    judged: int
    as_json: bool

    def check(self) -> Dialect:
        """The dialect. Raises InvalidSetting, BackendUnavailable where the reference cannot run here."""
        for flag, values in (("--rate", self.rates), ("--seconds", (self.seconds,)), ("--warm-up", (self.warmup_s,))):
            for value in values:
                if not (math.isfinite(value) and value > 0):
                    raise InvalidSetting(f"{flag}: got {value:g}; allowed: a number above 0")
        if doubled := next((rate for rate in self.rates if self.rates.count(rate) > 1), None):
            raise InvalidSetting(f"--rate: got {doubled:g} twice; allowed: each once, for --rounds repeats them")
        if self.url is not None:
            _check_address(self.url)
        if self.reference not in {*BACKENDS, _NO_REFERENCE}:
            allowed = ", ".join((*BACKENDS, _NO_REFERENCE))
            raise InvalidSetting(f"--reference: got {self.reference!r}; allowed: {allowed}")
        if self.reference != _NO_REFERENCE:
            check_available(self.reference, "--reference")
        if self.out is not None:
            check_writable(self.out)
        return dialect_of(self.dialect)

    def session(self, settings: Settings) -> Session:
        """What is to be done. Raises InvalidSetting, BackendUnavailable."""
        dialect = self.check()
        key = os.environ.get(KEY_VARIABLE)
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise InvalidSetting(
                f"{KEY_VARIABLE}: got a key that no header can carry; allowed: visible ASCII characters"
            )
        workload = read_workload(self.workload) if self.workload else dialect.default_workload()
        return Session(
            settings=settings,
            workload=workload,
            plan=self.plan(),
            url=self.url.rstrip("/") if self.url else None,
            dialect=dialect.name,
            key=key,
            reference=self.reference,
        )

    def plan(self) -> Plan:
        """How it is measured."""
        return Plan(
            clients=self.clients,
            rates=self.rates,
            shares=() if self.rates else SHARES,
            rounds=self.rounds,
            seconds=self.seconds,
            warmup_s=self.warmup_s,
            quality_images=0 if self.reference == _NO_REFERENCE else self.judged,
            seed_offset=secrets.randbits(32) if self.url else 0,
        )


def bench(settings: Settings, options: BenchOptions) -> None:
    """Measure, print, and write what is to be kept. Raises InvalidSetting, MeasuringFailed."""
    session = options.session(settings)
    with _ending_gently(), _bar(duration_s(session.plan)) as progress:
        result = run_session(session, progress)
    if options.as_json:
        print(result.model_dump_json())
    else:
        show(result, Console(highlight=False))
    if options.out:
        _keep(result, options.out, "bench")


def matrix(settings: Settings, options: BenchOptions, batches: tuple[int, ...]) -> None:
    """The same for every combination that runs here. Raises InvalidSetting."""
    if options.url or options.dialect != "sd35":
        raise InvalidSetting("--matrix: starts its own servers; allowed: without --url and --dialect")
    if options.rates:
        raise InvalidSetting("--matrix: measures a closed loop; allowed: without --rate")
    session = options.session(settings)
    session = replace(
        session, plan=session.plan.model_copy(update={"shares": (), "max_first_image_s": options.seconds})
    )
    wanted = list(combinations(session, batches or BATCH_ROWS))
    with _ending_gently(), _bar(duration_s(session.plan) * len(wanted)) as progress:
        found = run_matrix(session, wanted, progress)
    if options.as_json:
        print(found.model_dump_json())
    else:
        show_matrix(found, Console(highlight=False))
    if options.out:
        _keep(found, options.out, "matrix")


def compare(before: Path, after: Path, *, different_workloads: bool, as_json: bool) -> None:
    """Print two runs side by side. Raises InvalidSetting."""
    found = compare_runs(read(before), read(after), different_workloads=different_workloads)
    if as_json:
        print(json.dumps(as_dict(found)))
    else:
        show_comparison(found, Console(highlight=False))


def _keep(found: Result | Matrix, folder: Path, name: str) -> None:
    write(found, folder / f"{name}.json", report_page(found))
    print(f"Written: {folder / name}.json, {folder / name}.html", file=sys.stderr)


def _check_address(url: str) -> None:
    """Raises InvalidSetting."""
    if not is_address(url, ("http", "https")):
        raise InvalidSetting(f"--url: got {url!a}; allowed: an address such as http://127.0.0.1:8000")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise InvalidSetting(f"--url: holds a password, which would be in the report; allowed: a key in {KEY_VARIABLE}")


@contextmanager
def _ending_gently() -> Iterator[None]:
    """SIGTERM ends what was begun, as Ctrl-C does: no server that was started is left behind.

    Nor one that was just being started, which nothing else has a hold on yet.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        for process in process_tree(os.getpid())[1:]:
            process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar(total_s: float) -> Iterator[OnProgress]:
    """A bar on stderr, where that is a terminal; it leaves nothing behind."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("looking at the machine", total=total_s)

        def on_progress(name: str, over_s: float) -> None:
            bar.update(task, description=name, completed=over_s)

        yield on_progress
