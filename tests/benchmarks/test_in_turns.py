"""Sides that draw in turns: who takes how many times whose time, and whether they drew the same image."""

import base64
import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmarks.in_turns import Sample, draw_in_turns
from benchmarks.openvino_genai import DEFAULT, FIXED, LEAST_RATIO, OURS, SAME, outcome
from benchmarks.processes import ROOT
from benchmarks.worker import SIDES, peak_bytes

MB = 10**6


def side(total_s: float, *, grey: int = 100, cpu_s: float = 1.0, idle_s: float = 0.0) -> Callable[..., Sample]:
    """One that takes so long for each image, but for the first, and so much of the processor, also between two."""
    clock_s = 0.0

    def draw(*, seed: int, steps: int) -> Sample:
        nonlocal clock_s
        before_s = clock_s + idle_s
        clock_s = before_s + cpu_s
        parts = {"encode_s": 0.1, "step_s": 0.8 / steps, "decode_s": 0.1, "peak_bytes": 5 * MB}
        pixels = base64.b64encode(bytes([grey + seed] * 12)).decode()
        took = {"total_s": total_s if seed else 60.0, "cpu_before_s": before_s, "cpu_after_s": clock_s}
        return {**took, **parts, "pixels": pixels}

    return draw


def test_sides_take_turns_and_the_first_image_of_each_is_not_counted() -> None:
    """Every round asks each side once, in order, for the same image; the warm-up's minute shows nowhere."""
    asked = []

    def noting(name: str, draw: Callable[..., Sample]) -> Callable[..., Sample]:
        def noted(*, seed: int, steps: int) -> Sample:
            asked.append((name, seed))
            return draw(seed=seed, steps=steps)

        return noted

    turns = draw_in_turns({"a": noting("a", side(1.0)), "b": noting("b", side(3.0))}, 2, steps=4)
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert turns.ratio("b", "a") == 3.0
    assert turns.pairs("b", "a") == "3.00-3.00"
    assert turns.described("b").startswith("b 3.000 s (3.000-3.000): encode 100.0 ms, step 200.0 ms")
    assert [len(samples) for samples in turns.numbers().values()] == [2, 2]


def test_processor_time_is_compared_apart_from_what_a_waiting_side_takes() -> None:
    """`cpu_s` is that of the image; what a side burns while the others draw is its idle share of their time."""
    turns = draw_in_turns({"a": side(1.0), "b": side(3.0, cpu_s=1.5, idle_s=0.5), "c": side(4.0)}, 1, steps=4)
    assert turns.ratio("b", "a", "cpu_s") == 1.5
    assert turns.idle_share == pytest.approx(0.5 / (60.0 + 1.0))  # c warms up meanwhile, a has done so


def test_the_largest_difference_counts_whichever_side_is_brighter() -> None:
    """Pixels are compared as numbers, not as bytes that wrap."""
    turns = draw_in_turns({"a": side(1.0, grey=100), "b": side(1.0, grey=97)}, 1, steps=4)
    assert turns.difference("a", "b") == turns.difference("b", "a") == 3


@pytest.mark.parametrize(("their_s", "is_met"), [(1.09, False), (1.11, True)])
def test_openvino_is_held_to_the_same_work(their_s: float, *, is_met: bool) -> None:
    """The bar is for the side that does our work, however fast the library is where it does less."""
    sides = {OURS: side(1.0), SAME: side(their_s), FIXED: side(1.0), DEFAULT: side(0.4, grey=112, cpu_s=0.3)}
    found = outcome(draw_in_turns(sides, 2, steps=4), rounds=2)
    (bar,) = found.bars
    assert (bar.figure, bar.is_met) == (their_s, is_met)
    assert bar.limit == LEAST_RATIO == 1.1
    (as_it_comes,) = (note for note in found.notes if note.startswith(f"{DEFAULT}: "))
    assert "0.40 times our time" in as_it_comes
    assert "0.30 times the processor's" in as_it_comes
    assert "differ by 12 of 255" in as_it_comes
    assert sides.keys() <= SIDES.keys() & found.samples.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts from nothing")
def test_a_side_does_not_inherit_its_parents_peak_of_memory() -> None:
    """A small process that a large one starts reports its own peak."""
    held = b"w" * 500 * MB
    code = "from benchmarks.worker import peak_bytes; print(peak_bytes())"
    small = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(small.stdout) < 300 * MB < len(held) < peak_bytes()
