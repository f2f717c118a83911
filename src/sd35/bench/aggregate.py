"""Aggregate the requests of one load over all rounds into throughput, latencies and counts."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from sd35.bench.load.generator import Amount, RequestResult, completion_rate
from sd35.bench.load.workload import ALL_CLASSES
from sd35.bench.results import ClassResult, LoadResult, RequestColumns
from sd35.bench.statistics import Estimate, estimate, percentile_of_rounds

_MAX_ERRORS = 5  # different error messages in a result


class Load(NamedTuple):
    """A closed loop with a number of `clients`, or an open loop of `offered_per_s` requests a second.

    The field of the other kind is None.
    """

    name: str
    clients: int | None = None
    offered_per_s: float | None = None


class Round(NamedTuple):
    """The requests of one load in one round. `start_s` is its start by `time.monotonic`."""

    start_s: float
    results: list[RequestResult]


def closed_load(clients: int) -> Load:
    """Describe a closed loop: each client waits for an image before it requests the next."""
    return Load(f"closed, {clients} client{'s' * (clients > 1)}", clients=clients)


def open_load(rate: float) -> Load:
    """Describe an open loop of `rate` requests a second."""
    return Load(f"open, {rate:g}/s", offered_per_s=rate)


def open_load_at(share: float, capacity: float) -> Load:
    """Describe an open loop at a share of `capacity`, the images a second of the closed loop."""
    return Load(f"open, {share:g} of the closed loop's", offered_per_s=share * capacity)


def load_result(load: Load, rounds: Sequence[Round], seconds: float, origin_s: float) -> LoadResult:
    """Aggregate all rounds of a load. A round takes `seconds`. Times in the result count from `origin_s`."""
    results = [result for round_ in rounds for result in round_.results]
    names = sorted({result.class_name for result in results}, key=_class_sort_key)
    has_row_steps = all(result.row_steps is not None for result in results)
    errors = Counter(result.message for result in results if result.status != "completed")
    return LoadResult(
        name=load.name,
        loop="open" if load.clients is None else "closed",
        clients=load.clients,
        offered_per_s=load.offered_per_s,
        images_per_s=_estimate_rate(rounds, seconds, lambda _: 1.0),
        row_steps_per_s=_estimate_rate(rounds, seconds, _row_steps_of) if has_row_steps else None,
        all=_class_result(ALL_CLASSES, rounds),
        classes=[_class_result(name, rounds) for name in names],
        errors=dict(errors.most_common(_MAX_ERRORS)),
        requests=_request_columns(rounds, origin_s),
    )


def _row_steps_of(result: RequestResult) -> float:
    return float(result.row_steps or 0)


def _estimate_rate(rounds: Sequence[Round], seconds: float, amount: Amount) -> Estimate:
    """Estimate the amount completed a second from its value in each round."""
    return estimate([completion_rate(round_.results, round_.start_s, seconds, amount) for round_ in rounds])


def _class_result(name: str, rounds: Sequence[Round]) -> ClassResult:
    """Count the requests of one class, or of all classes for ALL_CLASSES, and estimate their latencies."""
    counts: Counter[str] = Counter()
    latencies_s: list[list[float]] = []  # of the completed requests of each round
    for round_ in rounds:
        results = [result for result in round_.results if name in {ALL_CLASSES, result.class_name}]
        counts.update(result.status for result in results)
        latencies_s.append([result.latency_s for result in results if result.status == "completed"])
    return ClassResult(
        name=name,
        completed=counts["completed"],
        refused=counts["refused"],
        failed=counts["failed"],
        p50_s=percentile_of_rounds(latencies_s, 50),
        p95_s=percentile_of_rounds(latencies_s, 95),
        p99_s=percentile_of_rounds(latencies_s, 99),
    )


def _request_columns(rounds: Sequence[Round], origin_s: float) -> RequestColumns:
    """Return all requests as columns, in the order of their scheduled times. Rounds count from 1."""
    numbered = [(number, result) for number, round_ in enumerate(rounds, 1) for result in round_.results]
    ordered = sorted(numbered, key=lambda pair: pair[1].scheduled_s)
    return RequestColumns(
        round=[number for number, _ in ordered],
        class_name=[result.class_name for _, result in ordered],
        scheduled_s=[round(result.scheduled_s - origin_s, 4) for _, result in ordered],
        latency_s=[round(result.latency_s, 4) for _, result in ordered],
        status=[result.status for _, result in ordered],
    )


def _class_sort_key(name: str) -> tuple[int, str]:
    """Return the key that sorts class names by a leading number: "4 steps" comes before "12 steps"."""
    number = name.partition(" ")[0]
    return (int(number) if number.isdecimal() else 0, name)
