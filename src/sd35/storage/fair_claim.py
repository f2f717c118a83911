"""Fair order of queued jobs, shared by all job stores."""

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import nsmallest
from typing import NamedTuple


class Candidate(NamedTuple):
    """A queued job. An older job has a lower number."""

    owner: str
    priority: int
    number: int


def choose_fairly(candidates: Iterable[Candidate], running: Mapping[str, int], limit: int) -> list[Candidate]:
    """Choose up to `limit` jobs and return them in fair order.

    The result is as if jobs were chosen one at a time. Each time, the owner with the fewest running jobs goes first,
    then the job with the highest priority, then the oldest job. A chosen job counts as running from then on.

    Args:
        candidates: The queued jobs.
        running: Number of running jobs by owner.
        limit: Maximum number of jobs to choose.
    """
    running_count = Counter(running)
    ranked = []  # tuples: number of jobs of the owner that run before this one, urgency, candidate
    for candidate in sorted(candidates, key=_urgency):
        ranked.append((running_count[candidate.owner], *_urgency(candidate), candidate))
        running_count[candidate.owner] += 1
    return [candidate for *_, candidate in nsmallest(limit, ranked)]


def _urgency(candidate: Candidate) -> tuple[int, int]:
    """Return a sort key that is lower for a higher priority, then for an older job."""
    return -candidate.priority, candidate.number
