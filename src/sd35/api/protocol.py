"""HTTP as uvicorn reads it, with bounds: a request's head is of a size, and arrives within a time.

httptools, the parser, bounds neither, and uvicorn's own timer runs only between a connection's requests: else a client
could hold a connection by one byte a minute, or fill the memory with a header that does not end.
"""

import asyncio
import secrets
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sd35.api.problems import PROBLEM
from sd35.api.refusals import RequestRefused

MAX_URL_BYTES = 8 * 1024
MAX_HEAD_BYTES = 32 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Whoever breaks a bound is told by a problem, as far as that can be, and let go."""

    arrival_s: float

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*args, **more)
        self._timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0  # came since the parser last handed something over
        self._wrong = (400, "what came is not HTTP")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected, and has to ask for something now."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came. Those between requests, as of a body that nobody read, do not make a connection live longer."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES:
            self._refuse(431, _LONG_HEAD)
        elif self.cycle is None or self.cycle.response_complete:
            self._expect_head()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._wrong = (414, f"the address is longer than the {MAX_URL_BYTES} bytes that are allowed")
            raise ValueError("the address is too long")  # ends the parsing, and comes back as `send_400_response`

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        self._unread_bytes = 0
        self._stop_timer()
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._wrong = (431, _LONG_HEAD)
            raise ValueError("the head is too long")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._unread_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words
        """The parser ended: by itself, or by a bound."""
        self._refuse(*self._wrong)

    def _expect_head(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.arrival_s, self._give_up)

    def _give_up(self) -> None:
        if self._unread_bytes:
            self._refuse(408, f"the request's head did not arrive within {self.arrival_s:g} s")
        else:  # a browser's connection in reserve: nobody asked for anything
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, detail: str) -> None:
        if self.transport.is_closing():
            return
        request_id = secrets.token_hex(8)
        client = self.client[0] if self.client else ""
        structlog.get_logger("sd35.access").info("refused", status=status, client=client, request_id=request_id)
        if self.cycle is None or self.cycle.response_complete:  # else it would fall into another answer
            headers = {"Connection": "close", "X-Request-Id": request_id}
            response = PROBLEM.response(RequestRefused(status, detail, headers=headers), request_id)
            lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", bytes(response.body)]))
        self.transport.close()


_LONG_HEAD = f"the request's head is longer than the {MAX_HEAD_BYTES} bytes that are allowed"


def bounded(seconds: float) -> type[BoundedProtocol]:
    """The protocol, with a time within which a head has to arrive."""

    class Bounded(BoundedProtocol):
        arrival_s = seconds

    return Bounded
