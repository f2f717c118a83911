"""An HTTP client that costs as little as it can: it shares two cores with the server that is measured."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self


class Answer(NamedTuple):
    """An answer, and the seconds from sending the request to its last byte. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float

    def json(self) -> Any:  # noqa: ANN401  whatever came
        """The body."""
        return json.loads(self.body)


class Connection:
    """One connection to a port of this machine; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Self:
        """Connected."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**24))

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it, as far as is known."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A request and its answer."""
        began_s = time.perf_counter()
        self.send(method, path, body, headers)
        status, found = await self._head()
        if found.get("transfer-encoding") == "chunked":
            content = b"".join([chunk async for chunk in self._chunks()])
        else:
            content = await self._reader.readexactly(int(found.get("content-length", 0)))
        return Answer(status, found, content, time.perf_counter() - began_s)

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """A request alone."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(content)}"]
        lines += ["content-type: application/json"] if content else []
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    async def follow(self, path: str, most: int | None = None) -> int:
        """How many server-sent events came: all until the stream's end, or, where it is left before, `most`."""
        self.send("GET", path)
        await self._head()
        events = 0
        async for chunk in self._chunks():
            events += chunk.count(b"event: ")
            if most is not None and events >= most:
                break
        return events

    def leave(self) -> None:
        """Close it, whatever is under way."""
        self._writer.transport.abort()

    async def _head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)


_KEPT_S = 3.0  # less than uvicorn keeps an idle connection: else it may close one just as it is used again


class Client:
    """Connections that are used again, as many as requests are under way."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[tuple[Connection, float]] = []  # and since when

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, _ in self._idle:
            connection.leave()

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A request and its answer; the seconds are without connecting."""
        connection = self._reused() or await Connection.to(self.port)
        try:
            answer = await connection.ask(method, path, body, headers)
        except BaseException:
            connection.leave()
            raise
        self._idle.append((connection, time.monotonic()))
        return answer

    def _reused(self) -> Connection | None:
        while self._idle:
            connection, since_s = self._idle.pop()
            if connection.is_open and time.monotonic() - since_s < _KEPT_S:
                return connection
            connection.leave()
        return None
