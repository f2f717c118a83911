"""Build missing graphs and engines in child processes, one after the other, while the fallback serves requests.

Serving never imports the code that builds them. A child process runs the command that the error names.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import structlog

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.model_info import ModelInfo
from sd35.errors import BuildFailed, NotCompiled, Overloaded
from sd35.settings import PREFIX, Settings

_LAST_LINES = 5  # of a failed child's output, for the error
_TERMINATE_S = 10.0  # for a child to exit after SIGTERM
_JOIN_S = 1.0  # for the thread to end; `stop` does not wait longer for it to load a model
Command: TypeAlias = Callable[[Sequence[str]], list[str]]


def command_of(settings: Settings, arguments: Sequence[str]) -> list[str]:
    """Return the command line of `sd35` with `arguments` and the settings' flags for files, device and threads."""
    flags = [f"--cache-dir={settings.cache_dir}", f"--device={settings.device}", f"--threads={settings.threads}"]
    flags += [f"--weights={path}" for path in settings.weights]
    flags += [f"--registry={settings.registry}"] if settings.registry else []
    flags += [f"--base-checkpoint={settings.base_checkpoint}"] if settings.base_checkpoint else []
    flags += ["--offline"] if settings.offline else []
    return [sys.executable, "-P", "-c", "from sd35.cli import main; main()", *arguments, *flags]


class FallbackBuilder:
    """Builds missing graphs or engines, opens each built model, and passes it to `swap`. Runs in a thread.

    Failures are logged and counted in `failures`, and the fallback stays in use.

    Args:
        pending: The checkpoints to build.
        command: Returns the command line for arguments of `sd35`.
        open_model: Loads a built checkpoint. Raises NotCompiled if a file is missing.
        swap: Replaces the fallback by the loaded model. Raises Overloaded if it should be called again later.
    """

    def __init__(
        self,
        pending: Sequence[Checkpoint],
        command: Command,
        open_model: Callable[[Checkpoint], ModelInfo],
        swap: Callable[[ModelInfo], None],
    ) -> None:
        self._pending, self._command, self._open_model, self._swap = pending, command, open_model, swap
        self._began_s = self._ended_s = 0.0
        self.failures = 0
        self._lock = threading.Lock()  # so that no child starts after `stop`
        self._child: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="building", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs, so that another swap may follow."""
        return self._thread.is_alive()

    @property
    def took_s(self) -> float:
        """Seconds from the start to the last swap, or until now."""
        return (time.monotonic() if self.is_running else self._ended_s) - self._began_s

    def start(self) -> None:
        """Start the thread."""
        self._began_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the child process and start no other. Loading a model cannot be interrupted."""
        with self._lock:
            self._stopping.set()
            if self._child:
                _end(self._child)
        if self._thread.ident:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        for checkpoint in self._pending:
            log = structlog.get_logger().bind(model=checkpoint.name)
            try:
                self._build_and_swap(checkpoint, log)
            except Exception as error:
                if not self._stopping.is_set():
                    self.failures += 1
                    log.exception("building failed; the fallback stays in use", error=str(error))
        self._ended_s = time.monotonic()

    def _build_and_swap(self, checkpoint: Checkpoint, log: structlog.typing.FilteringBoundLogger) -> None:
        """Build what is missing, open the model, and swap to it."""
        model = self._opened(checkpoint, log)
        while not self._stopping.is_set():
            try:
                self._swap(model)
            except Overloaded as error:  # the queue is full, and the swap needs to generate a first image
                self._stopping.wait(error.retry_after_s)
            else:
                log.info("swapped", profile=model.profile, after_s=round(self.took_s, 3))
                return

    def _opened(self, checkpoint: Checkpoint, log: structlog.typing.FilteringBoundLogger) -> ModelInfo:
        """Open the model. If graphs or engines are missing, build them first. Raises BuildFailed."""
        built: list[tuple[str, ...]] = []
        while True:
            try:
                return self._open_model(checkpoint)
            except NotCompiled as error:
                if error.arguments in built:
                    raise BuildFailed(f"the build did not produce the missing files: {error}") from error
                built.append(error.arguments)
                self._build(error.arguments, log)

    def _build(self, arguments: Sequence[str], log: structlog.typing.FilteringBoundLogger) -> None:
        """Run a build in a child process, and log its output. Raises BuildFailed."""
        command = self._command(arguments)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with self._lock:
            if self._stopping.is_set():
                raise BuildFailed("the service is closing")
            self._child = child = subprocess.Popen(  # noqa: S603  our own command
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that Ctrl-C does not reach it: `stop` ends it
            )
        log.info("building", command=" ".join(["sd35", *arguments]), pid=child.pid)
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with child:
            assert child.stdout
            for line in child.stdout:
                log.info("building", output=line.rstrip())
                last.append(line)
        if child.returncode:
            raise BuildFailed(f"sd35 {' '.join(arguments)} ended with {child.returncode}: {''.join(last).strip()}")


def _end(child: subprocess.Popen[str]) -> None:
    """End a child and its own children: by SIGTERM, and by SIGKILL after `_TERMINATE_S`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(child.pid, number)
                child.wait(_TERMINATE_S)
