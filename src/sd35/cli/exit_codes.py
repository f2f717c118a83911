"""End a command that fails with an exit code, and an error message on stderr.

This module is imported before the rest of the command line, so it imports nothing of this project at the top.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# Errors of the operating system that are not defects of this project: permissions, disks, limits.
_SYSTEM_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE,
        errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
    }
)  # fmt: skip


@contextmanager
def exit_when_interrupted() -> Iterator[None]:
    """Exit with 130 on Ctrl-C, even if a library turned the KeyboardInterrupt into an exception of its own."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if _is_interrupt(error):
            sys.exit(INTERRUPTED)
        raise


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn errors of this project and of the operating system into a message and an exit code.

    Other exceptions pass unchanged. Flushes stdout at the end, because output that cannot be written is also an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may be invalid UTF-8
    from sd35.errors import Sd35Error

    try:
        try:
            yield
        finally:
            if sys.stdout:  # None if the command was started with stdout closed
                sys.stdout.flush()
    except Sd35Error as error:
        from sd35.telemetry.logs import printable

        # The message may quote text of a server or a file, which may contain control characters.
        _print_error_and_exit(printable(str(error), keep="\n"), error.exit_code)
    except BrokenPipeError:
        _print_error_and_exit(None, 1)  # the reader has closed the pipe, as `head` does
    except OSError as error:
        if error.errno not in _SYSTEM_ERRNOS:
            raise
        reason = error.strerror or str(error)
        _print_error_and_exit(f"{error.filename}: {reason}" if error.filename else reason, 1)


def _print_error_and_exit(message: str | None, exit_code: int) -> NoReturn:
    """Print a message, if any, to stderr, and exit. An stderr that cannot be written is ignored."""
    if message and sys.stderr:
        with suppress(OSError):
            print(f"sd35: {message}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        _discard_if_unwritable(stream)
    sys.exit(exit_code)


def _discard_if_unwritable(stream: TextIO | None) -> None:
    """Redirect a stream that cannot be flushed to the null device.

    Otherwise Python would fail to flush it when the process exits, and change the exit code.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # a stream in memory has no file descriptor
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, stream.fileno())
            os.close(null_device)


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an exception, or one in its chain of causes, is a KeyboardInterrupt."""
    visited: set[int] = set()  # a chain of causes may be a circle
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited:
        if isinstance(cause, KeyboardInterrupt):
            return True
        visited.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False
