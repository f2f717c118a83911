"""The state of each client between requests: its running calls, and the model that it chose.

Other processes of the same service do not share this state.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sd35.generation.service import ImageProgress
from sd35.service.batch import Batch

_MAX_CHOICES = 1000  # clients whose chosen model is kept; the least recently used choices are dropped


@dataclass(frozen=True, eq=False)
class RunningCall:
    """A call of a client while its images are being generated.

    Attributes:
        batch: The images of the call.
        name: The name under which the API shows the call.
        began_s: When the call began, in seconds since 1970. For display only.
    """

    batch: Batch
    name: str
    began_s: float = field(default_factory=time.time)
    _began_monotonic_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        """The seconds since the call began. Corrections of the wall clock do not affect it."""
        return time.monotonic() - self._began_monotonic_s

    @property
    def done_share(self) -> float:
        """The share of the call's steps that are done, from 0 to 1. Cancelled images count as done."""
        shares = []
        for task, progress in zip(self.batch.tasks, self.batch.progress, strict=True):
            if task.done():
                shares.append(1.0)
            else:
                shares.append(progress.step / progress.steps if progress else 0.0)
        return sum(shares) / len(shares)

    @property
    def current_progress(self) -> ImageProgress | None:
        """The progress of the current image. None before its first step, and after the last image has ended."""
        index = self.batch.current
        return self.batch.progress[index] if index < len(self.batch.progress) else None


class Sessions:
    """The running calls and the chosen models of all clients. A client is named by its `Caller.client`.

    Not thread-safe: use it in one event loop.
    """

    def __init__(self) -> None:
        self._calls: dict[str, list[RunningCall]] = {}
        self._models: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def running(self, client: str, call: RunningCall) -> Iterator[None]:
        """List a call among the client's running calls until the block ends."""
        calls = self._calls.setdefault(client, [])
        calls.append(call)
        try:
            yield
        finally:
            calls.remove(call)
            if not calls:
                del self._calls[client]

    def oldest_call(self, client: str) -> RunningCall | None:
        """Return the client's oldest running call, or None."""
        return next(iter(self._calls.get(client, ())), None)

    def choose_model(self, client: str, model: str) -> None:
        """Set the model for a client's calls that do not name one."""
        self._models[client] = model
        self._models.move_to_end(client)
        if len(self._models) > _MAX_CHOICES:
            self._models.popitem(last=False)

    def chosen_model(self, client: str) -> str | None:
        """Return the model that a client chose, or None."""
        if client in self._models:
            self._models.move_to_end(client)
        return self._models.get(client)
