"""Standard output and standard error that neither fail nor block if their reader stops reading or exits.

With Python's own streams, `print` and log calls fail once the reader of a pipe has exited or the disk is full, and
block while a pipe is full. That must not make a request fail or wait.
"""

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

MAX_BACKLOG_BYTES = 1024 * 1024
_ATOMIC_BYTES = select.PIPE_BUF  # a pipe that `poll` calls writable takes at least this much without waiting
_DRAIN_S = 1.0


class NonBlockingStream(io.TextIOBase):
    """A text stream on a file descriptor. `write` neither raises nor blocks. Thread-safe.

    Text that the descriptor cannot take now is buffered, up to `MAX_BACKLOG_BYTES`, and a later call writes it. Text
    beyond that limit, and text that cannot be written at all, is dropped, and `on_drop` is called. The descriptor stays
    in blocking mode, because other processes may share it.
    """

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self._descriptor, self._encoding = descriptor, encoding
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        # Reentrant, because a signal handler may write while it interrupts a `write` in the same thread.
        self._lock = threading.RLock()
        self.on_drop: Callable[[], None] = lambda: None

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only in the base class too
        """The name of the encoding. Characters that it lacks are written as escapes."""
        return self._encoding

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Write, buffer or drop the text. Always return its length."""
        content = text.encode(self._encoding, "backslashreplace")
        with self._lock:
            self._send()
            if self._backlog_bytes + len(content) > MAX_BACKLOG_BYTES:
                self.on_drop()
                return len(text)
            self._backlog.extend(  # in pieces, because `_send` must not wait
                content[start : start + _ATOMIC_BYTES] for start in range(0, len(content), _ATOMIC_BYTES)
            )
            self._backlog_bytes += len(content)
            self._send()
        return len(text)

    def flush(self) -> None:
        """Write as much of the backlog as the descriptor takes without waiting."""
        with self._lock:
            self._send()

    def drain(self, within_s: float = _DRAIN_S) -> None:
        """Write the backlog, waiting for the reader for at most `within_s` seconds."""
        until_s = time.monotonic() + within_s
        with self._lock:
            while self._backlog and (left_s := until_s - time.monotonic()) > 0:
                self._is_ready(left_s)
                self._send()

    def _is_ready(self, within_s: float = 0) -> bool:
        """Wait at most `within_s` seconds until a write would not block. Return False if it still would."""
        poll = select.poll()  # a new object for each call, because threads cannot share one
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(1000 * within_s))

    def _send(self) -> None:
        """Write the backlog until a write would block. Drop the backlog if it cannot be written at all."""
        while self._backlog and self._is_ready():
            content = self._backlog[0]
            try:
                sent = os.write(self._descriptor, content)
            except OSError:  # the reader has exited, or the disk is full
                self._backlog.clear()
                self._backlog_bytes = 0
                self.on_drop()
                return
            self._backlog_bytes -= sent
            if sent < len(content):
                self._backlog[0] = content[sent:]
            else:
                self._backlog.popleft()


def use_nonblocking_streams(on_drop: Callable[[], None] = lambda: None) -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that neither raise nor block, until the process ends.

    A stream that was closed before the process started is replaced by the null device. A stream without a file
    descriptor, as in tests, stays as it is.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            guarded = NonBlockingStream(os.open(os.devnull, os.O_WRONLY))
        else:
            try:
                guarded = NonBlockingStream(stream.fileno(), stream.encoding)
            except (OSError, ValueError):
                continue
        guarded.on_drop = on_drop
        setattr(sys, name, guarded)
        atexit.register(guarded.drain)
