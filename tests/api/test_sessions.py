"""The state of a client's calls while they run."""

import time
from typing import TYPE_CHECKING, cast

import pytest

from sd35.api.sessions import RunningCall

if TYPE_CHECKING:
    from sd35.service.batch import Batch


def test_how_long_a_call_runs_does_not_depend_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch):
    running = RunningCall(cast("Batch", None), "txt2img")
    for now_s in (time.time() - 3600, time.time() + 3600):
        monkeypatch.setattr(time, "time", lambda now_s=now_s: now_s)
        assert 0 <= running.took_s < 1800
