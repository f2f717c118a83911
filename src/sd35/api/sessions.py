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

_MAX_CHOICES = 1000  # maximum number of chosen models; the least recently used are dropped


@dataclass(frozen=True, eq=False)
class RunningCall:
    """A call whose images are being generated. `began_s` is in seconds since 1970, and used for display only."""

    batch: Batch
    name: str
    began_s: float = field(default_factory=time.time)
    _began_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        """The seconds since the call began. Corrections of the wall clock do not affect it."""
        return time.monotonic() - self._began_s

    @property
    def done(self) -> float:
        """The share of the call's steps that are done, from 0 to 1."""
        parts = [
            1.0 if task.done() else progress.step / progress.steps if progress else 0.0
            for task, progress in zip(self.batch.tasks, self.batch.progress, strict=True)
        ]
        return sum(parts) / len(parts)

    @property
    def latest(self) -> ImageProgress | None:
        """The progress of the current image. None before its first step, and after the last image."""
        index = self.batch.current
        return self.batch.progress[index] if index < len(self.batch.progress) else None


class Sessions:
    """The state of all clients, by `Caller.client`. Not thread-safe: use it in one event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, list[RunningCall]] = {}
        self._models: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def running(self, client: str, call: RunningCall) -> Iterator[None]:
        """List a call as running until the block ends."""
        calls = self._calls.setdefault(client, [])
        calls.append(call)
        try:
            yield
        finally:
            calls.remove(call)
            if not calls:
                del self._calls[client]

    def oldest(self, client: str) -> RunningCall | None:
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
