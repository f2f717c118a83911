"""The scheduler at scale, on a simulated clock."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.engine.base import DeviceLimits
from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.simulation import Clock, Device, Load, Report, simulate
from sd35.engine.scheduling.step_times import ShapeTimes, StepTimes
from sd35.errors import InvalidSetting

SMALL = ShapeTimes(
    width_px=128, height_px=128, step_s={1: 0.01, 4: 0.03, 8: 0.058}, decode_s=0.02, row_bytes=10, decode_bytes=50
)
LARGE = ShapeTimes(width_px=256, height_px=256, step_s={1: 0.05, 8: 0.39}, decode_s=0.1, row_bytes=40, decode_bytes=200)
TIMES = StepTimes(
    model="mini",
    profile="onnx/float32",
    machine="none",
    memory_bytes=10**6,
    steps=28,
    guidance_scale=4.5,
    encode_s=0.002,
    shapes=[SMALL, LARGE],
)
LIMITS = DeviceLimits(max_rows=8, max_in_flight=64, max_wait_s=1e9, memory_bytes=10**6)
MIXED = Load(rps=1, requests=1, steps=[4, 12, 28], guidance=[0, 4.5], shapes=[SMALL])


def capacity_rps(shape: ShapeTimes, row_steps: float) -> float:
    """Return the images a second that a device generates one at a time."""
    return 1 / (row_steps * shape.step_s[1])


def test_a_hundred_thousand_requests_all_end():
    """Near full load, every request ends with an image or an error."""
    report = simulate(TIMES, replace(MIXED, rps=5, requests=100_000), LIMITS, devices=1)
    assert report.finished + report.refused == 100_000
    assert report.finished > 90_000
    assert 0.5 < report.utilisation <= 1


def test_a_thousand_devices_at_80_percent_load_are_nearly_as_fast_as_idle_ones():
    """The 95th percentile is at most 1.5 times that of idle devices."""
    busy_rps = 0.8 * 1000 * capacity_rps(SMALL, (4 + 12 + 28) / 3 * 1.5)
    idle = simulate(TIMES, replace(MIXED, rps=busy_rps / 100, requests=5_000), LIMITS, devices=1000)
    busy = simulate(TIMES, replace(MIXED, rps=busy_rps, requests=20_000), LIMITS, devices=1000)
    assert busy.refused == 0
    assert busy.percentile_s(95) <= 1.5 * idle.percentile_s(95)


def test_an_idle_device_takes_the_times_of_its_table():
    """The latency is the sum of encoding, steps and decoding."""
    load = Load(rps=1, requests=1, steps=[4], guidance=[4.5], shapes=[SMALL])
    report = simulate(TIMES, load, LIMITS, devices=1)
    assert report.percentile_s(50) == pytest.approx(0.002 + 4 * SMALL.step_time_s(2) + 0.02)


def test_short_images_do_not_wait_for_long_ones():
    """At a high load, the 95th percentile of 4-step images is a fraction of that of 28-step images."""
    report = simulate(TIMES, replace(MIXED, rps=4.5, requests=5_000, clients=1), LIMITS, devices=1)
    assert report.percentile_s(95, steps=4) < 0.4 * report.percentile_s(95, steps=28)


def test_a_device_at_five_times_its_capacity_refuses_some_requests_and_finishes_the_others():
    """And it is busy all the time."""
    report = simulate(TIMES, replace(MIXED, rps=30, requests=3_000), LIMITS, devices=1)
    assert report.refused > 1_500
    assert report.finished == 3_000 - report.refused
    assert report.utilisation > 0.95


@pytest.mark.parametrize("batching", [0.25, 0.7, 1.0], ids=["as on a GPU", "as on a fast CPU", "as on a slow CPU"])
def test_five_times_the_capacity_takes_accepted_images_less_than_twice_as_long(batching: float):
    """Compared with 0.8 times the capacity, for the 95th percentile of one client, whatever batching saves."""
    one = ShapeTimes(width_px=96, height_px=96, step_s={1: 1}, decode_s=0.02, row_bytes=1, decode_bytes=1)
    sizes = ((128, 0.02), (96, 0.012))
    shapes = [
        one.model_copy(update={"width_px": px, "height_px": px, "step_s": {1: step_s, 8: 8 * step_s * batching}})
        for px, step_s in sizes
    ]
    times = TIMES.model_copy(update={"shapes": shapes})
    limits = replace(LIMITS, max_in_flight=10, max_slowdown=6)
    flood = replace(MIXED, rps=100, requests=10_000, shapes=shapes, clients=1)
    full = simulate(times, flood, replace(limits, max_slowdown=math.inf), 1)
    rps = full.finished / full.lasted_s
    usual = simulate(times, replace(flood, rps=0.8 * rps, requests=2_000), limits, 1)
    over = simulate(times, replace(flood, rps=5 * rps), limits, 1)
    assert over.percentile_s(95) < 2 * usual.percentile_s(95)
    assert over.finished / over.lasted_s > 0.9 * rps


def test_a_flood_of_one_client_does_not_starve_another():
    """Each image of a modest client takes its fair time, although the other keeps 50 images in the queue."""
    clock = Clock()
    ends: dict[object, float] = {}
    device = Device(TIMES, LIMITS, clock, lambda key: ends.update({key: clock.now_s}))
    flood = WorkItem("flood", TIMES.shape(SMALL), 28, 2)
    begun: dict[object, float] = {}

    def keep_full(index: int) -> None:
        while len(device.scheduler) < 50:
            device.submit(("flood", index, len(device.scheduler)), flood)
        if index < 400:
            clock.after(0.1, lambda: keep_full(index + 1))

    def modest(index: int) -> None:
        device.submit(("modest", index), WorkItem("modest", TIMES.shape(SMALL), 28, 2))
        begun["modest", index] = clock.now_s
        if index < 10:
            clock.after(3.0, lambda: modest(index + 1))

    keep_full(0)
    clock.after(1.0, lambda: modest(0))
    clock.run()
    alone_s = 28 * SMALL.step_time_s(2)
    for key, start_s in begun.items():
        assert ends[key] - start_s < 28 * SMALL.step_time_s(8) + alone_s  # it is in every batch from the first on


@given(seed=st.integers(0, 10**6), memory_bytes=st.sampled_from([200, 300, 1000]), rows=st.integers(1, 16))
def test_every_image_ends_once_within_the_memory_limit(seed: int, memory_bytes: int, rows: int):
    """For any mix of shapes, arrivals and cancellations."""
    rng, clock = random.Random(seed), Clock()  # noqa: S311  chance, not secrecy
    ended: list[object] = []
    device = Device(TIMES, DeviceLimits(rows, 20, 1e9, memory_bytes), clock, ended.append)
    accepted, cancelled = [], []

    def arrive(key: int) -> None:
        shape = TIMES.shape(rng.choice([SMALL, LARGE]))
        device.submit(key, WorkItem(rng.randrange(3), shape, rng.randint(1, 9), rng.choice([1, 2])))
        accepted.append(key)
        if rng.random() < 0.3:
            clock.after(rng.random(), lambda: cancel(key))

    def cancel(key: int) -> None:
        if key in device.scheduler:
            device.cancel(key)
            cancelled.append(key)

    def watch() -> None:
        assert device.scheduler.used_bytes <= memory_bytes
        if len(device.scheduler):
            clock.after(0.01, watch)

    for key in range(19):
        clock.after(rng.random() * 3, lambda key=key: arrive(key))  # type: ignore[misc]
    clock.after(0.001, watch)
    clock.run()
    assert sorted([*ended, *cancelled]) == sorted(accepted) == list(range(19))  # type: ignore[type-var]
    assert device.scheduler.used_bytes == 0


def test_a_percentile_is_the_smallest_latency_that_covers_it():
    """Of all images, or of those with one number of steps."""
    report = Report(latencies_s={4: [float(n) for n in range(1, 51)], 28: [float(n) for n in range(100, 50, -1)]})
    assert [report.percentile_s(p) for p in (1, 50, 95, 100)] == [1, 50, 95, 100]
    assert [report.percentile_s(p, steps=4) for p in (1, 50, 99, 100)] == [1, 25, 50, 50]


@pytest.mark.parametrize(("rows", "expected_s"), [(1, 0.01), (2, 0.05 / 3), (8, 0.058), (10, 0.072)])
def test_step_times_are_interpolated_and_extrapolated(rows: int, expected_s: float):
    """Linearly between measured numbers of rows. Beyond the largest, the last line continues."""
    assert SMALL.step_time_s(rows) == pytest.approx(expected_s)


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    """Errors name the file and the reason."""
    TIMES.write(tmp_path / "times.json")
    assert StepTimes.read(tmp_path / "times.json") == TIMES
    (tmp_path / "times.json").write_text('{"model": 3}')
    with pytest.raises(
        InvalidSetting, match=r"is not a table of step times, because model is invalid \(Input should be a valid string"
    ):
        StepTimes.read(tmp_path / "times.json")
    with pytest.raises(InvalidSetting, match=r"cannot be read \(No such file"):
        StepTimes.read(tmp_path / "none.json")
