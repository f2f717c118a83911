"""Start the measured processes in a clean environment, so that no variable of the shell affects a figure."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from benchmarks.outcome import CannotRun
from sd35.bench.load.dialects import dialect_of
from sd35.bench.run import Target
from sd35.bench.server import start_server, stop_process

ROOT = Path(__file__).parents[1]
_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_RUNTIME_PREFIXES = (
    "SD35_", "OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "ONEDNN_", "DNNL_", "TORCH", "OV_", "OPENVINO_",
)  # fmt: skip


class ProcessFailed(Exception):  # noqa: N818  named as this project's other errors
    """A process of a benchmark has ended with an error. The message contains its output."""


def clean_environment() -> dict[str, str]:
    """Return the environment variables of this process, without settings of this project or of a runtime library.

    The Hugging Face hub is offline. Each call sets a new, empty data directory, so that no process finds the results of
    another process. It is deleted when this process ends.
    """
    data_dir = tempfile.mkdtemp(prefix="sd35-benchmark-")
    atexit.register(shutil.rmtree, data_dir, ignore_errors=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_RUNTIME_PREFIXES)}
    return {**variables, "HF_HUB_OFFLINE": "1", "SD35_DATA_DIR": data_dir}


@contextmanager
def running(command: Sequence[str], variables: Mapping[str, str] = _NO_VARIABLES) -> Iterator[Target]:
    """Start a server and yield it when it is ready. Stops it at the end of the block.

    `command` must accept the option `--port`. `variables` are additional environment variables. If an error is raised,
    the end of the server's log is printed.
    """
    with start_server(command, {**clean_environment(), **variables}) as starting:
        try:
            yield Target(starting.wait_until_ready(), dialect_of("sd35"))
        except BaseException:
            print(f"{' '.join(command)} wrote:\n{starting.log.read_text(errors='replace')[-5000:]}")
            raise


def run_module(module: str, *arguments: str) -> dict[str, Any]:
    """Run a Python module in a new process. Returns the JSON object that it prints as its last line.

    Raises ProcessFailed if the process ends with an error.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ProcessFailed(f"{module} ended with exit code {done.returncode}: {done.stderr[-2000:].strip()}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


class Worker:
    """A process of `benchmarks.worker`, used as a context manager.

    The constructor waits until the process has loaded the model. It raises CannotRun if this machine cannot run the
    side.

    Args:
        side: The implementation that generates the images: a key of `benchmarks.worker.SIDES`.
        checkpoint: Directory of the checkpoint.
        variables: Additional environment variables.
    """

    def __init__(self, side: str, checkpoint: Path, variables: Mapping[str, str] = _NO_VARIABLES) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed in `_stop`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side, str(checkpoint)],
            cwd=ROOT,
            env={**clean_environment(), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        reason = self._read_answer().get("cannot_run")
        if reason:
            self._stop()
            raise CannotRun(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def generate(self, **request: float) -> dict[str, Any]:
        """Generate one image, and return the worker's answer. See `benchmarks.worker` for both."""
        assert self._process.stdin
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read_answer()

    def _stop(self) -> None:
        """Stop the process, and delete its log."""
        with self._process:  # closes its pipes
            stop_process(self._process)
        self._log.close()

    def _read_answer(self) -> dict[str, Any]:
        """Return the next answer of the process. Raises ProcessFailed if the process has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise ProcessFailed(f"benchmarks.worker ended before it answered. It wrote:\n{self._log.read()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
