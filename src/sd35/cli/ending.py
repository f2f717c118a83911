"""How a command ends when something goes wrong: an exit code, and one line on stderr where there is something to say.

This module is imported before everything else of the command line, so it imports nothing heavy.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended

# Errors of the system that no code of ours causes: permissions, disks, limits.
_SYSTEM_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE,
        errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
    }
)  # fmt: skip


@contextmanager
def exit_when_interrupted() -> Iterator[None]:
    """Exit with 130 on Ctrl-C, also if a library turned the KeyboardInterrupt into an exception of its own."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if _is_interrupt(error):
            sys.exit(INTERRUPTED)
        raise


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn this project's errors, and the system's that are no mistake of ours, into one line and an exit code.

    What was printed is flushed at the end, so that an output that cannot be written ends the command in the same way.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no text
    from sd35.errors import Sd35Error

    try:
        try:
            yield
        finally:
            if sys.stdout:  # None if the command was started with stdout closed
                sys.stdout.flush()
    except Sd35Error as error:
        from sd35.telemetry.logs import printable

        _end(printable(str(error), keep="\n"), error.exit_code)  # a server's or a file's words may be in it
    except BrokenPipeError:
        _end(None, 1)  # whoever read the output has had enough of it
    except OSError as error:
        if error.errno not in _SYSTEM_ERRNOS:
            raise
        reason = error.strerror or str(error)
        _end(f"{error.filename}: {reason}" if error.filename else reason, 1)


def _end(line: str | None, code: int) -> None:
    """Print a line to stderr, if that can be written, and exit."""
    if line and sys.stderr:
        with suppress(OSError):
            print(f"sd35: {line}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        _give_up_if_unwritable(stream)
    sys.exit(code)


def _give_up_if_unwritable(stream: TextIO | None) -> None:
    """Point a stream that cannot be flushed at nothing; else Python complains at its end and changes the exit code."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # a stream in memory has no number
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)


def _is_interrupt(error: BaseException) -> bool:
    """Whether a KeyboardInterrupt is the exception, or in the chain of what caused it."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, KeyboardInterrupt):
            return True
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False
