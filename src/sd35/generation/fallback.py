"""Build missing ONNX graphs and TensorRT engines in child processes while the fallback serves requests.

The fallback is a second backend. It serves a model until the graphs or engines of the first backend are built. The
serving process does not import the code that builds them: a child process runs the command that `NotCompiled` names.
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
_JOIN_S = 1.0  # for the thread to end; if it is loading a model, `stop` does not wait longer for it
Command: TypeAlias = Callable[[Sequence[str]], list[str]]


def command_of(settings: Settings, arguments: Sequence[str]) -> list[str]:
    """Return the command line of `sd35` with `arguments`, and the files, device and threads of `settings` as flags."""
    flags = [f"--cache-dir={settings.cache_dir}", f"--device={settings.device}", f"--threads={settings.threads}"]
    flags += [f"--weights={path}" for path in settings.weights]
    flags += [f"--registry={settings.registry}"] if settings.registry else []
    flags += [f"--base-checkpoint={settings.base_checkpoint}"] if settings.base_checkpoint else []
    flags += ["--offline"] if settings.offline else []
    # -P: a file in the working directory must not replace a module of Python.
    return [sys.executable, "-P", "-c", "from sd35.cli import main; main()", *arguments, *flags]


class FallbackBuilder:
    """Builds missing graphs or engines, loads each built model, and replaces its fallback. Runs in a thread.

    Failures are logged and counted in `failures`, and the fallback stays in use.

    Args:
        pending: The checkpoints to build, one after the other.
        command: Returns the command line that runs `sd35` with the given arguments.
        open_model: Loads a built checkpoint. Raises NotCompiled if a graph or an engine is missing.
        swap: Replaces the fallback by the loaded model. Raises Overloaded if it must be called again later.
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
        self._lock = threading.Lock()  # held to start or end a child, so that none starts after `stop`
        self._child: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._build_all, name="building", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs. It ends after the last pending checkpoint, or after `stop`."""
        return self._thread.is_alive()

    @property
    def took_s(self) -> float:
        """Seconds from the start to the end of the thread, or until now if it still runs."""
        return (time.monotonic() if self.is_running else self._ended_s) - self._began_s

    def start(self) -> None:
        """Start the thread."""
        self._began_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the child process, and start no others. Does not wait for a model that the thread is loading."""
        with self._lock:
            self._stopping.set()
            if self._child:
                _end_process_group(self._child)
        if self._thread.ident:  # it was started
            self._thread.join(_JOIN_S)

    def _build_all(self) -> None:
        """Build the pending checkpoints and swap to them. The error of one checkpoint does not affect the others."""
        for checkpoint in self._pending:
            log = structlog.get_logger().bind(model=checkpoint.name)
            try:
                self._build_and_swap(checkpoint, log)
            except Exception as error:
                if not self._stopping.is_set():
                    self.failures += 1
                    log.exception("building failed, so the fallback stays; fix this and restart", error=str(error))
        self._ended_s = time.monotonic()

    def _build_and_swap(self, checkpoint: Checkpoint, log: structlog.typing.FilteringBoundLogger) -> None:
        """Build the missing files of a checkpoint, load its model, and replace the fallback by it."""
        model = self._build_and_open(checkpoint, log)
        while not self._stopping.is_set():
            try:
                self._swap(model)
            except Overloaded as error:  # the queue is full, and the swap needs to generate a first image
                self._stopping.wait(error.retry_after_s)
            else:
                log.info("the built model replaced its fallback", profile=model.profile, after_s=round(self.took_s, 3))
                return

    def _build_and_open(self, checkpoint: Checkpoint, log: structlog.typing.FilteringBoundLogger) -> ModelInfo:
        """Load the model of a checkpoint. Before that, build its graphs or engines if they are missing.

        Raises BuildFailed if a build fails, or if files are still missing after it.
        """
        built: list[tuple[str, ...]] = []  # the arguments of the builds so far
        while True:
            try:
                return self._open_model(checkpoint)
            except NotCompiled as error:
                if error.arguments in built:
                    raise BuildFailed(f"the build succeeded, but files are still missing: {error}") from error
                built.append(error.arguments)
                self._build(error.arguments, log)

    def _build(self, arguments: Sequence[str], log: structlog.typing.FilteringBoundLogger) -> None:
        """Run a build in a child process, and log its output.

        Raises BuildFailed if the child fails. Also raises it after `stop`, but then `_build_all` does not log it.
        """
        command = self._command(arguments)
        # The command has the settings as flags. `SD35_...` variables could change settings that it leaves out.
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
                start_new_session=True,  # Ctrl-C in the terminal must not reach it, because `stop` ends it
            )
        log.info("building missing files", command=" ".join(["sd35", *arguments]), pid=child.pid)
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with child:
            assert child.stdout
            for line in child.stdout:
                log.info("output of the build", output=line.rstrip())
                last.append(line)
        if child.returncode:
            output = "".join(last).strip() or "none"
            raise BuildFailed(
                f"`sd35 {' '.join(arguments)}` exited with code {child.returncode}; its last output: {output}"
            )


def _end_process_group(child: subprocess.Popen[str]) -> None:
    """Send SIGTERM to a child and to the processes that it started.

    If the child still runs after `_TERMINATE_S`, kill them with SIGKILL.
    """
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(child.pid, signal_number)
                child.wait(_TERMINATE_S)
