"""The output streams of a server: writing neither raises nor blocks, whatever their readers do."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.api.output_streams import MAX_BACKLOG_BYTES, NonBlockingStream, use_nonblocking_streams


class Pipe:
    """A pipe whose write end is wrapped in the stream. `dropped` counts calls of `on_drop`."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.stream = NonBlockingStream(self.write_end)
        self.dropped = 0
        self.stream.on_drop = self._count

    def _count(self) -> None:
        self.dropped += 1

    def close_reader(self) -> None:
        """Close the read end."""
        os.close(self.read_end)
        self.read_end = -1

    def close(self) -> None:
        """Close both ends."""
        for end in (self.read_end, self.write_end):
            if end >= 0:
                os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe that nobody reads until the test does."""
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_text_arrives_as_it_was_written(pipe: Pipe):
    print("Ready: ", "é", "\udcff", file=pipe.stream)
    assert os.read(pipe.read_end, 1000).decode() == "Ready:  é \\udcff\n"
    assert pipe.dropped == 0


@given(texts=st.lists(st.text(max_size=9000), max_size=30))
def test_a_late_reader_gets_all_buffered_text_in_order(texts: list[str]):
    pipe = Pipe()
    for text in texts:
        assert pipe.stream.write(text) == len(text)
    expected = "".join(texts).encode("utf-8", "backslashreplace")
    found = b""
    while len(found) < len(expected):
        found += os.read(pipe.read_end, 65536)
        pipe.stream.flush()
    assert found == expected
    assert pipe.dropped == 0
    pipe.close()


def test_a_pipe_that_nobody_reads_takes_bounded_memory(pipe: Pipe):
    """Text beyond the limit is dropped as a whole, and counted."""
    line = "x" * 99 + "\n"
    count = MAX_BACKLOG_BYTES // 50
    for _ in range(count):
        pipe.stream.write(line)
    assert pipe.dropped > 0
    buffered_bytes = (count - pipe.dropped) * len(line)
    found = b""
    while len(found) < buffered_bytes:
        found += os.read(pipe.read_end, 65536)
        pipe.stream.flush()
    assert found.decode() == line * (count - pipe.dropped)


def test_text_for_a_reader_that_exited_is_dropped_and_counted(pipe: Pipe):
    pipe.close_reader()
    pipe.stream.write("lost")
    pipe.stream.write("lost too")
    pipe.stream.drain()
    assert pipe.dropped == 2


def test_a_full_disk_is_not_an_error():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        stream = NonBlockingStream(full.fileno())
        print("lost", file=stream, flush=True)


def test_draining_a_pipe_that_nobody_reads_ends(pipe: Pipe):
    pipe.stream.write("x" * 500_000)
    pipe.stream.drain(0.01)


def test_a_stream_that_was_closed_before_the_process_started_is_replaced(monkeypatch: pytest.MonkeyPatch):
    """Python sets such a stream to None, and logging would fail."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    use_nonblocking_streams()
    assert not sys.stderr.isatty()
    sys.stdout.write("lost")
    sys.stdout.flush()
