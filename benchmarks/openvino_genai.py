"""One image by the `openvino` backend against the same image by OpenVINO GenAI's `Text2ImagePipeline`, on the CPU.

GenAI draws three ways: with the same work done, which is what the bar is for; the same for one size alone; and as the
library comes. The default backend draws it too, and ours in BF16. GenAI's packages lie apart in `build/openvino`, for
nothing else here wants them.
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
from benchmarks.in_turns import SequentialOffload, draw_in_turns
from benchmarks.outcome import Bar, CannotRun, Outcome
from benchmarks.processes import ROOT, Worker, clean_environment

LEAST_RATIO = 1.1
# Seeds are part of the prompts, and with two digits these are too long for the embedded model's CLIP. What is too long
# loses its end token in GenAI, and in Diffusers and here the word before that: other images.
MOST_ROUNDS = 9
OURS, OURS_BF16, ONNX = "openvino", "openvino-bf16", "onnx"
SAME, FIXED, DEFAULT = "genai", "genai-fixed", "genai-default"
_SIDES = (OURS, OURS_BF16, ONNX, SAME, FIXED, DEFAULT)
_LOCK, _PACKAGES = ROOT / "requirements" / "openvino.txt", ROOT / "build" / "openvino"


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Ours and theirs in turns; images of the same work are compared, so that it is known to be the same."""
    rounds = min(rounds, MOST_ROUNDS)
    install()
    with tempfile.TemporaryDirectory(prefix="sd35-openvino-") as model, ExitStack() as workers:
        variables = {"PYTHONPATH": _python_path(), "OPENVINO_MODEL": model}
        _run([sys.executable, "-m", "benchmarks.openvino_convert", str(checkpoint), model], variables)
        sides: dict[str, Callable[..., dict[str, Any]]] = {}
        left_out: dict[str, str] = {}
        for side in _SIDES:
            try:
                sides[side] = workers.enter_context(Worker(side, checkpoint, variables)).draw
            except CannotRun as reason:
                if side in {OURS, SAME}:  # there is no bar without them
                    raise
                left_out[side] = str(reason)
        turns = draw_in_turns(sides, rounds, steps=STEPS, guidance=GUIDANCE, side_px=SIDE_PX)
    return outcome(turns, rounds, left_out)


def outcome(turns: SequentialOffload, rounds: int, left_out: Mapping[str, str] = MappingProxyType({})) -> Outcome:
    """The bar is for the same work, at any size; what else was found stands beside it.

    `left_out`: sides that this machine cannot run, and why.
    """
    differences = {side: turns.difference(side, OURS) for side in turns.answers if side != OURS}
    return Outcome(
        [Bar("OpenVINO GenAI's time / ours", turns.ratio(SAME, OURS), "x", ">=", LEAST_RATIO)],
        [
            f"{SIDE_PX} px, {STEPS} steps, guidance {GUIDANCE}, {rounds} images of each side in turns; medians",
            *map(turns.described, turns.answers),
            *(_compared(turns, side, difference) for side, difference in differences.items()),
            *(f"{side}: left out; {reason}" for side, reason in left_out.items()),
            f"a waiting side took {turns.idle_share:.1%} of a core at most",
        ],
        {
            **turns.numbers(),
            "max_difference": differences,
            "idle_share": turns.idle_share,
            "left_out": dict(left_out),
        },
    )


def _compared(turns: SequentialOffload, side: str, difference: int) -> str:
    time, cpu = turns.ratio(side, OURS), turns.ratio(side, OURS, "cpu_s")
    return (
        f"{side}: {time:.2f} times our time (single pairs {turns.pairs(side, OURS)}), {cpu:.2f} times the processor's;"
        f" its images differ by {difference} of 255 at most"
    )


def install() -> None:
    """Puts the locked packages into `build/openvino`, unless the same are there. Raises SystemExit where pip fails."""
    installed = _PACKAGES / _LOCK.name
    if installed.exists() and installed.read_bytes() == _LOCK.read_bytes():
        return
    shutil.rmtree(_PACKAGES, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "--no-deps", "--require-hashes", "--target", str(_PACKAGES), "-r", str(_LOCK)], {})
    shutil.copy(_LOCK, _PACKAGES)


def _python_path() -> str:
    """Where the sides look for packages: where this process does, then those of OpenVINO."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(_PACKAGES)]))


def _run(command: list[str], variables: dict[str, str]) -> None:
    environment = {**clean_environment(), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; it said:\n{done.stderr}")
