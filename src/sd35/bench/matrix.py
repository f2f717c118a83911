"""The matrix: every backend, precision and batch size that runs on this machine, one server after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from statistics import fmean

from sd35.backends.options import DeviceKind
from sd35.backends.registry import BACKENDS, check_available
from sd35.bench.monitoring.machine import BackgroundLoad, Machine, this_machine
from sd35.bench.results import Cell, Matrix, Result
from sd35.bench.run import OnProgress, duration_s
from sd35.bench.server import reported_settings
from sd35.bench.session import CONCURRENCY, Reference, Session, run_session
from sd35.doctor import gpus
from sd35.errors import Sd35Error

BATCH_ROWS = (2, 8)
_CELL_SETTINGS = {"backend", "precision", "max_batch_rows"}
_ANY_FP8 = "fp8"  # stands for the device's own kind of FP8; each kind is a combination with its own name


def run_matrix(session: Session, cells: Sequence[Cell], on_progress: OnProgress) -> Matrix:
    """Run the closed loop of a session against each combination. Combinations that do not run get a reason."""
    machine = this_machine()
    session = _with_admission_limit(session, cells)
    reference = Reference(session)
    each_s = duration_s(session.plan)
    measured: list[tuple[Cell, Result | None]] = []
    for number, cell in enumerate(cells):
        report = partial(_report, on_progress, cell.name, number * each_s)
        measured.append((cell, None) if cell.skip_reason else _measure_cell(session, cell, reference, report))
    return Matrix(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        background=_combine([result.background for _, result in measured if result], machine),
        workload=session.workload,
        workload_digest=session.workload.digest,
        plan=session.plan,
        checkpoints=list(session.settings.checkpoints),
        settings={k: value for k, value in reported_settings(session.settings).items() if k not in _CELL_SETTINGS},
        cells=[cell for cell, _ in measured],
    )


def combinations(session: Session, batch_rows: Sequence[int]) -> Iterator[Cell]:
    """List all combinations. Those that are known not to run have a reason."""
    device: DeviceKind = "cuda" if gpus() and not session.settings.device.startswith("cpu") else "cpu"
    for backend, spec in BACKENDS.items():
        options = spec.devices.get(device) or spec.devices.get("cpu")
        try:
            check_available(backend)
            reason = None if options else "it runs only on GPUs, and nvidia-smi lists none"
        except Sd35Error as error:
            reason = str(error)
        precisions = (options or spec.devices["cuda"]).precisions
        has_fp8_kinds = any(precision.startswith("fp8-") for precision in precisions)
        for precision in precisions:
            if precision == _ANY_FP8 and has_fp8_kinds:
                continue
            for rows in batch_rows:
                yield Cell(backend=backend, precision=precision, batch_rows=rows, skip_reason=reason)


def _report(on_progress: OnProgress, cell: str, start_s: float, activity: str, completed_s: float) -> None:
    on_progress(f"{cell}: {activity}", start_s + completed_s)


def _with_admission_limit(session: Session, cells: Sequence[Cell]) -> Session:
    """Give all servers the same admission limit, high enough that no client is refused."""
    limits = (cell.batch_rows + cell.batch_rows // 4 + 1 for cell in cells)
    limit = session.settings.max_in_flight or max(session.plan.clients, CONCURRENCY + 1, *limits)
    update = {"max_in_flight": limit, "fallback": None}
    return replace(session, settings=session.settings.model_copy(update=update))


def _measure_cell(
    session: Session, cell: Cell, reference: Reference, on_progress: OnProgress
) -> tuple[Cell, Result | None]:
    update = {"backend": cell.backend, "precision": cell.precision, "max_batch_rows": cell.batch_rows}
    session = replace(session, settings=session.settings.model_copy(update=update))
    try:
        result = run_session(session, on_progress, reference)
    except Sd35Error as error:
        return cell.model_copy(update={"skip_reason": str(error)}), None
    figures = {
        "images_per_s": result.closed.images_per_s,
        "row_steps_per_s": result.closed.row_steps_per_s,
        "p95_s": result.closed.all.p95_s,
        "peak_bytes": result.memory.peak_bytes,
        "vram_bytes": result.gpu.peak_bytes,
        "ready_s": result.cold_start.ready_s,
        "quality": result.quality,
    }
    return cell.model_copy(update=figures), result


def _combine(loads: Sequence[BackgroundLoad], machine: Machine) -> BackgroundLoad:
    """Combine the background load of all runs: the mean of `during_cores`, and the maximum of the others."""
    return BackgroundLoad(
        before_cores=max((load.before_cores for load in loads), default=0.0),
        during_cores=round(fmean(load.during_cores for load in loads), 3) if loads else 0.0,
        peak_cores=max((load.peak_cores for load in loads), default=0.0),
        cores=machine.cores,
    )
