"""The state of each client between requests: its running calls, and the model it chose. In this process only."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sd35.generation.service import ImageProgress
from sd35.service.batch import Batch

_MAX_CHOICES = 1000  # chosen models; the least recently used are dropped


@dataclass(frozen=True, eq=False)
class RunningCall:
    """A call whose images are being generated. `began_s` is in seconds since 1970, for display only."""

    batch: Batch
    name: str
    began_s: float = field(default_factory=time.time)
    _began_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        """Seconds since it began, unaffected by corrections of the wall clock."""
        return time.monotonic() - self._began_s

    @property
    def done(self) -> float:
        """The share of its steps that are done, from 0 to 1."""
        parts = [
            1.0 if task.done() else progress.step / progress.steps if progress else 0.0
            for task, progress in zip(self.batch.tasks, self.batch.progress, strict=True)
        ]
        return sum(parts) / len(parts)

    @property
    def latest(self) -> ImageProgress | None:
        """The progress of the current image; None before its first step, and when all images have ended."""
        index = self.batch.current
        return self.batch.progress[index] if index < len(self.batch.progress) else None


class Sessions:
    """The state of all clients by `Caller.client`. For an event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, list[RunningCall]] = {}
        self._models: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def running(self, client: str, call: RunningCall) -> Iterator[None]:
        """List a client's call as running until the block ends."""
        calls = self._calls.setdefault(client, [])
        calls.append(call)
        try:
            yield
        finally:
            calls.remove(call)
            if not calls:
                del self._calls[client]

    def oldest(self, client: str) -> RunningCall | None:
        """Return the client's running call that began first."""
        return next(iter(self._calls.get(client, ())), None)

    def choose_model(self, client: str, model: str) -> None:
        """Set the model of a client's calls that name none."""
        self._models[client] = model
        self._models.move_to_end(client)
        if len(self._models) > _MAX_CHOICES:
            self._models.popitem(last=False)

    def chosen_model(self, client: str) -> str | None:
        """Return the model that a client chose, or None."""
        if client in self._models:
            self._models.move_to_end(client)
        return self._models.get(client)
