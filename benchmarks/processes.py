"""The processes that are measured: all in one clean environment, so that no setting of a shell shapes a figure."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from benchmarks.outcome import CannotRun
from sd35.bench.server import stop_process

ROOT = Path(__file__).parents[1]
_SHAPING = ("SD35_", "OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "ONEDNN_", "DNNL_", "TORCH", "OV_", "OPENVINO_")


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of this project or of a runtime, and with Hugging Face offline.

    Each time with an empty data directory: what one server kept is not to be another's, or another round's, result.
    """
    data_dir = tempfile.mkdtemp(prefix="sd35-benchmark-")
    atexit.register(shutil.rmtree, data_dir, ignore_errors=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SHAPING)}
    return {**kept, "HF_HUB_OFFLINE": "1", "SD35_DATA_DIR": data_dir}


class Worker:
    """A `benchmarks.worker` that stays loaded. It is ready once this returns; it ends with the `with` block.

    Raises CannotRun if this machine cannot run the side.
    """

    def __init__(self, side: str, checkpoint: Path, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  lives as long as this does
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
        if reason := self._read().get("cannot_run"):
            self._end()
            raise CannotRun(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def draw(self, **asked: float) -> dict[str, Any]:
        """One image: see `benchmarks.worker`."""
        assert self._process.stdin
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return self._read()

    def _end(self) -> None:
        with self._process:  # closes its pipes
            stop_process(self._process)
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"a worker ended before it answered; it said:\n{self._log.read()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
