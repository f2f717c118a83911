"""What is counted and logged of pictures, whatever becomes of them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from sd35.content_filter import AllowAll, Decision
from sd35.errors import ContentRefused, Overloaded, Sd35Error, StoreUnavailable
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from sd35.generation.service import Desk, Outcome, Source
from sd35.storage.blobs.memory import MemoryStore
from sd35.storage.images import Holdings
from sd35.telemetry.report import Telemetry
from tests.support.fake_backend import WAIT_S, NumpyBackend
from tests.support.services import memory_kept


@pytest.fixture
def max_pictures() -> int:
    """Of the studio."""
    return 1


@pytest.fixture
def telemetry() -> Telemetry:
    """What counts."""
    return Telemetry()


class Strict:
    """Refuses rude words in prompts, and blurs what shows a cat."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Refused or allowed."""
        return Decision.REFUSE if "rude" in prompt else Decision.ALLOW

    def check_picture(self, pixels: Any, prompt: str) -> Decision:  # noqa: ARG002
        """Refused, blurred or allowed."""
        if "dog" in prompt:
            return Decision.REFUSE
        return Decision.BLUR if "cat" in prompt else Decision.ALLOW


class Full(MemoryStore):
    """A store without room."""

    def put(self, name: str, content: bytes) -> bool:
        """Raises StoreUnavailable."""
        raise StoreUnavailable(f"no room for {name}, {len(content)} bytes")


def make(desk: Desk, prompt: str) -> Coroutine[Any, Any, Outcome]:
    """A picture."""
    return desk.make(desk.studio.resolve(Wanted(prompt, seed=1)), Source())


def counted(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    """The values of a counter that are not 0, by its labels' values in their names' order."""
    (family,) = [each for each in telemetry.metering.registry.collect() if f"{each.name}_total" == name]
    samples = {tuple(value for _, value in sorted(each.labels.items())): each.value for each in family.samples}
    return {labels: value for labels, value in samples.items() if value}


def test_each_end_of_a_picture_is_counted(studio: Studio, backend: NumpyBackend, telemetry: Telemetry):
    """Made, failed, refused by its pixels, left by who waited; what was refused before it began is none."""
    kept = memory_kept()
    desk = Desk(studio, kept.pictures, Strict(), telemetry)

    async def scenario() -> None:
        await make(desk, "a tree")
        for prompt in ("crash", "a dog", "rude"):
            with pytest.raises(Sd35Error):
                await make(desk, prompt)
        backend.started.clear()
        held = asyncio.create_task(make(desk, "held"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)

    asyncio.run(scenario())
    assert counted(telemetry, "sd35_pictures_total") == {
        ("made",): 1,
        ("failed",): 1,
        ("refused",): 1,
        ("cancelled",): 1,
    }


def test_what_finds_no_room_is_no_picture(studio: Studio, backend: NumpyBackend, telemetry: Telemetry):
    """An overload is counted where it is answered, not as a failure."""
    kept = memory_kept()
    desk = Desk(studio, kept.pictures, AllowAll(), telemetry)

    async def scenario() -> None:
        held = asyncio.create_task(make(desk, "held"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        with pytest.raises(Overloaded):
            await make(desk, "a cat")
        backend.release.set()
        await held

    asyncio.run(scenario())
    assert counted(telemetry, "sd35_pictures_total") == {("made",): 1}


def test_the_filters_decisions_are_counted_by_what_they_are_about(studio: Studio, telemetry: Telemetry):
    """Of prompts, and of pictures: those that are refused too."""
    kept = memory_kept()
    desk = Desk(studio, kept.pictures, Strict(), telemetry)
    asyncio.run(make(desk, "a cat"))
    for prompt in ("rude", "a dog"):
        with pytest.raises(ContentRefused):
            asyncio.run(make(desk, prompt))
    assert counted(telemetry, "sd35_filter_decisions_total") == {
        ("allow", "prompt"): 2,
        ("refuse", "prompt"): 1,
        ("blur", "picture"): 1,
        ("refuse", "picture"): 1,
    }


def test_who_shares_a_picture_is_counted_as_such(studio: Studio, telemetry: Telemetry):
    """One made it, two shared it, one found it."""
    kept = memory_kept()
    desk = Desk(studio, kept.pictures, AllowAll(), telemetry)

    async def scenario() -> None:
        await asyncio.gather(*(make(desk, "a cat") for _ in range(3)))
        await make(desk, "a cat")

    asyncio.run(scenario())
    assert counted(telemetry, "sd35_result_cache_total") == {("miss",): 1, ("shared",): 2, ("hit",): 1}


def test_a_picture_that_cannot_be_stored_is_counted(studio: Studio, telemetry: Telemetry):
    """It is made all the same."""
    desk = Desk(studio, Holdings(Full(), memory_kept().stores.pictures), AllowAll(), telemetry)
    asyncio.run(make(desk, "a cat"))
    assert counted(telemetry, "sd35_unstored_pictures_total") == {(): 1}
    assert counted(telemetry, "sd35_pictures_total") == {("made",): 1}


@pytest.mark.parametrize(("log_prompts", "logged"), [(False, None), (True, f"{'a ' * 100}… (600 characters)")])
def test_prompts_are_logged_where_that_is_allowed(studio: Studio, log_prompts: bool, logged: str | None):  # noqa: FBT001
    """One line for a picture, with what it is and its stages; with its prompt, shortened, only then."""
    kept = memory_kept()
    desk = Desk(studio, kept.pictures, AllowAll(), Telemetry(log_prompts=log_prompts))
    with capture_logs() as lines:
        outcome = asyncio.run(make(desk, "a " * 300))
    (line,) = lines
    assert line["event"] == "picture"
    assert (line["digest"], line["steps"], line["size"]) == (outcome.request.digest, 4, "128x128")
    assert [name for name in line if name.endswith("_ms")] == [f"{stage.name}_ms" for stage in outcome.stages]
    assert line.get("prompt") == logged
    assert logged or "a a a" not in str(line)
