"""Every backend, precision and batch that runs on this machine, one server after the other, under the same load."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import fmean

from sd35.backends.options import DeviceKind
from sd35.backends.registry import BACKENDS, check_available
from sd35.bench.machine import Busy, Machine, this_machine
from sd35.bench.results import Cell, Matrix, Result
from sd35.bench.run import OnProgress, duration_s
from sd35.bench.server import told_of
from sd35.bench.session import AT_ONCE, Reference, Session, run_session
from sd35.doctor import gpus
from sd35.errors import Sd35Error

BATCHES = (2, 8)
_OF_CELL = {"backend", "precision", "max_batch_rows"}
_FAMILY = "fp8"  # a name for whichever of its ways the device has: each way is tried by its own name


def run_matrix(session: Session, wanted: Sequence[Cell], progress: OnProgress) -> Matrix:
    """The closed loop of a session against each of `combinations`. What does not run is listed with its reason."""
    machine = this_machine()
    session = _with_room(session, wanted)
    reference = Reference(session)
    found: list[tuple[Cell, Result | None]] = []
    each_s = duration_s(session.plan)

    def measured(number: int, cell: Cell) -> tuple[Cell, Result | None]:
        return _measured(
            session, cell, reference, lambda words, s: progress(f"{cell.name}: {words}", number * each_s + s)
        )

    for number, cell in enumerate(wanted):
        found.append((cell, None) if cell.why_not else measured(number, cell))
    results = [result for _, result in found if result]
    return Matrix(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        busy=_together([result.busy for result in results], machine),
        workload=session.workload,
        workload_digest=session.workload.digest,
        plan=session.plan,
        checkpoints=list(session.settings.checkpoints),
        settings={name: value for name, value in told_of(session.settings).items() if name not in _OF_CELL},
        cells=[cell for cell, _ in found],
    )


def combinations(session: Session, batches: Sequence[int]) -> Iterator[Cell]:
    """Each, and why it cannot be run, where that is known before it is tried."""
    device: DeviceKind = "cuda" if gpus() and not session.settings.device.startswith("cpu") else "cpu"
    for backend, spec in BACKENDS.items():
        here = spec.devices.get(device) or spec.devices.get("cpu")
        try:
            check_available(backend)
            refusal = None if here else "it computes on GPUs only, and none is found here (nvidia-smi lists none)"
        except Sd35Error as error:
            refusal = str(error)
        precisions = (here or spec.devices["cuda"]).precisions
        is_fp8_named = any(precision.startswith("fp8-") for precision in precisions)
        for precision in precisions:
            if precision == _FAMILY and is_fp8_named:
                continue
            for batch in batches:
                yield Cell(backend=backend, precision=precision, batch=batch, why_not=refusal)


def _with_room(session: Session, wanted: Sequence[Cell]) -> Session:
    """The same clients for all, and none of them is to be refused."""
    rooms = (cell.batch + cell.batch // 4 + 1 for cell in wanted)
    room = session.settings.max_in_flight or max(session.plan.clients, AT_ONCE + 1, *rooms)
    update = {"max_in_flight": room, "fallback": None}
    return replace(session, settings=session.settings.model_copy(update=update))


def _measured(session: Session, cell: Cell, reference: Reference, progress: OnProgress) -> tuple[Cell, Result | None]:
    update = {"backend": cell.backend, "precision": cell.precision, "max_batch_rows": cell.batch}
    try:
        result = run_session(replace(session, settings=session.settings.model_copy(update=update)), progress, reference)
    except Sd35Error as error:
        return cell.model_copy(update={"why_not": str(error)}), None
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


def _together(each: Sequence[Busy], machine: Machine) -> Busy:
    """One mark for all: the mean, and the most that was seen."""
    return Busy(
        before_cores=max((busy.before_cores for busy in each), default=0.0),
        during_cores=round(fmean(busy.during_cores for busy in each), 3) if each else 0.0,
        most_cores=max((busy.most_cores for busy in each), default=0.0),
        cores=machine.cores,
    )
