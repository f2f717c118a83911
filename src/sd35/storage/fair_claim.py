"""Fair order of queued jobs. Pure policy, shared by all job stores."""

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import nsmallest
from typing import NamedTuple


class Candidate(NamedTuple):
    """A queued job. Of equal priority, the lower number is the older job."""

    owner: str
    priority: int
    number: int


def choose_fairly(candidates: Iterable[Candidate], running: Mapping[str, int], limit: int) -> list[Candidate]:
    """Choose up to `limit` jobs in order, as if one by one.

    Each choice takes a job of the owner with the fewest running jobs, then the highest priority, then the oldest.
    Chosen jobs count as running for later choices.

    Args:
        candidates: The queued jobs.
        running: Number of running jobs by owner.
        limit: Maximum number of jobs.
    """
    running_count = Counter(running)
    ranked = []
    for candidate in sorted(candidates, key=_urgency):
        ranked.append((running_count[candidate.owner], *_urgency(candidate), candidate))
        running_count[candidate.owner] += 1
    return [candidate for *_, candidate in nsmallest(limit, ranked)]


def _urgency(candidate: Candidate) -> tuple[int, int]:
    return -candidate.priority, candidate.number
