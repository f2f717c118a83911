"""The planner's peak against the measured one: `sd35 serve` in a new process, after its first image and one more.

Both are the most physical memory that the process ever held (VmHWM: libraries, weights, also those mapped from files,
and what computing takes). It is read every few milliseconds, for the engine sets it back to measure a call. One
image of the model's own size is asked for, guided, in one step: memory does not grow with steps. Linux only.
"""

import http.client
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.outcome import Bar, CannotRun, Outcome
from benchmarks.processes import ROOT, clean_environment
from benchmarks.watch import Watch
from sd35.bench.server import stop_process
from sd35.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.errors import InvalidSetting
from sd35.planning.fit import plan_for
from sd35.planning.plan import AvailableMemory
from sd35.settings import load_settings

MOST_ERROR = 0.1
_SERVE = "from sd35.cli import main; main()"
_ANSWER_S = 3600  # a large model on few cores


class Case(NamedTuple):
    """A way to serve."""

    backend: str
    precision: str
    offload: str


_WITH_GRAPHS = (
    Case("onnx", "float32", "none"),
    Case("onnx", "float32", "encoders"),
    Case("openvino", "float32", "none"),
    Case("openvino", "bfloat16", "none"),
    Case("diffusers", "float32", "none"),
    Case("diffusers", "float32", "model"),
)
_WITHOUT = (Case("diffusers", "bfloat16", "none"), Case("diffusers", "bfloat16", "model"))


def measure(directory: Path, rounds: int) -> Outcome:  # noqa: ARG001  a peak is the same each time but for a few MB
    """Each case once."""
    checkpoint = open_checkpoint(str(directory))
    network_sizes = network_sizes_on_disk(checkpoint)
    bars, notes = [], []
    samples: dict[str, Any] = {}
    for case in _WITH_GRAPHS if network_sizes.has_graphs else _WITHOUT:
        settings = load_settings({**case._asdict(), "checkpoints": (str(directory),), "device": "cpu"})
        (placement, *_) = plan_for(settings, [network_sizes], AvailableMemory("cpu", 0, 0)).placements
        name = f"{case.backend} {case.precision} {case.offload}"
        try:
            measured = _measured_bytes(case, checkpoint)
        except CannotRun as reason:
            notes.append(f"{name}: left out; {reason}")
            samples[name] = {"left_out": str(reason)}
            continue
        error = placement.peak_bytes / measured - 1
        bars.append(Bar(f"peak, planned against measured: {name}", abs(error), "x", "<=", MOST_ERROR))
        notes.append(f"{name}: planned {_mb(placement.peak_bytes)}, measured {_mb(measured)}: {error:+.1%}")
        samples[name] = {"planned_bytes": placement.peak_bytes, "measured_bytes": measured, "phases": placement.peaks}
    card = checkpoint.card
    return Outcome(bars, [f"{checkpoint.name}, {card.width}x{card.height} px, two rows, one step", *notes], samples)


def _measured_bytes(case: Case, checkpoint: Checkpoint) -> int:
    """The peak of a server that drew one image of the model's own size. Raises CannotRun, SystemExit."""
    flags = [word for name, value in case._asdict().items() for word in (f"--{name}", value)]
    serve = "serve --ui off --port 0 --device cpu --tiled-decode off".split()
    command = [sys.executable, "-c", _SERVE, *serve, *flags]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--checkpoint", str(checkpoint.directory)],
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        watch = Watch(process.pid)
        watch.start()
        try:
            assert process.stdout
            if found := re.match(r"Ready: http://127.0.0.1:(\d+) ", process.stdout.readline()):
                _draw(int(found[1]), checkpoint)
                return watch.finish().resident_bytes
        finally:
            watch.finish()
            with process:  # closes its pipe
                stop_process(process)
        log.seek(0)
        said = log.read()
        if process.returncode == InvalidSetting.exit_code and said:  # such as a precision the processor does not have
            raise CannotRun(said.splitlines()[-1].removeprefix("sd35: "))
        raise SystemExit(f"{' '.join(command)} drew no image; it said:\n{said}")


def _draw(port: int, checkpoint: Checkpoint) -> None:
    card = checkpoint.card
    asked = {"prompt": "a cat", "steps": 1, "guidance_scale": 4.5, "width": card.width, "height": card.height}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    connection.request("POST", "/v1/txt2img", json.dumps(asked), {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != http.client.OK:
        raise SystemExit(f"no image: {content.decode(errors='replace')}")
    connection.close()


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
