"""One image with the `openvino` backend, compared with OpenVINO GenAI's `Text2ImagePipeline` on the CPU.

GenAI runs in three configurations: with the same work as ours, which the bar compares; the same, compiled for one size;
and with its defaults. The `onnx` backend and ours in BF16 also run. GenAI's packages are installed separately into
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
# Seeds are part of the prompts, and with two digits the prompts are too long for the embedded model's CLIP. A prompt
# that is too long loses its end token in GenAI, but its last word in Diffusers and here, so the images would differ.
MAX_ROUNDS = 9
OURS, OURS_BF16, ONNX = "openvino", "openvino-bf16", "onnx"
SAME, FIXED, DEFAULT = "genai", "genai-fixed", "genai-default"
_SIDES = (OURS, OURS_BF16, ONNX, SAME, FIXED, DEFAULT)
_LOCK, _PACKAGES = ROOT / "requirements" / "openvino.txt", ROOT / "build" / "openvino"


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Time all sides alternately, and compare their images with ours."""
    rounds = min(rounds, MAX_ROUNDS)
    install()
    with tempfile.TemporaryDirectory(prefix="sd35-openvino-") as model, ExitStack() as workers:
        variables = {"PYTHONPATH": _python_path(), "OPENVINO_MODEL": model}
        _run([sys.executable, "-m", "benchmarks.openvino_convert", str(checkpoint), model], variables)
        sides: dict[str, Callable[..., dict[str, Any]]] = {}
        left_out: dict[str, str] = {}
        for side in _SIDES:
            try:
                sides[side] = workers.enter_context(Worker(side, checkpoint, variables)).generate
            except CannotRun as reason:
                if side in {OURS, SAME}:  # the bar needs both
                    raise
                left_out[side] = str(reason)
        samples = run_interleaved(sides, rounds, steps=STEPS, guidance=GUIDANCE, side_px=SIDE_PX)
    return outcome(samples, rounds, left_out)


def outcome(samples: InterleavedSamples, rounds: int, left_out: Mapping[str, str] = MappingProxyType({})) -> Outcome:
    """Summarise the samples. The bar compares the sides that do the same work at any size.

    Args:
        samples: the samples of all sides that ran.
        rounds: the number of images of each side.
        left_out: sides that this machine cannot run, with the reason.
    """
    differences = {side: samples.difference(side, OURS) for side in samples.answers if side != OURS}
    return Outcome(
        [Bar("OpenVINO GenAI's time / ours", samples.ratio(SAME, OURS), "x", ">=", MIN_RATIO)],
        [
            f"{SIDE_PX} px, {STEPS} steps, guidance {GUIDANCE}, {rounds} images of each side, alternately; medians",
            *map(samples.describe, samples.answers),
            *(_compare(samples, side, difference) for side, difference in differences.items()),
            *(f"{side}: skipped: {reason}" for side, reason in left_out.items()),
            f"a waiting side used at most {samples.idle_share:.1%} of a core",
        ],
        {
            **samples.numbers(),
            "max_difference": differences,
            "idle_share": samples.idle_share,
            "left_out": dict(left_out),
        },
    )


def _compare(samples: InterleavedSamples, side: str, difference: int) -> str:
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
    _run([*pip, "--no-deps", "--require-hashes", "--target", str(_PACKAGES), "-r", str(_LOCK)], {})
    shutil.copy(_LOCK, _PACKAGES)


def _python_path() -> str:
    """Return the search path of the sides for packages: that of this process, then `build/openvino`."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(_PACKAGES)]))


def _run(command: list[str], variables: dict[str, str]) -> None:
    environment = {**clean_environment(), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFailed(f"{' '.join(command)} failed: {done.stderr}")
