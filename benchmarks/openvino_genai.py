"""The time of one image with the `openvino` backend, and with OpenVINO GenAI's `Text2ImagePipeline`, on the CPU.

GenAI runs in three configurations:

- `genai` does the same work as this project. The bar compares its time with ours.
- `genai-fixed` does the same, with graphs compiled for one size.
- `genai-default` has the library's default settings.

The `onnx` backend, and the `openvino` backend in BF16, also run. GenAI's packages are installed separately into
`build/openvino`, because nothing else needs them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.image import GUIDANCE, SIDE_PX, STEPS
from benchmarks.interleaved import InterleavedSamples, run_interleaved
from benchmarks.outcome import Bar, CannotRun, Outcome
from benchmarks.processes import ROOT, ProcessFailed, Worker, clean_environment

MIN_RATIO = 1.1
# The prompts contain the seed. With a seed of two digits, they are too long for the embedded model's CLIP. GenAI then
# removes the end token, but Diffusers and this project remove the last word, so the images would differ.
MAX_ROUNDS = 9
OURS, OURS_BF16, ONNX = "openvino", "openvino-bf16", "onnx"
SAME, FIXED, DEFAULT = "genai", "genai-fixed", "genai-default"
_SIDES = (OURS, OURS_BF16, ONNX, SAME, FIXED, DEFAULT)
_LOCK, _PACKAGES = ROOT / "requirements" / "openvino.txt", ROOT / "build" / "openvino"


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Time all sides alternately, and compare their images with ours. Skips sides that this machine cannot run."""
    rounds = min(rounds, MAX_ROUNDS)
    install()
    with tempfile.TemporaryDirectory(prefix="sd35-openvino-") as model, ExitStack() as workers:
        variables = {"PYTHONPATH": _python_path(), "OPENVINO_MODEL": model}
        _run_command([sys.executable, "-m", "benchmarks.openvino_convert", str(checkpoint), model], variables)
        sides: dict[str, Callable[..., dict[str, Any]]] = {}
        left_out: dict[str, str] = {}
        for side in _SIDES:
            try:
                sides[side] = workers.enter_context(Worker(side, checkpoint, variables)).generate
            except CannotRun as reason:
                if side in {OURS, SAME}:  # the bar compares these two
                    raise
                left_out[side] = str(reason)
        samples = run_interleaved(sides, rounds, steps=STEPS, guidance=GUIDANCE, side_px=SIDE_PX)
    return outcome(samples, rounds, left_out)


def outcome(samples: InterleavedSamples, rounds: int, left_out: Mapping[str, str] = MappingProxyType({})) -> Outcome:
    """Return the outcome of the samples. Its bar compares the two sides that do the same work at any size.

    Args:
        samples: The samples of all sides that ran.
        rounds: Number of images of each side.
        left_out: The sides that this machine cannot run, with the reasons.
    """
    differences = {side: samples.difference(side, OURS) for side in samples.answers if side != OURS}
    return Outcome(
        [Bar("OpenVINO GenAI's time / ours", samples.ratio(SAME, OURS), "x", ">=", MIN_RATIO)],
        [
            f"{SIDE_PX} px, {STEPS} steps, guidance {GUIDANCE}, {rounds} images of each side, alternately; medians",
            *map(samples.describe, samples.answers),
            *(_compare(samples, side, difference) for side, difference in differences.items()),
            *(f"{side}: skipped: {reason}" for side, reason in left_out.items()),
            f"a side that waited used at most {samples.idle_share:.1%} of a core",
        ],
        {
            **samples.numbers(),
            "max_difference": differences,
            "idle_share": samples.idle_share,
            "left_out": dict(left_out),
        },
    )


def _compare(samples: InterleavedSamples, side: str, difference: int) -> str:
    """Return a note that compares a side with ours. `difference` is the largest difference of their pixels."""
    time, cpu = samples.ratio(side, OURS), samples.ratio(side, OURS, "cpu_s")
    return (
        f"{side}: {time:.2f} times our time (single pairs {samples.pair_ratios(side, OURS)}), {cpu:.2f} times our"
        f" processor time; its images differ by at most {difference} of 255"
    )


def install() -> None:
    """Install the locked packages into `build/openvino` if they are missing. Raises ProcessFailed if pip fails."""
    installed = _PACKAGES / _LOCK.name
    if installed.exists() and installed.read_bytes() == _LOCK.read_bytes():
        return
    shutil.rmtree(_PACKAGES, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run_command([*pip, "--no-deps", "--require-hashes", "--target", str(_PACKAGES), "-r", str(_LOCK)], {})
    shutil.copy(_LOCK, _PACKAGES)


def _python_path() -> str:
    """Return PYTHONPATH for the processes of the sides: that of this process, then `build/openvino`."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(_PACKAGES)]))


def _run_command(command: list[str], variables: dict[str, str]) -> None:
    """Run a command with additional environment variables. Raises ProcessFailed, with its output, if it fails."""
    environment = {**clean_environment(), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFailed(f"{' '.join(command)} failed: {done.stderr}")
