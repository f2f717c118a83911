"""What is remembered of a client between its calls, in this process: its pictures in the making, the model it chose."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sd35.service.batch import Batch

_CLIENTS = 1000  # whose choice is remembered, the latest


class Sessions:
    """By the client that limits count by: its key, or its address where there are no keys. For the event loop."""

    def __init__(self) -> None:
        self._batches: dict[str, list[Batch]] = {}
        self._models: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def making(self, client: str, batch: Batch) -> Iterator[None]:
        """Remember a client's pictures while the block runs."""
        batches = self._batches.setdefault(client, [])
        batches.append(batch)
        try:
            yield
        finally:
            batches.remove(batch)
            if not batches:
                del self._batches[client]

    def batches(self, client: str) -> Sequence[Batch]:
        """A client's pictures in the making, the first call's first."""
        return tuple(self._batches.get(client, ()))

    def choose(self, client: str, model: str) -> None:
        """Remember the model that a client wants where it names none."""
        self._models[client] = model
        self._models.move_to_end(client)
        if len(self._models) > _CLIENTS:
            self._models.popitem(last=False)

    def model(self, client: str) -> str | None:
        """The model a client chose; None where it chose none."""
        return self._models.get(client)
