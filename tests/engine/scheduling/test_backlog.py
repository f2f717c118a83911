"""Estimates of the remaining work of accepted images."""

import pytest

from sd35.engine.scheduling.backlog import AcceptedImage, Backlog
from sd35.engine.scheduling.cost_model import CostModel
from sd35.engine.scheduling.fair_queue import Account
from tests.support.scheduling import SMALL, work_item


def test_the_estimates_follow_the_remaining_work() -> None:
    """A step of one row takes 2 s, and decoding 3 s. Rows one by one take as long as in a batch."""
    costs = CostModel()
    costs.learn_step_time(SMALL, 1, 2.0)
    costs.learn_decode_time(SMALL, 3.0)
    backlog: Backlog[str] = Backlog(costs)
    for key, rows in (("a", 1), ("b", 2)):
        item = work_item(key, steps=4, rows=rows)
        backlog.add(key, AcceptedImage(item, Account(0.0), 0.0, 0, item.evaluations))
    assert backlog.total_s == 4 * 1 * 2 + 4 * 2 * 2 + 2 * 3
    assert backlog.slowdown == 3
    assert backlog.wait_s(work_item("new", steps=1, rows=1)) == pytest.approx(1 * 2 * (3 - 1))
    backlog.count_evaluation(backlog.images["b"])
    assert backlog.total_s == 4 * 1 * 2 + 3 * 2 * 2 + 2 * 3
    backlog.remove("b")
    assert (backlog.total_s, backlog.slowdown) == (4 * 2 + 3, 1)
