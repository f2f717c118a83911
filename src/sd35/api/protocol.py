"""uvicorn's HTTP/1.1 protocol, with limits on the resources of one connection.

The head of a request has a maximum size and must arrive in time. The parser, httptools, limits neither, and uvicorn's
timer runs only between requests: a client could hold a connection by sending one byte a minute, or fill the memory
with an endless header.

A client may pipeline requests: send further ones before the first is answered. They wait as unparsed bytes until the
request before them is answered. uvicorn itself parses everything it receives, which takes a hundred times the memory of
a small request, and resumes reading after each response. Here, reading pauses while the unparsed bytes exceed a limit.
If the request before them may generate an image, the connection is closed instead: while reading is paused, a
disconnect would go unnoticed, and the image would be generated for nobody.

If a client does not read its responses, its connection is closed after `STALLED_S`.
"""

import asyncio
import secrets
from typing import Any

import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sd35.api.errors import PROBLEM, ApiError

MAX_URL_BYTES = 8 * 1024
MAX_HEAD_BYTES = 32 * 1024
MAX_UNPARSED_BYTES = 64 * 1024
_SLICE_BYTES = 4 * 1024  # parsed at once; the parser cannot stop within a slice, even between two small requests
STALLED_S = 120.0  # a client that reads nothing for this long is disconnected
_LONG_HEAD = f"the headers of the request are too long; allowed: at most {MAX_HEAD_BYTES} bytes"


class _Flow(FlowControl):
    """uvicorn's flow control, except that reading stays paused while the connection has too many unparsed bytes."""

    is_full = False

    def resume_reading(self) -> None:
        """Resume reading, unless the connection has too many unparsed bytes."""
        if not self.is_full:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A client that exceeds a limit gets a problem document, if possible, and is disconnected.

    Attributes:
        head_timeout_s: The maximum number of seconds for the head of a request to arrive.
        stalled_s: The maximum number of seconds in which the client reads nothing while bytes wait to be sent.
    """

    head_timeout_s: float
    stalled_s: float = STALLED_S

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401  uvicorn's own arguments
        super().__init__(*args, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unparsed = bytearray()
        self._is_parsing = False
        self._pending_bytes = 0  # parsed since the parser last completed a head or a part of a body
        # The status and detail of the response if the parser stops at an error.
        self._error = (400, "the request is not valid HTTP/1.1; if the address begins with https, use http")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the timer of the first request's head."""
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers, and drop unparsed bytes."""
        self._stop_head_timer()
        self._stop_stall_timer()
        self._unparsed.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Keep received bytes, and parse them unless a request before them waits for its response."""
        self._unparsed += data
        self._parse()

    def on_response_complete(self) -> None:
        """Parse the next request. If the connection closes, watch whether the client reads the response."""
        super().on_response_complete()
        self._parse()
        if self.transport.is_closing():
            self._watch_for_stall()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and watch whether the client reads the last bytes."""
        super().timeout_keep_alive_handler()
        self._watch_for_stall()

    def pause_writing(self) -> None:
        """Start to watch for a client that does not read."""
        super().pause_writing()
        self._watch_for_stall()

    def resume_writing(self) -> None:
        """Stop watching once the client has read."""
        super().resume_writing()
        if not self.transport.is_closing():  # if it is closing, the client must still read the rest
            self._stop_stall_timer()

    def on_message_begin(self) -> None:
        """Start the timer of a request's head."""
        super().on_message_begin()
        self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        """Refuse a URL that is too long. The parser may call this several times, with one part of the URL each time.

        Internal: uvicorn catches the ValueError of the parser's callback and calls `send_400_response`.
        """
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._error = (414, f"the URL is too long; allowed: at most {MAX_URL_BYTES} bytes")
            raise ValueError("the URL is too long")

    def on_headers_complete(self) -> None:
        """Refuse a head that is too long, in the same way as `on_url`."""
        self._pending_bytes = 0
        self._stop_head_timer()
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._error = (431, _LONG_HEAD)
            raise ValueError("the head is too long")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Accept a part of a body."""
        self._pending_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's signature
        """Answer a request that the parser rejected, or that exceeds a limit."""
        self._refuse(*self._error)

    def _parse(self) -> None:
        """Parse received bytes up to the end of a request that is not answered yet.

        Then pause reading, or close the connection, if too many unparsed bytes are left.
        """
        if self._is_parsing:  # a response that ends while its request is parsed calls this again
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
        if self.flow.is_full and self.cycle.scope["method"] not in {"GET", "HEAD"}:  # it may generate an image
            self._disconnect("the client sent too many bytes before it got its response")
        elif self.flow.is_full:
            self.flow.pause_reading()
        elif was_full:
            self.flow.resume_reading()

    def _parse_part(self, part: bytes) -> None:
        """Parse one slice of the received bytes.

        Start the timer of the next head if no request is running: uvicorn's `data_received` stops its own timer, and
        bytes that begin no request, such as the rest of an unread body, must not keep the connection open.
        """
        self._pending_bytes += len(part)
        super().data_received(part)
        if self._pending_bytes > MAX_HEAD_BYTES:
            self._refuse(431, _LONG_HEAD)
        elif self.cycle is None or self.cycle.response_complete:
            self._start_head_timer()

    @property
    def _waits_for_answer(self) -> bool:
        """Whether the newest request is complete and not answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _watch_for_stall(self) -> None:
        """Start a timer that disconnects the client if it reads nothing for `stalled_s` while bytes wait to be sent."""
        self._stop_stall_timer()
        unsent_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stalled_s, self._disconnect_if_stalled, unsent_bytes)

    def _disconnect_if_stalled(self, before_bytes: int) -> None:
        """Disconnect the client if it has read nothing since the timer started. If bytes are left, restart the timer.

        `before_bytes` is the number of bytes that waited to be sent when the timer started.
        """
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes and unsent_bytes >= before_bytes:
            self._disconnect("the client does not read its response")
        elif unsent_bytes:
            self._watch_for_stall()

    def _disconnect(self, reason: str) -> None:
        structlog.get_logger("sd35.access").info("disconnected a client", reason=reason, client=self._address)
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _start_head_timer(self) -> None:
        """Start the timer of a head, unless it is running already."""
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._end_wait_for_head)

    def _end_wait_for_head(self) -> None:
        """Refuse a head that has arrived only in part, or close an idle connection."""
        if self._pending_bytes:
            self._refuse(408, f"the headers did not arrive within {self.head_timeout_s:g} s; send the request again")
        else:  # an idle connection: browsers open some in advance
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, detail: str) -> None:
        """Log a refused request, answer with a problem document if no response has begun, and close the connection."""
        if self.transport.is_closing():
            return
        request_id = secrets.token_hex(8)
        structlog.get_logger("sd35.access").info(
            "request refused", status=status, detail=detail, client=self._address, request_id=request_id
        )
        if self.cycle is None or self.cycle.response_complete:  # otherwise this would be written into another response
            headers = {"Connection": "close", "X-Request-Id": request_id}
            response = PROBLEM.response(ApiError(status, detail, headers=headers), request_id)
            lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", bytes(response.body)]))
        self.transport.close()  # the connection stays open until the client has read the response
        self._watch_for_stall()


def protocol_with_timeout(seconds: float) -> type[BoundedProtocol]:
    """Return a protocol class with this `head_timeout_s`. uvicorn creates the protocols, and needs a class for that."""

    class ProtocolWithTimeout(BoundedProtocol):
        head_timeout_s = seconds

    return ProtocolWithTimeout
