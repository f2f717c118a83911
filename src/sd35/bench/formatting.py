"""Figures and facts in words, the same for the terminal and for the page."""

from sd35.bench.machine import Machine
from sd35.bench.quality import Quality
from sd35.bench.results import Cell, Matrix, Part, Plan, Result
from sd35.bench.statistics import Figure

_MB = 1e6


def figure(found: Figure | None, digits: int = 2) -> str:
    """As "4.21 ±0.30"; a dash where there is none."""
    if found is None:
        return "-"
    spread = "" if found.half_width is None else f" ±{found.half_width:.{digits}f}"
    return f"{found.value:.{digits}f}{spread}"


def counted(count: int, what: str) -> str:
    """As "1 round", "2 rounds"."""
    return f"{count} {what}{'s' * (count != 1)}"


def bytes_in_words(count: int | None) -> str:
    """As "301 MB", of 10^6 bytes."""
    return "not known" if count is None else f"{count / _MB:,.0f} MB"


def models_in_words(result: Result) -> str:
    """What made the images."""
    models = [each for each in result.served.models or [] if {"id", "backend", "precision"} <= each.keys()]
    told = ", ".join(f"{each['id']} on {each['backend']}/{each['precision']}" for each in models)
    return told or "A model that is not named"


def served_in_words(result: Result) -> str:
    """Where it was, and how it was asked."""
    where = f"at {result.served.url}" if result.served.url else "on a server started for it"
    return f"{where}, asked in the dialect {result.served.dialect}"


def matrix_in_words(found: Matrix) -> str:
    """How each combination was measured."""
    plan = found.plan
    return (
        f"{counted(plan.clients, 'client')} in a closed loop, {counted(plan.rounds, 'round')} of {plan.seconds:g} s,"
        f" workload '{found.workload.name}' ({found.workload_digest}); ratios are to the first"
    )


def load_in_words(part: Part, plan: Plan) -> str:
    """What a load was, and what it got. Of an open one also the requests that chance made of its rate."""
    sent = len(part.samples.due_s) / (plan.rounds * plan.seconds)
    offered = "" if part.offered is None else f" ({part.offered:.2f} requests/s, by chance {sent:.2f} were sent)"
    work = f", {figure(part.row_steps_per_s, 0)} row-steps/s" if part.row_steps_per_s else ""
    return f"{part.name}{offered}: {figure(part.images_per_s)} images/s{work}"


def loads_in_words(result: Result) -> str:
    """How it was asked."""
    plan = result.plan
    return (
        f"workload '{result.workload.name}' ({result.workload_digest}), {counted(plan.rounds, 'round')} of"
        f" {plan.seconds:g} s a load, {plan.warm_s:g} s of warm-up; ± is half of a 95 % confidence interval"
        " (Student's t over the rounds)"
    )


def quality_in_words(quality: Quality | None) -> str:
    """Against what, and how near."""
    if quality is None:
        return "not compared"
    if quality.why_not:
        return f"not compared with {quality.reference}: {quality.why_not}"
    if quality.psnr_db is None:
        words = f"all {quality.images} images are those of {quality.reference}, to the pixel: SSIM {quality.ssim:.4f}"
    else:
        words = (
            f"{quality.images} images against {quality.reference}: PSNR {quality.psnr_db:.1f} dB"
            f" (worst {quality.least_psnr_db:.1f}), SSIM {quality.ssim:.4f} (worst {quality.least_ssim:.4f})"
        )
    if quality.right is None or quality.reference_right is None:
        return words
    return f"{words}; {quality.right:.0%} show what was asked, of the reference's {quality.reference_right:.0%}"


def cold_start_in_words(result: Result) -> str:
    """From the process's start to ready, by phase."""
    cold = result.cold_start
    phases = ", ".join(f"{name} {took_s:.2f}" for name, took_s in cold.phases_s.items())
    if cold.ready_s is None:
        return f"not measured: the server ran already{f'; it says of its own: {phases} s' if phases else ''}"
    return f"{cold.ready_s:.2f} s to ready ({phases} s), first image {cold.first_image_s:.2f} s after that"


def memory_in_words(result: Result) -> str:
    """The most that was seen."""
    return f"{bytes_in_words(result.memory.peak_bytes)} at most ({result.memory.source})"


def gpu_in_words(result: Result) -> str:
    """Memory and energy of GPUs, or why there is none."""
    gpu = result.gpu
    if gpu.why_not:
        return f"nothing measured: {gpu.why_not}"
    energy = "energy not told by this GPU"
    if gpu.energy_j is not None and gpu.energy_per_image_j is not None:
        energy = f"{gpu.energy_j:.0f} J in the rounds, {gpu.energy_per_image_j:.2f} J an image"
    return f"{bytes_in_words(gpu.peak_bytes)} at most; {energy}"


def batches_in_words(result: Result) -> str:
    """How full batches were."""
    batches = result.batches
    if batches is None:
        return "not told by this server"
    return f"{batches.batches} batches of {batches.row_steps / batches.batches:.2f} rows on average"


def machine_in_words(machine: Machine) -> str:
    """Hardware and system."""
    hardware = f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB"
    return f"{hardware}; {'; '.join(machine.gpus) or 'no GPU'}; {machine.system}"


def software_in_words(machine: Machine) -> str:
    """Versions and commit."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"Python {machine.python}, {versions}; commit {machine.commit or 'not known'}"


def facts(result: Result) -> list[tuple[str, str]]:
    """All beside the table of loads, with what it is called."""
    return [
        ("cold start", cold_start_in_words(result)),
        ("memory", memory_in_words(result)),
        ("GPU", gpu_in_words(result)),
        ("batches", batches_in_words(result)),
        ("quality", quality_in_words(result.quality)),
        ("asked", loads_in_words(result)),
        ("machine" if result.served.runs_here else "asked from", machine_in_words(result.machine)),
        ("software" if result.served.settings else "asked with", software_in_words(result.machine)),
    ]


def matrix_figures(found: Matrix, cell: Cell) -> dict[str, str]:
    """Of a combination that ran, by what they are; GPU memory where any has some."""
    first = next(each for each in found.cells if not each.why_not)
    assert cell.images_per_s
    assert first.images_per_s
    figures = {
        "images/s": figure(cell.images_per_s),
        "ratio": f"{cell.images_per_s.value / first.images_per_s.value:.2f}" if first.images_per_s.value else "-",
        "row-steps/s": figure(cell.row_steps_per_s, 0),
        "p95, s": figure(cell.p95_s),
        "memory": bytes_in_words(cell.peak_bytes),
    }
    if any(each.vram_bytes is not None for each in found.cells):
        figures["GPU memory"] = bytes_in_words(cell.vram_bytes)
    quality = cell.quality
    psnr = "-"
    if quality and not quality.why_not:
        psnr = "same" if quality.psnr_db is None else f"{quality.psnr_db:.1f}"
    return {**figures, "ready, s": "-" if cell.ready_s is None else f"{cell.ready_s:.1f}", "PSNR, dB": psnr}


def not_run(found: Matrix) -> list[tuple[str, str]]:
    """Each reason, and the combinations it is of."""
    reasons: dict[str, list[str]] = {}
    for cell in found.cells:
        if cell.why_not:
            reasons.setdefault(cell.why_not, []).append(cell.name)
    return [(why_not, "; ".join(names)) for why_not, names in reasons.items()]
