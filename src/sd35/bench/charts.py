"""What the plots of a report show: from a result to `plots`, each with a heading and a sentence."""

from collections.abc import Iterator, Sequence
from html import escape

from sd35.bench.formatting import figure
from sd35.bench.machine import BUSY_SHARE
from sd35.bench.plots import Band, Mark, Point, Series, bars, plot, ranks, stack
from sd35.bench.results import Matrix, Part, Result
from sd35.bench.statistics import Figure

_MB = 1e6
_MOST_DOTS = 2000  # of requests; more make a page heavy, and no image clearer
_SECONDS = "seconds since the watch began"


def charts(result: Result) -> Iterator[str]:
    """All that the result has something for, as figures of the page."""
    if any(part.offered for part in result.parts):
        yield _latency_over_load(result)
    yield _requests(result)
    bands = [Band(span.from_s, span.to_s, span.name) for span in result.spans]
    if any(look.rows_per_batch is not None for look in result.looks):
        yield _batches(result, bands)
    if result.batches and result.batches.occupancy:
        yield _occupancy(result)
    if result.memory.peak_bytes:
        yield _memory(result, bands)
    yield _others(result, bands)
    if result.cold_start.ready_s is not None:
        yield _cold_start(result)


def matrix_charts(found: Matrix) -> Iterator[str]:
    """Images a second and the tail of latency, of each combination that ran."""
    ran = [cell for cell in found.cells if not cell.why_not]
    rates = [(cell.name, cell.images_per_s.value) for cell in ran if cell.images_per_s]
    tails = [(cell.name, cell.p95_s.value) for cell in ran if cell.p95_s]
    yield _figure("Images a second", "More is better.", ranks("images a second", rates), [])
    yield _figure("95th percentile of latency, seconds", "Less is better.", ranks("seconds", tails), [])


def _latency_over_load(result: Result) -> str:
    opened = sorted((part for part in result.parts if part.offered), key=lambda part: part.offered or 0)
    series = [
        Series("p50", 1, _points(opened, [part.all.p50_s for part in opened])),
        Series("p95", 2, _points(opened, [part.all.p95_s for part in opened])),
        Series("p99", 3, _points(opened, [part.all.p99_s for part in opened])),
    ]
    reached = Mark(result.closed.images_per_s.value, "closed loop")
    return _figure(
        "Latency over load",
        "Open loop: requests come at random, whatever is waiting; latency is from when each was due. What was"
        " refused or failed is not in it. The dashed line is what the closed loop reached.",
        plot("requests a second", "seconds", series, marks=[reached]),
        [(each.name, each.colour) for each in series],
    )


def _points(parts: Sequence[Part], latencies: Sequence[Figure | None]) -> list[Point]:
    return [
        Point(part.offered or 0, each.value, each.half_width or 0, f"{part.name}: {figure(each)} s")
        for part, each in zip(parts, latencies, strict=True)
        if each
    ]


def _requests(result: Result) -> str:
    kinds = list(dict.fromkeys(kind for part in result.parts for kind in _kinds(part)))
    colours = {kind: index % 3 + 1 for index, kind in enumerate(kinds)}
    made: dict[str, list[Point]] = {kind: [] for kind in kinds}
    lost: list[Point] = []
    for part in result.parts:
        samples = part.samples
        for kind, due_s, took_s, end in zip(samples.kind, samples.due_s, samples.took_s, samples.end, strict=True):
            (made[kind] if end == "made" else lost).append(Point(due_s, took_s))
    everyone = sum(map(len, made.values()))
    every = -(-everyone // _MOST_DOTS) or 1
    series = [Series(kind, colours[kind], points[::every], "dots") for kind, points in made.items()]
    legend = [(each.name, each.colour) for each in series]
    if lost:
        series.append(Series("refused or failed", 4, lost[:_MOST_DOTS], "crosses"))
        legend.append(("refused or failed", 4))
    thinned = f" One of {every} is shown." if every > 1 else ""
    bands = [Band(span.from_s, span.to_s, span.name) for span in result.spans]
    return _figure(
        "Every request",
        f"When it was due, and how long its image took. Shaded: the loads, one after the other.{thinned}",
        plot(_SECONDS, "seconds", series, bands),
        legend,
    )


def _batches(result: Result, bands: Sequence[Band]) -> str:
    rows = [Point(look.at_s, look.rows_per_batch) for look in result.looks if look.rows_per_batch is not None]
    images = [Point(look.at_s, look.images) for look in result.looks if look.images is not None]
    series = [Series("rows in a batch, on average", 1, rows, "steps"), Series("images in the engine", 2, images)]
    return _figure(
        "Batches over time",
        "An image without guidance is one row of a batch, with guidance two.",
        plot(_SECONDS, "rows, images", series, bands),
        [(each.name, each.colour) for each in series],
    )


def _occupancy(result: Result) -> str:
    assert result.batches
    counts = [(f"{100 * float(share):g}", float(count)) for share, count in result.batches.occupancy.items()]
    return _figure(
        "How full batches were", "Batches by the share of their rows that were taken, up to each share.",
        bars("rows taken, in % of the most in a batch", "batches", counts), [],
    )  # fmt: skip


def _memory(result: Result, bands: Sequence[Band]) -> str:
    resident = [Point(look.at_s, look.resident_bytes / _MB) for look in result.looks if look.resident_bytes]
    series = [Series("resident memory", 1, resident)]
    if video := [Point(look.at_s, look.vram_bytes / _MB) for look in result.looks if look.vram_bytes]:
        series.append(Series("GPU memory", 2, video))
    return _figure(
        "Memory over time",
        f"As told by {result.memory.source}.",
        plot(_SECONDS, "MB", series, bands),
        [(each.name, each.colour) for each in series],
    )


def _others(result: Result, bands: Sequence[Band]) -> str:
    cores = [Point(look.at_s, look.others_cores) for look in result.looks if look.others_cores is not None]
    shares = [Point(look.at_s, look.engine_share) for look in result.looks if look.engine_share is not None]
    series = [Series("cores used by others", 4, cores)]
    sentence = "Processor time of processes that are neither the server nor the load."
    if shares:
        sentence += " Beside it, of the server, the share of time in which its engine computed."
        series.append(Series("share of time in which the engine computed", 3, shares))
    limit = Mark(BUSY_SHARE * result.busy.cores, "busy above this, on average", "y")
    return _figure(
        "What else the machine did",
        sentence,
        plot(_SECONDS, "cores, share", series, bands, [limit]),
        [(each.name, each.colour) for each in series],
    )


def _cold_start(result: Result) -> str:
    cold = result.cold_start
    rest_s = (cold.ready_s or 0) - sum(cold.phases_s.values())
    pieces = [(name, took_s) for name, took_s in cold.phases_s.items() if took_s > 0]
    pieces.append(("all else", max(0.0, rest_s)))
    legend = [(f"{name} {took_s:.2f} s", index + 1) for index, (name, took_s) in enumerate(pieces)]
    return _figure(
        "Cold start",
        f"From the process's start to ready, {cold.ready_s:.2f} s, by what the service says of its phases.",
        stack(pieces, "s"),
        legend,
    )


def _kinds(part: Part) -> list[str]:
    return [kind.name for kind in part.kinds]


def _figure(title: str, sentence: str, drawing: str, legend: Sequence[tuple[str, int]]) -> str:
    keys = "".join(f'<li><i class="c{colour}"></i>{escape(name)}</li>' for name, colour in legend)
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3><p>{escape(sentence)}</p></figcaption>{drawing}"
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + "</figure>"
    )
