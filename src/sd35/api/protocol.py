"""uvicorn's HTTP/1.1 protocol with bounds on what one connection may cost.

A request's head has a largest size and must arrive within a time. httptools, the parser, bounds neither, and uvicorn's
own timer runs only between requests: a client could hold a connection by sending one byte a minute, or fill the memory
with a header that does not end.

Pipelined requests wait as unparsed bytes until the request before them is answered, and reading pauses when these bytes
exceed a limit. If the request before them may make something, the connection is closed then: while reading is paused, a
client that hangs up is not noticed, and its image would be made for nobody. uvicorn parses all it receives, which takes
a hundred times a small request's size, and goes on reading after each answer. A connection whose client does not read
its answers is closed after a time.
"""

import asyncio
import secrets
from typing import Any

import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sd35.api.problems import PROBLEM
from sd35.api.refusals import ApiError

MAX_URL_BYTES = 8 * 1024
MAX_HEAD_BYTES = 32 * 1024
MAX_UNPARSED_BYTES = 64 * 1024
_SLICE_BYTES = 4 * 1024  # parsed at once; the parser cannot stop inside, so these may be several small requests
STALLED_S = 120.0


class _Flow(FlowControl):
    """uvicorn's flow control, which does not resume reading while the connection has enough unparsed bytes."""

    is_full = False

    def resume_reading(self) -> None:
        """Resume reading, unless there is enough to parse."""
        if not self.is_full:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A client that breaks a bound gets a problem document, where possible, and is disconnected.

    `arrival_s`: longest time for a request's head to arrive. `stalled_s`: longest time without the client reading any
    of an answer that waits to be sent.
    """

    body_timeout_s: float
    stalled_s: float = STALLED_S

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*args, **more)
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unparsed = bytearray()
        self._is_parsing = False
        self._unread_bytes = 0  # came since the parser last handed something over
        self._wrong = (400, "what came is not HTTP")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected, and has to ask for something now."""
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._stop_timer()
        self._stop_stall_timer()
        self._unparsed.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came. Those between requests, as of a body that nobody read, do not make a connection live longer."""
        self._unparsed += data
        self._parse()

    def on_response_complete(self) -> None:
        """A request was answered: the next one may be parsed."""
        super().on_response_complete()
        self._parse()
        if self.transport.is_closing():
            self._watch_for_stall()

    def timeout_keep_alive_handler(self) -> None:
        """The client has not asked for anything more."""
        super().timeout_keep_alive_handler()
        self._watch_for_stall()

    def pause_writing(self) -> None:
        """An answer waits for the client to read."""
        super().pause_writing()
        self._watch_for_stall()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if not self.transport.is_closing():  # else the rest has to be read too
            self._stop_stall_timer()

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

    def _parse(self) -> None:
        """Parse what came, up to the end of a request that is not answered yet."""
        if self._is_parsing:  # an answer ended while its request was parsed
            return
        self._is_parsing = True
        try:
            while self._unparsed and not self._waits_for_answer and not self.transport.is_closing():
                part = bytes(self._unparsed[:_SLICE_BYTES])
                del self._unparsed[:_SLICE_BYTES]
                self._parse_part(part)
        finally:
            self._is_parsing = False
        if self.transport.is_closing():
            self._unparsed.clear()
        was_full, self.flow.is_full = self.flow.is_full, len(self._unparsed) > MAX_UNPARSED_BYTES
        if self.flow.is_full and self.cycle.scope["method"] not in {"GET", "HEAD"}:
            self._disconnect("it sent too much behind its request")
        elif self.flow.is_full:
            self.flow.pause_reading()
        elif was_full:
            self.flow.resume_reading()

    def _parse_part(self, part: bytes) -> None:
        self._unread_bytes += len(part)
        super().data_received(part)
        if self._unread_bytes > MAX_HEAD_BYTES:
            self._refuse(431, _LONG_HEAD)
        elif self.cycle is None or self.cycle.response_complete:
            self._expect_head()

    @property
    def _waits_for_answer(self) -> bool:
        """Whether the newest request is whole and not answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _watch_for_stall(self) -> None:
        """Disconnect a client that reads nothing for a time, while something waits to be sent."""
        self._stop_stall_timer()
        unsent_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stalled_s, self._close_if_stalled, unsent_bytes)

    def _close_if_stalled(self, before_bytes: int) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes and unsent_bytes >= before_bytes:
            self._disconnect("it does not read")
        elif unsent_bytes:
            self._watch_for_stall()

    def _disconnect(self, reason: str) -> None:
        structlog.get_logger("sd35.access").info("client disconnected", reason=reason, client=self._address)
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _expect_head(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.body_timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self._unread_bytes:
            self._refuse(408, f"the request's head did not arrive within {self.body_timeout_s:g} s")
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
        structlog.get_logger("sd35.access").info("refused", status=status, client=self._address, request_id=request_id)
        if self.cycle is None or self.cycle.response_complete:  # else it would fall into another answer
            headers = {"Connection": "close", "X-Request-Id": request_id}
            response = PROBLEM.response(ApiError(status, detail, headers=headers), request_id)
            lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", bytes(response.body)]))
        self.transport.close()
        self._watch_for_stall()


_LONG_HEAD = f"the request's head is longer than the {MAX_HEAD_BYTES} bytes that are allowed"


def bounded(seconds: float) -> type[BoundedProtocol]:
    """The protocol, with a time within which a head has to arrive."""

    class Bounded(BoundedProtocol):
        body_timeout_s = seconds

    return Bounded
