"""The benchmarks of the service under load, really run for a moment each: what they measure is another matter."""

from math import isfinite

import pytest

from benchmarks import overload, service_cost, soak
from benchmarks.overload import Durations
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED

DIRECTORY = open_checkpoint(EMBEDDED).directory


def test_overload_answers_each_request_with_a_image_or_a_refusal():
    """Capacity, the usual load and five times the capacity are measured; nothing is answered with anything else."""
    outcome = overload.measure(
        DIRECTORY, 1, Durations(warm_s=1, closed_s=2, usual_s=2, overload_s=3, images=1, steps=16)
    )
    figures = {bar.what: bar.figure for bar in outcome.bars}
    assert figures["answers that are neither image nor 429"] == 0
    assert figures["p95 of who is let in at 5 times capacity / at 0.8"] > 0
    assert len(outcome.samples["overload"]) > len(outcome.samples["usual"])
    assert isfinite(figures["steps of an image after its client hung up"])


def test_the_services_cost_is_taken_from_images_that_cost_nothing():
    """Each stage of large images is there, and small ones come."""
    outcome = service_cost.measure(DIRECTORY, 1, images=2, small_s=1)
    stages = outcome.samples["large"][0][1]
    assert list(stages) == ["queue", "encode", "denoise", "decode", "png", "image_store"]
    assert min(bar.figure for bar in outcome.bars) > 0


def test_soaking_does_all_that_clients_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A mixed load runs to its end with nothing refused that should not be, and the table says what memory does."""
    monkeypatch.setattr("sys.argv", ["soak", "--minutes", "0.06"])
    with pytest.raises(SystemExit) as ended:  # so short a time says nothing of memory: caches fill
        soak.main()
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "resident memory per 1,000 images" in said
    assert "call_twice" in said
