"""Sides that generate alternately: ratios of their times, and differences of their images."""

import base64
import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmarks.interleaved import Sample, run_interleaved
from benchmarks.openvino_genai import DEFAULT, FIXED, MIN_RATIO, OURS, SAME, outcome
from benchmarks.processes import ROOT
from benchmarks.worker import SIDES
from sd35.host import HostMemory

MB = 10**6


def side(total_s: float, *, grey: int = 100, cpu_s: float = 1.0, idle_s: float = 0.0) -> Callable[..., Sample]:
    """Make a side with a time per image, processor time, and idle processor time. Its warm-up takes a minute."""
    clock_s = 0.0

    def generate(*, seed: int, steps: int) -> Sample:
        nonlocal clock_s
        before_s = clock_s + idle_s
        clock_s = before_s + cpu_s
        parts = {"encode_s": 0.1, "step_s": 0.8 / steps, "decode_s": 0.1, "peak_bytes": 5 * MB}
        pixels = base64.b64encode(bytes([grey + seed] * 12)).decode()
        took = {"total_s": total_s if seed else 60.0, "cpu_before_s": before_s, "cpu_after_s": clock_s}
        return {**took, **parts, "pixels": pixels}

    return generate


def test_sides_alternate_and_warm_ups_do_not_count() -> None:
    """In each round, each side generates the same image, in order."""
    calls = []

    def recording(name: str, generate: Callable[..., Sample]) -> Callable[..., Sample]:
        def recorded(*, seed: int, steps: int) -> Sample:
            calls.append((name, seed))
            return generate(seed=seed, steps=steps)

        return recorded

    samples = run_interleaved({"a": recording("a", side(1.0)), "b": recording("b", side(3.0))}, 2, steps=4)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert samples.ratio("b", "a") == 3.0
    assert samples.pair_ratios("b", "a") == "3.00-3.00"
    assert samples.describe("b").startswith("b 3.000 s (3.000-3.000): encode 100.0 ms, step 200.0 ms")
    assert [len(each) for each in samples.numbers().values()] == [2, 2]


def test_processor_time_excludes_that_of_waiting_sides() -> None:
    """The processor time of a side while the others generate is reported as the idle share of their time."""
    samples = run_interleaved({"a": side(1.0), "b": side(3.0, cpu_s=1.5, idle_s=0.5), "c": side(4.0)}, 1, steps=4)
    assert samples.ratio("b", "a", "cpu_s") == 1.5
    assert samples.idle_share == pytest.approx(0.5 / (60.0 + 1.0))  # during the warm-up of c and an image of a


def test_the_largest_difference_counts_in_both_directions() -> None:
    """Differences of unsigned pixels do not wrap around."""
    samples = run_interleaved({"a": side(1.0, grey=100), "b": side(1.0, grey=97)}, 1, steps=4)
    assert samples.difference("a", "b") == samples.difference("b", "a") == 3


@pytest.mark.parametrize(("their_s", "is_met"), [(1.09, False), (1.11, True)])
def test_the_openvino_bar_is_about_the_same_work(their_s: float, *, is_met: bool) -> None:
    """The time of the library with its defaults, which do less work, does not count."""
    sides = {OURS: side(1.0), SAME: side(their_s), FIXED: side(1.0), DEFAULT: side(0.4, grey=112, cpu_s=0.3)}
    found = outcome(run_interleaved(sides, 2, steps=4), rounds=2)
    (bar,) = found.bars
    assert (bar.figure, bar.is_met) == (their_s, is_met)
    assert bar.limit == MIN_RATIO == 1.1
    (with_defaults,) = (note for note in found.notes if note.startswith(f"{DEFAULT}: "))
    assert "0.40 times our time" in with_defaults
    assert "0.30 times our processor time" in with_defaults
    assert "differ by at most 12 of 255" in with_defaults
    assert sides.keys() <= SIDES.keys() & found.samples.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux does a process inherit its parent's peak")
def test_peak_memory_excludes_that_of_the_parent_process() -> None:
    """A small process started by a large one reports its own peak."""
    held = b"w" * 500 * MB
    code = "from sd35.host import HostMemory; print(HostMemory().peak_bytes())"
    small = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(small.stdout) < 300 * MB < len(held) < HostMemory().peak_bytes()
