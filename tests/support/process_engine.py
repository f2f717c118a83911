"""An engine in a child process, which proves that only plain data crosses the engine's interface.

The parent sends calls over a pipe, and the child answers them over the same pipe. The child also sends progress, images
and the events of the observer. Both share only what is pickled.
"""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from sd35.engine.base import Engine, EngineStatus, GeneratedImage, Handle, Observer, OnProgress, Work
from sd35.engine.model_info import ModelInfo

_CONTEXT = get_context("spawn")


class ProcessEngine:
    """An `Engine` in a child process, which opens it by `open_engine(*args)`."""

    def __init__(self, open_engine: Callable[..., Engine], *args: Any) -> None:
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, open_engine, args), daemon=True)
        self._process.start()
        theirs.close()
        self._sending = threading.Lock()
        self._numbers = count()
        self._answers: dict[int, Future[Any]] = {}
        self._handles: dict[int, tuple[Handle, OnProgress | None]] = {}
        self._observer: Observer | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """See `Engine.models`."""
        models: tuple[ModelInfo, ...] = self._ask("models")
        return models

    @property
    def is_running(self) -> bool:
        """See `Engine.is_running`."""
        return self._process.is_alive() and bool(self._ask("is_running"))

    def submit(self, work: Work, on_progress: OnProgress | None = None, *, previews: bool = False) -> Handle:
        """See `Engine.submit`."""
        handle, number = Handle(), next(self._numbers)
        self._handles[number] = handle, on_progress
        try:
            self._ask("submit", number, work, has_progress=on_progress is not None, previews=previews)
        except BaseException:
            del self._handles[number]
            raise
        return handle

    def send_previews(self, handle: Handle) -> None:
        """See `Engine.send_previews`."""
        self._ask("send_previews", self._number_of(handle))

    def cancel(self, handle: Handle) -> None:
        """See `Engine.cancel`."""
        self._ask("cancel", self._number_of(handle))
        handle.future.cancel()

    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        status: EngineStatus = self._ask("status")
        return status

    def observe(self, observer: Observer) -> None:
        """See `Engine.observe`."""
        self._observer = observer
        self._ask("observe")

    def drain(self) -> None:
        """See `Engine.drain`."""
        self._ask("drain")

    def close(self) -> None:
        """See `Engine.close`. Ends the child too."""
        self._ask("close")
        with self._sending:
            self._connection.send(None)
        self._process.join()
        self._reader.join()
        self._connection.close()

    def _number_of(self, handle: Handle) -> int | None:
        return next((number for number, (each, _) in self._handles.items() if each is handle), None)

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        answer: Future[Any] = Future()
        with self._sending:
            number = next(self._numbers)
            self._answers[number] = answer
            self._connection.send((number, name, args, kwargs))
        return answer.result()

    def _read(self) -> None:
        while True:
            try:
                kind, number, content = self._connection.recv()
            except EOFError:
                return
            if kind in {"answer", "error"}:
                _end(self._answers.pop(number), kind, content)
            elif kind == "progress":
                _, on_progress = self._handles[number]
                assert on_progress
                on_progress(content)
            elif kind == "event":
                name, args, kwargs = content
                getattr(self._observer, name)(*args, **kwargs)
            else:
                handle, _ = self._handles[number]
                if handle.future.set_running_or_notify_cancel():
                    _end(handle.future, kind.removeprefix("image "), content)


def _end(future: Future[Any], kind: str, content: Any) -> None:
    if kind == "error":
        future.set_exception(content)
    else:
        future.set_result(content)


class _Child:
    """Answers the parent's calls with the engine of the child."""

    def __init__(self, connection: Connection, engine: Engine) -> None:
        self._connection, self._engine = connection, engine
        self._sending = threading.Lock()
        self._handles: dict[int, Handle] = {}

    def answer(self, number: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Answer one call."""
        try:
            method = getattr(self, f"_{name}", None)
            found = method(*args, **kwargs) if method else getattr(self._engine, name)
            self._send("answer", number, found(*args) if callable(found) else found)
        except Exception as error:  # noqa: BLE001  raised in the parent
            self._send("error", number, error)

    def _submit(self, number: int, work: Work, *, has_progress: bool, previews: bool) -> None:
        report = (lambda progress: self._send("progress", number, progress)) if has_progress else None
        handle = self._handles[number] = self._engine.submit(work, report, previews=previews)
        handle.future.add_done_callback(lambda future: self._ended(number, future))

    def _ended(self, number: int, future: Future[GeneratedImage]) -> None:
        try:
            self._send("image answer", number, future.result())
        except (Exception, CancelledError) as error:  # noqa: BLE001  raised in the parent
            self._send("image error", number, error)

    def _send_previews(self, number: int | None) -> None:
        if number is not None:
            self._engine.send_previews(self._handles[number])

    def _cancel(self, number: int | None) -> None:
        if number is not None:
            self._engine.cancel(self._handles[number])

    def _observe(self) -> None:
        self._engine.observe(self)

    def __getattr__(self, name: str) -> Any:
        """Return a method of an observer that sends its arguments to the parent."""
        if name not in {"encoded", "on_step_done", "failed"}:
            raise AttributeError(name)
        return lambda *args, **kwargs: self._send("event", None, (name, args, kwargs))

    def _send(self, kind: str, number: int | None, content: Any) -> None:
        with self._sending:
            self._connection.send((kind, number, content))


def _serve(connection: Connection, open_engine: Callable[..., Engine], args: tuple[Any, ...]) -> None:
    """Run the child: one thread for each call, because `drain` waits while other calls cancel."""
    child = _Child(connection, open_engine(*args))
    while call := connection.recv():
        threading.Thread(target=child.answer, args=call).start()
