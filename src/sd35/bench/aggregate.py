"""From requests and what came of them to the figures of one load over all rounds."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sd35.bench.load import Asked, rate_within
from sd35.bench.results import OfKind, Part, Samples
from sd35.bench.statistics import Figure, of_rounds, percentile_of_rounds
from sd35.bench.workload import ALL

_TROUBLES = 5  # kinds of a server's words that a report holds


class Load(NamedTuple):
    """A closed loop of so many clients, or an open one of so many requests a second."""

    name: str
    clients: int | None = None
    offered: float | None = None


class Round(NamedTuple):
    """What came of a load once. Seconds are of `time.monotonic`."""

    began_s: float
    asked: list[Asked]


def closed(clients: int) -> Load:
    """So many clients, each of whom waits for an image before it asks for the next."""
    return Load(f"closed, {clients} client{'s' * (clients > 1)}", clients=clients)


def opened(rate: float) -> Load:
    """So many requests a second."""
    return Load(f"open, {rate:g}/s", offered=rate)


def opened_at_share(share: float, capacity: float) -> Load:
    """A share of the images a second that a closed loop got."""
    return Load(f"open, {share:g} of the closed loop's", offered=share * capacity)


def capacity(round_: Round, seconds: float) -> float:
    """Images a second."""
    return rate_within(round_.asked, round_.began_s, seconds, lambda _: 1.0)


def part_of(load: Load, rounds: Sequence[Round], seconds: float, origin_s: float) -> Part:
    """The figures of a load. `origin_s` is where the samples' time begins."""
    asked = [each for round_ in rounds for each in round_.asked]
    kinds = sorted({each.kind for each in asked}, key=_in_order)
    is_known = all(each.row_steps is not None for each in asked)
    said = Counter(each.said for each in asked if each.end != "made")
    return Part(
        name=load.name,
        loop="open" if load.clients is None else "closed",
        clients=load.clients,
        offered=load.offered,
        images_per_s=_rate(rounds, seconds, lambda _: 1.0),
        row_steps_per_s=_rate(rounds, seconds, lambda each: float(each.row_steps or 0)) if is_known else None,
        all=_of_kind(ALL, rounds),
        kinds=[_of_kind(kind, rounds) for kind in kinds],
        trouble=dict(said.most_common(_TROUBLES)),
        samples=_samples(rounds, origin_s),
    )


def _rate(rounds: Sequence[Round], seconds: float, of: Callable[[Asked], float]) -> Figure:
    return of_rounds([rate_within(round_.asked, round_.began_s, seconds, of) for round_ in rounds])


def _of_kind(kind: str, rounds: Sequence[Round]) -> OfKind:
    chosen = [[each for each in round_.asked if kind in {ALL, each.kind}] for round_ in rounds]
    took_s = [[each.took_s for each in asked if each.end == "made"] for asked in chosen]
    ends = Counter(each.end for asked in chosen for each in asked)
    return OfKind(
        name=kind,
        made=ends["made"],
        refused=ends["refused"],
        failed=ends["failed"],
        p50_s=percentile_of_rounds(took_s, 50),
        p95_s=percentile_of_rounds(took_s, 95),
        p99_s=percentile_of_rounds(took_s, 99),
    )


def _samples(rounds: Sequence[Round], origin_s: float) -> Samples:
    numbered: Iterable[tuple[int, Asked]] = (
        (number, each) for number, round_ in enumerate(rounds, 1) for each in round_.asked
    )
    ordered = sorted(numbered, key=lambda pair: pair[1].due_s)
    return Samples(
        round=[number for number, _ in ordered],
        kind=[each.kind for _, each in ordered],
        due_s=[round(each.due_s - origin_s, 4) for _, each in ordered],
        took_s=[round(each.took_s, 4) for _, each in ordered],
        end=[each.end for _, each in ordered],
    )


def _in_order(kind: str) -> tuple[int, str]:
    """By its number, if it begins with one: "4 steps" before "12 steps"."""
    number = kind.partition(" ")[0]
    return (int(number) if number.isdecimal() else 0, kind)
