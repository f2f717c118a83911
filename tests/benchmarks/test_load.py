"""The benchmarks of the service under load, each run for a few seconds. Whether bars are met is not checked."""

from math import isfinite

import pytest

from benchmarks import overload, service_cost, soak
from benchmarks.overload import Durations
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED

DIRECTORY = open_checkpoint(EMBEDDED).directory


def test_overload_answers_each_request_with_an_image_or_a_refusal():
    """Capacity, the baseline and the overload are measured."""
    outcome = overload.measure(
        DIRECTORY, 1, Durations(warm_up_s=1, closed_s=2, baseline_s=2, overload_s=3, images=1, steps=16)
    )
    figures = {bar.what: bar.figure for bar in outcome.bars}
    assert figures["responses that are neither an image nor 429"] == 0
    assert figures["p95 of accepted requests at 5x capacity / at 0.8x"] > 0
    assert len(outcome.samples["overload"]) > len(outcome.samples["baseline"])
    assert isfinite(figures["steps of an image after its client disconnected"])


def test_the_service_cost_is_measured_with_free_images():
    """Large images report each stage. All figures are above 0."""
    outcome = service_cost.measure(DIRECTORY, 1, images=2, small_s=1)
    stages = outcome.samples["large"][0][1]
    assert list(stages) == ["queue", "encode", "denoise", "decode", "png", "store"]
    assert min(bar.figure for bar in outcome.bars) > 0


def test_a_soak_runs_every_action(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """No response is unexpected, and the table shows the growth of memory."""
    monkeypatch.setattr("sys.argv", ["soak", "--minutes", "0.06"])
    with pytest.raises(SystemExit) as ended:  # memory still grows in a short run, because caches fill
        soak.main()
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "resident memory per 1,000 images" in printed
    assert "concurrent_requests" in printed
