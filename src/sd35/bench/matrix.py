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
# This precision lets the backend choose a kind of FP8, such as "fp8-storage". The matrix measures the kinds instead.
_ANY_FP8 = "fp8"


def run_matrix(session: Session, cells: Sequence[Cell], on_progress: OnProgress) -> Matrix:
    """Measure a server for each cell with the plan of a session, one after the other.

    Cells that have a `skip_reason` are not measured. A cell that fails gets its error as the `skip_reason`.
    """
    machine = this_machine()
    session = _with_admission_limit(session, cells)
    reference = Reference(session)
    cell_s = duration_s(session.plan)
    measured: list[tuple[Cell, Result | None]] = []
    for index, cell in enumerate(cells):
        if cell.skip_reason:
            measured.append((cell, None))
            continue
        report = partial(_report_cell_progress, on_progress, cell.name, index * cell_s)
        measured.append(_measure_cell(session, cell, reference, report))
    settings = reported_settings(session.settings)
    return Matrix(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        background=_combine_background_loads([result.background for _, result in measured if result], machine),
        workload=session.workload,
        workload_digest=session.workload.digest,
        plan=session.plan,
        checkpoints=list(session.settings.checkpoints),
        settings={name: value for name, value in settings.items() if name not in _CELL_SETTINGS},
        cells=[cell for cell, _ in measured],
    )


def combinations(session: Session, batch_rows: Sequence[int]) -> Iterator[Cell]:
    """Yield a cell for each backend, precision and batch size. Cells that cannot run here have a `skip_reason`."""
    has_gpu = bool(gpus())
    device: DeviceKind = "cuda" if has_gpu and not session.settings.device.startswith("cpu") else "cpu"
    needs_gpu = f"it runs only on NVIDIA GPUs, and {'--device is cpu' if has_gpu else 'nvidia-smi lists no GPU'}"
    for backend, spec in BACKENDS.items():
        options = spec.devices.get(device) or spec.devices.get("cpu")
        try:
            check_available(backend)
            reason = None if options else needs_gpu
        except Sd35Error as error:
            reason = str(error)
        precisions = (options or spec.devices["cuda"]).precisions
        has_fp8_kinds = any(precision.startswith("fp8-") for precision in precisions)
        for precision in precisions:
            if precision == _ANY_FP8 and has_fp8_kinds:
                continue
            for rows in batch_rows:
                yield Cell(backend=backend, precision=precision, batch_rows=rows, skip_reason=reason)


def _report_cell_progress(
    on_progress: OnProgress, cell_name: str, start_s: float, activity: str, completed_s: float
) -> None:
    """Report the progress of a cell as progress of the matrix. `start_s` is the time of the cells before it."""
    on_progress(f"{cell_name}: {activity}", start_s + completed_s)


def _with_admission_limit(session: Session, cells: Sequence[Cell]) -> Session:
    """Return a session in which all servers have the same admission limit and no fallback backend.

    The limit is the setting `max_in_flight`. If that is not set, it is high enough that no client is refused.
    A fallback would answer in place of the backend that is measured.
    """
    # As by default, a server admits somewhat more images than a batch has rows.
    batch_limits = (cell.batch_rows + cell.batch_rows // 4 + 1 for cell in cells)
    limit = session.settings.max_in_flight or max(session.plan.clients, CONCURRENCY + 1, *batch_limits)
    update = {"max_in_flight": limit, "fallback": None}
    return replace(session, settings=session.settings.model_copy(update=update))


def _measure_cell(
    session: Session, cell: Cell, reference: Reference, on_progress: OnProgress
) -> tuple[Cell, Result | None]:
    """Measure a server with a cell's backend, precision and batch size.

    Returns the cell with its figures, and the result. After an error, returns the cell with a `skip_reason`, and None.
    """
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


def _combine_background_loads(loads: Sequence[BackgroundLoad], machine: Machine) -> BackgroundLoad:
    """Combine the loads of all runs: the mean of `during_cores`, the maximum of `before_cores` and `peak_cores`."""
    return BackgroundLoad(
        before_cores=max((load.before_cores for load in loads), default=0.0),
        during_cores=round(fmean(load.during_cores for load in loads), 3) if loads else 0.0,
        peak_cores=max((load.peak_cores for load in loads), default=0.0),
        cores=machine.cores,
    )
