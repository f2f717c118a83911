"""The figures of a report: plots of a result, each with a heading, a sentence and a legend."""

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil

from sd35.bench.monitoring.machine import BUSY_SHARE
from sd35.bench.report.formatting import format_estimate
from sd35.bench.report.plots import Band, Mark, Point, Series, bars, plot, ranks, stack
from sd35.bench.results import LoadResult, Matrix, Result
from sd35.bench.statistics import Estimate

_MB = 1e6
_MAX_DOTS = 2000  # maximum number of requests in a plot: more would make the page larger, but not clearer
_SECONDS = "seconds since the start of the measurement"


def result_charts(result: Result) -> Iterator[str]:
    """Yield the HTML of each figure for which the result has data."""
    if any(load.offered_per_s for load in result.loads):
        yield _draw_latency_over_load(result)
    yield _draw_requests(result)
    if any(sample.rows_per_batch is not None for sample in result.samples):
        yield _draw_batches(result)
    if result.batches and result.batches.occupancy:
        yield _draw_occupancy(result.batches.occupancy)
    if result.memory.peak_bytes:
        yield _draw_memory(result)
    yield _draw_background_load(result)
    if result.cold_start.ready_s is not None:
        yield _draw_cold_start(result)


def matrix_charts(matrix: Matrix) -> Iterator[str]:
    """Yield the HTML of two figures: images a second, and 95th percentile of latency, of each combination that ran."""
    ran = [cell for cell in matrix.cells if not cell.skip_reason]
    rates = [(cell.name, cell.images_per_s.value) for cell in ran if cell.images_per_s]
    latencies = [(cell.name, cell.p95_s.value) for cell in ran if cell.p95_s]
    yield figure("Images a second", "More is better.", ranks("images a second", rates))
    yield figure("95th percentile of latency, seconds", "Less is better.", ranks("seconds", latencies))


def figure(title: str, sentence: str, svg: str, legend: Sequence[tuple[str, int]] = ()) -> str:
    """Return an HTML figure: a plot with its heading, a sentence, and a legend of names and colour numbers."""
    items = "".join(f'<li><i class="c{colour}"></i>{escape(name)}</li>' for name, colour in legend)
    legend_html = f'<ul class="legend">{items}</ul>' if items else ""
    caption = f"<figcaption><h3>{escape(title)}</h3><p>{escape(sentence)}</p></figcaption>"
    return f"<figure>{caption}{svg}{legend_html}</figure>"


def _draw_latency_over_load(result: Result) -> str:
    """Draw percentiles of latency over the request rates of the open loops."""
    loads = sorted((load for load in result.loads if load.offered_per_s), key=lambda load: load.offered_per_s or 0)
    series = []
    for colour, percent in enumerate((50, 95, 99), 1):
        latencies = [(load, load.all.latencies_s[percent]) for load in loads]
        points = [_latency_point(load, latency_s) for load, latency_s in latencies if latency_s]
        series.append(Series(f"p{percent}", colour, points))
    capacity = Mark(result.closed.images_per_s.value, "closed loop")
    return figure(
        "Latency over load",
        "Open loop: requests arrive at random, however many are waiting. Latency counts from the scheduled moment, and"
        " excludes refused and failed requests. The dashed line is the rate of the closed loop.",
        plot("requests a second", "seconds", series, marks=[capacity]),
        _legend(series),
    )


def _latency_point(load: LoadResult, latency_s: Estimate) -> Point:
    """Return the point of a load: its request rate, and a percentile of its latency."""
    tooltip = f"{load.name}: {format_estimate(latency_s)} s"
    return Point(load.offered_per_s or 0, latency_s.value, latency_s.half_width or 0, tooltip)


def _draw_requests(result: Result) -> str:
    """Draw a dot for each request: latency over its scheduled time, in a colour for each class."""
    completed: dict[str, list[Point]] = {}
    for load in result.loads:
        for request_class in load.classes:
            completed.setdefault(request_class.name, [])
    unsuccessful: list[Point] = []
    for load in result.loads:
        columns = load.requests
        for name, scheduled_s, latency_s, status in zip(
            columns.class_name, columns.scheduled_s, columns.latency_s, columns.status, strict=True
        ):
            points = completed[name] if status == "completed" else unsuccessful
            points.append(Point(scheduled_s, latency_s))
    dots = sum(len(points) for points in completed.values())
    stride = max(1, ceil(dots / _MAX_DOTS))
    series = [
        Series(name, index % 3 + 1, points[::stride], "dots") for index, (name, points) in enumerate(completed.items())
    ]
    if unsuccessful:
        series.append(Series("refused or failed", 4, unsuccessful[:_MAX_DOTS], "crosses"))
    thinned = f" One in {stride} completed requests is shown." if stride > 1 else ""
    sentence = f"Latency of each request over its scheduled time. The shaded ranges are the loads.{thinned}"
    return _draw_over_time(result, "Every request", sentence, "seconds", series)


def _draw_batches(result: Result) -> str:
    """Draw the size of batches and the number of images in the engine over time."""
    series = [
        Series("rows in a batch, on average", 1, _sample_points(result, "rows_per_batch"), "steps"),
        Series("images in the engine", 2, _sample_points(result, "images")),
    ]
    sentence = "An image without guidance is one row of a batch, an image with guidance is two."
    return _draw_over_time(result, "Batches over time", sentence, "rows, images", series)


def _draw_occupancy(occupancy: dict[str, int]) -> str:
    """Draw how many batches had each share of the maximum rows, from `Batches.occupancy`."""
    counts = [(f"{100 * float(share):g}", float(count)) for share, count in occupancy.items()]
    return figure(
        "Batch occupancy",
        "Number of batches by their share of the maximum rows. A bar labelled 50 counts batches with at most 50 %, but"
        " more than the label of the bar before it.",
        bars("rows in use, % of the maximum", "batches", counts),
    )


def _draw_memory(result: Result) -> str:
    """Draw the memory of the server over time."""
    series = [Series("resident memory", 1, _sample_points(result, "resident_bytes", _MB))]
    if result.gpu.peak_bytes:
        series.append(Series("GPU memory", 2, _sample_points(result, "vram_bytes", _MB)))
    return _draw_over_time(result, "Memory over time", f"Source: {result.memory.source}.", "MB", series)


def _draw_background_load(result: Result) -> str:
    """Draw the cores that other processes used over time, and for comparison the share of time of the engine."""
    series = [Series("cores used by other processes", 4, _sample_points(result, "background_cores"))]
    sentence = "Processor time of processes other than the server and the load generator."
    if shares := _sample_points(result, "engine_share"):
        sentence += " For comparison, the share of time in which the server's engine computed."
        series.append(Series("share of time in which the engine computed", 3, shares))
    limit = Mark(BUSY_SHARE * result.background.cores, "busy if the mean is above this", "y")
    return _draw_over_time(result, "Background load", sentence, "cores, share", series, [limit])


def _draw_cold_start(result: Result) -> str:
    """Draw the phases of the start. "other" is the time in no phase, such as the start of Python."""
    cold = result.cold_start
    other_s = (cold.ready_s or 0) - sum(cold.phases_s.values())
    pieces = [(name, phase_s) for name, phase_s in cold.phases_s.items() if phase_s > 0]
    pieces.append(("other", max(0.0, other_s)))
    legend = [(f"{name} {phase_s:.2f} s", index + 1) for index, (name, phase_s) in enumerate(pieces)]
    sentence = f"{cold.ready_s:.2f} s from process start to ready, by the phases that the service reports."
    return figure("Cold start", sentence, stack(pieces, "s"), legend)


def _sample_points(result: Result, field: str, unit: float = 1.0) -> list[Point]:
    """Return the known values of a field of the samples over time. The values are divided by `unit`."""
    values = ((sample.time_s, getattr(sample, field)) for sample in result.samples)
    return [Point(time_s, value / unit) for time_s, value in values if value is not None]


def _draw_over_time(  # noqa: PLR0913, PLR0917  the parts of a figure
    result: Result, title: str, sentence: str, unit: str, series: Sequence[Series], marks: Sequence[Mark] = ()
) -> str:
    """Draw series over the time of the measurement, with shaded ranges for the loads. `unit` labels the y axis."""
    bands = [Band(span.start_s, span.end_s, span.name) for span in result.spans]
    return figure(title, sentence, plot(_SECONDS, unit, series, bands, marks), _legend(series))


def _legend(series: Sequence[Series]) -> list[tuple[str, int]]:
    """Return the name and the colour number of each series."""
    return [(one_series.name, one_series.colour) for one_series in series]
