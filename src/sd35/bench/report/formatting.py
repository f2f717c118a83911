"""Format figures and facts as text, for the terminal and for the HTML page."""

from sd35.bench.monitoring.machine import Machine
from sd35.bench.quality.comparison import Quality
from sd35.bench.results import Cell, LoadResult, Matrix, Plan, Result
from sd35.bench.statistics import Estimate

_MB = 1e6
CLASS_COLUMNS = ("p50, s", "p95, s", "p99, s", "completed", "refused", "failed")


def format_estimate(estimate: Estimate | None, digits: int = 2) -> str:
    """Format an estimate with the half-width of its confidence interval: "4.21 ±0.30". Returns "-" for None."""
    if estimate is None:
        return "-"
    interval = "" if estimate.half_width is None else f" ±{estimate.half_width:.{digits}f}"
    return f"{estimate.value:.{digits}f}{interval}"


def counted(count: int, noun: str) -> str:
    """Format a count: "1 round", "2 rounds"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def format_bytes(count: int | None) -> str:
    """Format bytes as "301 MB", with 1 MB = 10^6 bytes."""
    return "not known" if count is None else f"{count / _MB:,.0f} MB"


def describe_models(result: Result) -> str:
    """Describe the models of the server under test."""
    models = result.server.models or []
    described = [model for model in models if {"id", "backend", "precision"} <= model.keys()]
    names = [f"{model['id']} on {model['backend']}/{model['precision']}" for model in described]
    return ", ".join(names) or "Unnamed model"


def describe_server(result: Result) -> str:
    """Describe the address of the server under test, and the dialect of its requests."""
    where = f"at {result.server.url}" if result.server.url else "on a server started for this run"
    return f"{where}, dialect {result.server.dialect}"


def describe_matrix(matrix: Matrix) -> str:
    """Describe how each combination was measured."""
    plan = matrix.plan
    return (
        f"{counted(plan.clients, 'client')} in a closed loop, {counted(plan.rounds, 'round')} of {plan.seconds:g} s,"
        f" workload '{matrix.workload.name}' ({matrix.workload_digest}); ratios are to the first combination"
    )


def describe_load(load: LoadResult, plan: Plan) -> str:
    """Describe a load and its throughput. For an open loop, also give the offered and the sent request rate."""
    sent = len(load.requests.scheduled_s) / (plan.rounds * plan.seconds)
    offered = "" if load.offered_per_s is None else f" ({load.offered_per_s:.2f} requests/s offered, {sent:.2f} sent)"
    row_steps = f", {format_estimate(load.row_steps_per_s, 0)} row-steps/s" if load.row_steps_per_s else ""
    return f"{load.name}{offered}: {format_estimate(load.images_per_s)} images/s{row_steps}"


def class_rows(load: LoadResult) -> list[list[str]]:
    """Return a table row for each class of a load, and one for all classes: the name, then `CLASS_COLUMNS`.

    If there is only one class, only the row for all classes is returned.
    """
    results = [*load.classes, load.all] if len(load.classes) > 1 else [load.all]
    rows = []
    for result in results:
        latencies = [format_estimate(latency_s) for latency_s in result.latencies_s.values()]
        counts = [str(count) for count in (result.completed, result.refused, result.failed)]
        rows.append([result.name, *latencies, *counts])
    return rows


def describe_plan(result: Result) -> str:
    """Describe the workload and the plan of a run."""
    plan = result.plan
    return (
        f"'{result.workload.name}' ({result.workload_digest}), {counted(plan.rounds, 'round')} of"
        f" {plan.seconds:g} s per load, {plan.warmup_s:g} s of warm-up; ± is the half-width of a 95 % confidence"
        " interval (Student's t over the rounds)"
    )


def describe_quality(quality: Quality | None) -> str:
    """Describe the result of the comparison with the reference images."""
    if quality is None:
        return "not compared"
    if quality.skip_reason:
        return f"not compared with {quality.reference}: {quality.skip_reason}"
    if quality.psnr_db is None:
        text = f"all {quality.images} images equal those of {quality.reference} to the pixel: SSIM {quality.ssim:.4f}"
    else:
        text = (
            f"{quality.images} images against {quality.reference}: PSNR {quality.psnr_db:.1f} dB"
            f" (worst {quality.min_psnr_db:.1f}), SSIM {quality.ssim:.4f} (worst {quality.min_ssim:.4f})"
        )
    if quality.correct_share is None or quality.reference_correct_share is None:
        return text
    return f"{text}; correct images {quality.correct_share:.0%}, the reference's {quality.reference_correct_share:.0%}"


def format_psnr(quality: Quality | None, unit: str = "") -> str:
    """Format the PSNR of compared images, or a dash if none were compared."""
    if quality is None or quality.skip_reason:
        return "-"
    return "equal" if quality.psnr_db is None else f"{quality.psnr_db:.1f}{unit}"


def describe_cold_start(result: Result) -> str:
    """Describe the time from process start to ready, and the seconds of each phase."""
    cold = result.cold_start
    phases = ", ".join(f"{name} {phase_s:.2f}" for name, phase_s in cold.phases_s.items())
    if cold.ready_s is None:
        reported = f"; it reports {phases} s" if phases else ""
        return f"not measured, because the server was already running{reported}"
    return f"{cold.ready_s:.2f} s to ready ({phases} s), then {cold.first_image_s:.2f} s for the first image"


def describe_memory(result: Result) -> str:
    """Describe the peak memory of the server, and how it was measured."""
    return f"peak {format_bytes(result.memory.peak_bytes)} ({result.memory.source})"


def describe_gpu(result: Result) -> str:
    """Describe GPU memory and energy, or the reason why they were not measured."""
    gpu = result.gpu
    if gpu.skip_reason:
        return f"not measured: {gpu.skip_reason}"
    energy = "this GPU does not report energy"
    if gpu.energy_j is not None and gpu.energy_per_image_j is not None:
        energy = f"{gpu.energy_j:.0f} J in the rounds, {gpu.energy_per_image_j:.2f} J per image"
    return f"peak {format_bytes(gpu.peak_bytes)}; {energy}"


def describe_batches(result: Result) -> str:
    """Describe the number and the mean size of the engine's batches."""
    batches = result.batches
    if batches is None:
        return "not reported by this server"
    return f"{batches.batches} batches of {batches.row_steps / batches.batches:.2f} rows on average"


def describe_machine(machine: Machine) -> str:
    """Describe the hardware and the operating system of a machine."""
    hardware = f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB"
    return f"{hardware}; {'; '.join(machine.gpus) or 'no GPU'}; {machine.system}"


def describe_software(machine: Machine) -> str:
    """Describe the versions of Python and of libraries, and the commit of sd35."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"Python {machine.python}, {versions}; commit {machine.commit or 'not known'}"


def facts(result: Result) -> list[tuple[str, str]]:
    """Return pairs of a name and a description for all parts of a result other than its loads."""
    return [
        ("cold start", describe_cold_start(result)),
        ("memory", describe_memory(result)),
        ("GPU", describe_gpu(result)),
        ("batches", describe_batches(result)),
        ("quality", describe_quality(result.quality)),
        ("workload", describe_plan(result)),
        ("machine" if result.server.is_local else "client", describe_machine(result.machine)),
        # The versions are those of this process. A server that was started here has the same.
        ("software" if result.server.settings else "client uses", describe_software(result.machine)),
    ]


def cell_figures(matrix: Matrix, cell: Cell) -> dict[str, str]:
    """Format the figures of a combination that ran, by name. "ratio" is to the first combination that ran.

    "GPU memory" is included if it is known for any combination.
    """
    first = next(other for other in matrix.cells if not other.skip_reason)
    assert cell.images_per_s  # every combination that ran has a rate
    assert first.images_per_s
    figures = {
        "images/s": format_estimate(cell.images_per_s),
        "ratio": f"{cell.images_per_s.value / first.images_per_s.value:.2f}" if first.images_per_s.value else "-",
        "row-steps/s": format_estimate(cell.row_steps_per_s, 0),
        "p95, s": format_estimate(cell.p95_s),
        "memory": format_bytes(cell.peak_bytes),
    }
    if any(other.vram_bytes is not None for other in matrix.cells):
        figures["GPU memory"] = format_bytes(cell.vram_bytes)
    ready_s = "-" if cell.ready_s is None else f"{cell.ready_s:.1f}"
    return {**figures, "ready, s": ready_s, "PSNR, dB": format_psnr(cell.quality)}


def skipped_cells(matrix: Matrix) -> list[tuple[str, str]]:
    """Return pairs of a reason and the names of the combinations that were skipped for this reason."""
    names_by_reason: dict[str, list[str]] = {}
    for cell in matrix.cells:
        if cell.skip_reason:
            names_by_reason.setdefault(cell.skip_reason, []).append(cell.name)
    return [(reason, "; ".join(names)) for reason, names in names_by_reason.items()]
