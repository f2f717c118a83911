"""What is kept of each client from one request to the next, while the process lives: its calls, and its model."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sd35.generation.service import ImageProgress
from sd35.service.batch import Batch

_MOST_CHOICES = 1000  # of models; the ones that were not asked for longest are forgotten


@dataclass(frozen=True, eq=False)
class Running:
    """A call whose images are being made. `began_s` is in seconds since 1970, to be shown; see `took_s`."""

    batch: Batch
    name: str
    began_s: float = field(default_factory=time.time)
    _began_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        """Seconds since it began. A correction of the wall clock does not change them."""
        return time.monotonic() - self._began_s

    @property
    def done(self) -> float:
        """How much of it is done, from 0 to 1."""
        parts = [
            1.0 if task.done() else progress.step / progress.steps if progress else 0.0
            for task, progress in zip(self.batch.tasks, self.batch.progress, strict=True)
        ]
        return sum(parts) / len(parts)

    @property
    def latest(self) -> ImageProgress | None:
        """Of the image whose turn it is; None before its first step, and where all have ended."""
        place = self.batch.current
        return self.batch.progress[place] if place < len(self.batch.progress) else None


class Sessions:
    """Clients by their names, see `Caller.client`. For an event loop."""

    def __init__(self) -> None:
        self._running: dict[str, list[Running]] = {}
        self._models: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def running(self, client: str, call: Running) -> Iterator[None]:
        """The client's call runs until the block ends."""
        calls = self._running.setdefault(client, [])
        calls.append(call)
        try:
            yield
        finally:
            calls.remove(call)
            if not calls:
                del self._running[client]

    def first(self, client: str) -> Running | None:
        """The client's call that began first of those that run."""
        return next(iter(self._running.get(client, ())), None)

    def choose(self, client: str, model: str) -> None:
        """Remember which model a client wants where it does not say."""
        self._models[client] = model
        self._models.move_to_end(client)
        if len(self._models) > _MOST_CHOICES:
            self._models.popitem(last=False)

    def chosen(self, client: str) -> str | None:
        """The name of the model that a client chose; None where it chose none, or long ago."""
        if client in self._models:
            self._models.move_to_end(client)
        return self._models.get(client)
