"""Shapes, their costs and work items for the scheduler's tests."""

from sd35.engine.base import DeviceLimits
from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.cost_model import CostModel, Shape
from sd35.engine.scheduling.scheduler import Scheduler

SMALL, LARGE, HUGE = Shape("mini", 8, 8), Shape("mini", 16, 16), Shape("mini", 32, 32)
LIMITS = DeviceLimits(max_rows=8, max_in_flight=1000, max_wait_s=1e9, memory_bytes=10_000)
ROW_S = 0.01


def make_scheduler(limits: DeviceLimits = LIMITS) -> Scheduler[object]:
    """Create a scheduler that knows the costs of two shapes.

    A row of SMALL takes 10 ms and 100 bytes, and decoding an image takes 500 bytes. LARGE takes four times as much.
    """
    costs = CostModel()
    for shape, scale in ((SMALL, 1), (LARGE, 4)):
        costs.learn_step_time(shape, 1, ROW_S * scale)
        costs.learn_step_bytes(shape, 1, 100 * scale)
        costs.learn_decode_bytes(shape, 500 * scale)
    return Scheduler(limits, costs)


def work_item(client: str = "a", steps: int = 4, rows: int = 1, shape: Shape = SMALL, priority: int = 0) -> WorkItem:
    """Create a work item. The defaults are for tests that do not depend on them."""
    return WorkItem(client, shape, steps, rows, priority)  # type: ignore[arg-type]
