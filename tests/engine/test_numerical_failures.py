"""Values that go bad: seen wherever it happens, counted, and made again, once, where a wider precision is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd35.checkpoints.checkpoint import Card, SkipLayers
from sd35.engine.generation import Progress, Ticket
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import Limits
from sd35.errors import PictureSpoiled
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from tests.support.fake_backend import MINI, WAIT_S, NumpyBackend, double_model

SKIP = SkipLayers((7, 8, 9), 2.8, 0.01, 0.2)
SPOILED = [
    ("nan", "not_finite", "values stopped being finite in {} at step 2 of 4"),
    ("void", "not_finite", "values stopped being finite in {} in decoding"),
    ("flat", "uniform", "the frame is of one colour in {} after decoding"),
]


@contextmanager
def studio_of(
    directory: Path, backend: NumpyBackend, *beside: NumpyBackend, max_pictures: int = 10, card: Card = MINI
) -> Iterator[Studio]:
    """A studio of one model, in as many backends; new requests are for the first."""
    models = [double_model(directory / "mini", card, each) for each in (backend, *beside)]
    limits = Limits(max_rows=8, max_pictures=max_pictures, max_wait_s=600, memory_bytes=10**9)
    with Studio(models[:1], 1024 * 1024, limits, EmbeddingCache(10**6)) as studio:
        for model in models[1:]:
            studio.add(model)
        yield studio
        for each in (backend, *beside):
            each.release.set()


def submit(studio: Studio, prompt: str, on_progress: Any = None, **wanted: Any) -> Ticket:
    """Ask for a picture."""
    return studio.submit(studio.resolve(Wanted(prompt, **{"seed": 1, **wanted})), on_progress)


@pytest.mark.parametrize(("word", "kind", "happened"), SPOILED)
def test_a_spoiled_picture_is_counted_and_says_what_to_do(tmp_path: Path, word: str, kind: str, happened: str):
    """Without a wider precision it fails, naming precision and place, and how it could be made."""
    with studio_of(tmp_path, NumpyBackend("float16")) as studio:
        with pytest.raises(PictureSpoiled) as failed:
            submit(studio, word).future.result(WAIT_S)
        assert str(failed.value).startswith(happened.format("float16") + "; a wider precision may help: as `precision`")
        assert studio.engine.spoiled == {"not_finite": 0, "uniform": 0, kind: 1}
        assert studio.engine.retried == 0


@pytest.mark.parametrize(("word", "kind"), [each[:2] for each in SPOILED])
def test_a_spoiled_picture_is_what_the_standby_makes_of_it(tmp_path: Path, word: str, kind: str):
    """It is made again from its noise: the standby's own picture, to the byte and by its record; its mates are not."""
    with studio_of(tmp_path / "own", NumpyBackend(sound=True)) as studio:
        expected = studio.finish(submit(studio, word).future.result(WAIT_S))
    narrow = NumpyBackend("float16")
    with studio_of(tmp_path / "both", narrow, NumpyBackend(sound=True)) as studio:
        mate = submit(studio, "a cat").future.result(WAIT_S)
        held = submit(studio, "held")
        assert narrow.started.wait(WAIT_S)
        spoiled, beside = submit(studio, word), submit(studio, "a cat", seed=1)
        narrow.release.set()
        assert held.future.result(WAIT_S)
        made = studio.finish(spoiled.future.result(WAIT_S))
        assert made.record.request.profile == "double/float32"
        assert made.png == expected.png
        assert beside.future.result(WAIT_S).request.profile == "double/float16"
        assert np.array_equal(beside.future.result().pixels, mate.pixels)
        assert studio.engine.spoiled == {"not_finite": 0, "uniform": 0, kind: 1}
        assert studio.engine.retried == 1


@pytest.mark.parametrize(("word", "kind", "happened"), SPOILED)
def test_what_the_standby_spoils_too_is_not_tried_a_third_time(tmp_path: Path, word: str, kind: str, happened: str):
    """Two attempts, and an error that names both, although a third backend would be there."""
    backends = NumpyBackend("float16"), NumpyBackend(), NumpyBackend(sound=True)
    backends[2].precision = "float64"
    with studio_of(tmp_path, *backends) as studio:
        with pytest.raises(PictureSpoiled) as failed:
            submit(studio, word).future.result(WAIT_S)
        again, before = happened.format("float32"), happened.format("float16")
        assert str(failed.value) == f"{again}; before that, {before}: it was tried twice"
        assert studio.engine.spoiled == {"not_finite": 0, "uniform": 0, kind: 2}
        assert studio.engine.retried == 1
        assert not backends[2].steps


@pytest.mark.parametrize("beside", ["float16", "float64"])
def test_what_holds_no_more_is_not_tried(tmp_path: Path, beside: str):
    """A standby that is narrower, or not known to be wider, makes nothing again."""
    standby = NumpyBackend(beside, sound=True)
    with studio_of(tmp_path, NumpyBackend(), standby) as studio:
        with pytest.raises(PictureSpoiled, match="in float32 at step 2 of 4; try another seed"):
            submit(studio, "nan").future.result(WAIT_S)
        assert not standby.steps


def test_what_the_standby_cannot_make_fails(tmp_path: Path):
    """Skip-layer guidance is no part of it: another picture would not be what was asked for."""
    standby = NumpyBackend(sound=True)
    standby.can_skip_layers = False
    with studio_of(tmp_path, NumpyBackend("float16"), standby, card=replace(MINI, skip_layers=SKIP)) as studio:
        with pytest.raises(PictureSpoiled, match="in float16 at step 2"):
            submit(studio, "nan", skip_layer_scale=2).future.result(WAIT_S)
        assert submit(studio, "nan", skip_layer_scale=0).future.result(WAIT_S)


def test_who_asks_for_the_same_meanwhile_waits_for_the_second_attempt(tmp_path: Path):
    """One picture for all of them; who leaves does not stop it, and progress begins anew for who listens."""
    narrow, standby = NumpyBackend("float16"), NumpyBackend(sound=True)
    narrow.release.set()
    with studio_of(tmp_path, narrow, standby) as studio:
        heard: list[int] = []

        def listen(progress: Progress) -> None:
            heard.append(progress.done)

        first = submit(studio, "held nan", listen)
        assert standby.started.wait(WAIT_S)
        joining, leaving = submit(studio, "held nan"), submit(studio, "held nan")
        studio.engine.cancel(leaving)
        standby.release.set()
        assert first.future.result(WAIT_S).pixels is joining.future.result(WAIT_S).pixels
        assert leaving.future.cancelled()
        assert heard == [1, 1, 2, 3, 4]
        assert narrow.steps == ["held nan"] * 2
        assert standby.steps == ["held nan"] * 4


def test_a_second_attempt_that_nobody_waits_for_is_stopped(tmp_path: Path):
    """The last to leave ends it before its next step, and the same can be asked for again."""
    narrow, standby = NumpyBackend("float16"), NumpyBackend(sound=True)
    narrow.release.set()
    with studio_of(tmp_path, narrow, standby) as studio:
        leaving = submit(studio, "held nan", steps=50)
        assert standby.started.wait(WAIT_S)
        studio.engine.cancel(leaving)
        standby.release.set()
        assert submit(studio, "held nan", steps=50).future.result(WAIT_S)
        assert standby.steps == ["held nan"] * 51


def test_a_second_attempt_is_accepted_in_a_full_house_and_finished_by_a_drain(tmp_path: Path):
    """What was accepted is made: no limit is applied again, and closing waits for it."""
    narrow = NumpyBackend("float16")
    with studio_of(tmp_path, narrow, NumpyBackend(sound=True), max_pictures=2) as studio:
        tickets = [submit(studio, "held"), submit(studio, "flat")]
        narrow.release.set()
        studio.engine.drain()
        profiles = [ticket.future.result(0).request.profile for ticket in tickets]
        assert profiles == ["double/float16", "double/float32"]
