"""The peak memory that `sd35 plan` computes for `sd35 serve`, compared with the measured peak of a server.

The two figures are of physical memory (VmHWM), with libraries, weights mapped from files, and working memory. The peak
is sampled every few milliseconds, because the engine resets VmHWM to measure single calls. Each server starts in a new
process and generates one image of the model's default size, with guidance and in one step. More steps do not take more
memory. Linux only.
"""

from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from benchmarks.memory_watch import MemoryWatch
from benchmarks.outcome import Bar, CannotRun, Outcome
from benchmarks.processes import clean_environment
from sd35.bench.server import error_line, serve_command, start_server
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.errors import InvalidSetting, MeasuringFailed
from sd35.planning.fit import plan_for
from sd35.planning.plan import AvailableMemory
from sd35.settings import load_settings

MAX_ERROR = 0.1  # of the planned peak, relative to the measured peak
_TIMEOUT_S = 3600  # for one image of a large model on few cores


class Case(NamedTuple):
    """Settings with which a checkpoint is served."""

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
_WITHOUT_GRAPHS = (Case("diffusers", "bfloat16", "none"), Case("diffusers", "bfloat16", "model"))


def measure(directory: Path, rounds: int) -> Outcome:  # noqa: ARG001  peaks vary only by a few MB
    """Measure each case once. Skips cases that this machine cannot run."""
    checkpoint = open_checkpoint(str(directory))
    network_sizes = network_sizes_on_disk(checkpoint)
    bars, notes = [], []
    samples: dict[str, Any] = {}
    for case in _WITH_GRAPHS if network_sizes.has_graphs else _WITHOUT_GRAPHS:
        settings = load_settings({**case._asdict(), "checkpoints": (str(directory),), "device": "cpu"})
        # The case decides everything, so the available memory does not matter.
        (placement, *_) = plan_for(settings, [network_sizes], AvailableMemory("cpu", 0, 0)).placements
        name = f"{case.backend} {case.precision} {case.offload}"
        try:
            measured = _measured_bytes(case, checkpoint)
        except CannotRun as reason:
            notes.append(f"{name}: skipped: {reason}")
            samples[name] = {"left_out": str(reason)}
            continue
        error = placement.peak_bytes / measured - 1
        bars.append(Bar(f"peak, planned against measured: {name}", abs(error), "x", "<=", MAX_ERROR))
        notes.append(f"{name}: planned {_mb(placement.peak_bytes)}, measured {_mb(measured)}: {error:+.1%}")
        samples[name] = {"planned_bytes": placement.peak_bytes, "measured_bytes": measured, "phases": placement.peaks}
    card = checkpoint.card
    return Outcome(bars, [f"{checkpoint.name}, {card.width}x{card.height} px, two rows, one step", *notes], samples)


def _measured_bytes(case: Case, checkpoint: Checkpoint) -> int:
    """Start a server, generate one image, and return the peak memory of the server in bytes.

    Raises CannotRun if this machine does not support a setting.
    """
    flags = [text for name, value in case._asdict().items() for text in (f"--{name}", value)]
    fixed = ["--ui", "off", "--device", "cpu", "--tiled-decode", "off", "--checkpoint", str(checkpoint.directory)]
    with start_server(serve_command([*fixed, *flags]), clean_environment()) as starting:
        watch = MemoryWatch(starting.process.pid)
        watch.start()
        try:
            _generate(starting.wait_until_ready().url, checkpoint)
        except MeasuringFailed as error:
            if starting.process.returncode == InvalidSetting.exit_code:  # such as an unsupported precision
                raise CannotRun(error_line(starting.log)) from error
            raise
        finally:
            peaks = watch.stop()
    return peaks.resident_bytes


def _generate(url: str, checkpoint: Checkpoint) -> None:
    """Generate an image of the model's default size, with guidance and in one step."""
    card = checkpoint.card
    body = {"prompt": "a cat", "steps": 1, "guidance_scale": 4.5, "width": card.width, "height": card.height}
    response = httpx2.post(f"{url}/v1/txt2img", json=body, timeout=_TIMEOUT_S, trust_env=False)
    response.raise_for_status()


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
