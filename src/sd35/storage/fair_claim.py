"""Whose job is next. Pure policy, for every store."""

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import nsmallest
from typing import NamedTuple


class Candidate(NamedTuple):
    """A queued job; of equal priority, the lower number is the older one."""

    owner: str
    priority: int
    number: int


def fairest(candidates: Iterable[Candidate], running: Mapping[str, int], most: int) -> list[Candidate]:
    """Up to `most`, as if taken one by one: of the owner who has the fewest running, then by priority, then by age.

    What is taken counts as running from then on.
    """
    had = Counter(running)
    ranked = []
    for candidate in sorted(candidates, key=_before):
        ranked.append((had[candidate.owner], *_before(candidate), candidate))
        had[candidate.owner] += 1
    return [candidate for *_, candidate in nsmallest(most, ranked)]


def _before(candidate: Candidate) -> tuple[int, int]:
    return -candidate.priority, candidate.number
