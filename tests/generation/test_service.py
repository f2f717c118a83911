"""The one path of a picture: made once however many ask, kept, found again, filtered, and not made for nobody."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from sd35 import content_filter
from sd35.content_filter import AllowAll, ContentFilter, Decision, load_filter
from sd35.engine.preview import PreviewMap
from sd35.errors import ContentRefused, InvalidSetting, NotReady, StoreUnavailable
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from sd35.generation.service import Desk, Outcome, Source
from sd35.images.png import blurred, read_png
from sd35.images.record import from_text
from sd35.storage.blobs.memory import MemoryStore
from sd35.storage.images import Holdings
from sd35.storage.jobs import Order
from tests.support.fake_backend import WAIT_S, NumpyBackend
from tests.support.services import memory_kept, service_of

ME, YOU = Source("me", "me"), Source("you", "you")


class Rule(AllowAll):
    """Refuses a prompt or picture of "evil", blurs one of "nude"; a picture is judged by its prompt."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:
        """Refused by either."""
        return Decision.REFUSE if "evil words" in prompt + negative_prompt else Decision.ALLOW

    def check_picture(self, pixels: Any, prompt: str) -> Decision:
        """Judged by the prompt."""
        assert pixels.shape[2] == 3
        return Decision.REFUSE if "evil" in prompt else Decision.BLUR if "nude" in prompt else Decision.ALLOW


class BlursPrompts(AllowAll):
    """Wants every picture blurred before it sees one."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Blurred."""
        return Decision.BLUR


class Broken(AllowAll):
    """A filter that does not work."""

    def check_picture(self, pixels: Any, prompt: str) -> Decision:  # noqa: ARG002
        """Fails."""
        raise RuntimeError("no model")


@pytest.fixture
def desk(studio: Studio) -> Desk:
    """A desk whose store is empty, with no filter."""
    return desk_with(studio, AllowAll())


def desk_with(studio: Studio, content_filter: ContentFilter) -> Desk:
    """A desk with a filter."""
    kept = memory_kept()
    return Desk(studio, kept.pictures, content_filter)


def make(desk: Desk, prompt: str, source: Source = ME, **wanted: Any) -> Coroutine[Any, Any, Outcome]:
    """A picture of a seed."""
    return desk.make(desk.studio.resolve(Wanted(prompt, **{"seed": 1, **wanted})), source)


def test_a_hundred_at_once_are_one_picture(desk: Desk, backend: NumpyBackend):
    """It is computed once, each gets the same file, and each says whether it was made for it alone."""

    async def scenario() -> list[Outcome]:
        return await asyncio.gather(*(make(desk, "a cat", Source(str(owner))) for owner in range(100)))

    outcomes = asyncio.run(scenario())
    assert len(backend.steps) == outcomes[0].request.steps
    assert len({outcome.png for outcome in outcomes}) == 1
    assert sorted(outcome.cache for outcome in outcomes) == ["miss", *["shared"] * 99]
    assert desk.pictures.index.owners(outcomes[0].request.digest) == {str(owner) for owner in range(100)}


def test_a_second_request_finds_the_first_ones_picture(desk: Desk, backend: NumpyBackend):
    """The same file, nothing computed, also for another owner; another seed is another picture."""

    async def scenario() -> list[Outcome]:
        return [await make(desk, "a cat"), await make(desk, "a cat", YOU), await make(desk, "a cat", seed=2)]

    first, second, other = asyncio.run(scenario())
    assert (first.cache, second.cache, other.cache) == ("miss", "hit", "miss")
    assert second.png == first.png != other.png
    assert len(backend.steps) == 2 * first.request.steps
    assert from_text(read_png(second.png)[1]).request == second.request == first.request
    assert desk.pictures.index.owners(first.request.digest) == {"me", "you"}


def test_a_picture_is_made_while_anyone_waits(desk: Desk, backend: NumpyBackend):
    """One of two leaves, and the other has it; both leave, and it ends before its next step, for whoever comes anew."""

    async def scenario() -> None:
        one, other = (asyncio.create_task(make(desk, "held", source)) for source in (ME, YOU))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        backend.release.set()
        assert (await other).cache == "shared"
        backend.release.clear()
        backend.started.clear()
        leaving = [asyncio.create_task(make(desk, "held", source, seed=2)) for source in (ME, YOU)]
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        anew = asyncio.create_task(make(desk, "held", seed=2))
        await asyncio.sleep(0)
        before = len(backend.steps)
        backend.release.set()
        assert (await anew).cache == "miss"
        assert len(backend.steps) <= before + anew.result().request.steps

    asyncio.run(scenario())


def test_the_filter_allows_blurs_or_refuses(studio: Studio, backend: NumpyBackend):
    """A refused prompt computes nothing, a refused picture is not kept, a blurred one does not say how it is made."""
    desk = desk_with(studio, Rule())

    async def refused(prompt: str) -> str:
        with pytest.raises(ContentRefused) as raised:
            await make(desk, prompt)
        return str(raised.value)

    async def scenario() -> tuple[list[str], Outcome, Outcome, Outcome]:
        words = [await refused("evil words")]
        assert not backend.steps
        words.append(await refused("evil"))
        return words, await make(desk, "nude"), await make(desk, "nude", YOU), await make(desk, "a nice cat")

    (prompt, picture), blurred, again, clear = asyncio.run(scenario())
    assert ("prompt" in prompt, "picture" in picture) == (True, True)
    assert (blurred.is_blurred, again.is_blurred, clear.is_blurred) == (True, True, False)
    assert (again.png, again.cache) == (blurred.png, "hit")
    pixels, text = read_png(blurred.png)
    assert text == {}
    sharp = read_png(asyncio.run(make(desk_with(studio, AllowAll()), "nude")).png)[0]
    assert np.abs(np.diff(pixels.astype(int), axis=1)).max() < np.abs(np.diff(sharp.astype(int), axis=1)).max() / 4
    digest = desk.studio.resolve(Wanted("evil", seed=1)).digest
    assert desk.pictures.index.owners(digest) == set()


CHECKS = np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((2, 2)))[..., None].repeat(3, -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("content_filter", "prompt", "is_shown"),
    [
        (AllowAll(), "nude", True),
        (Rule(), "a cat", True),
        (Rule(), "nude", False),
        (Rule(), "evil", False),
        (Broken(), "a cat", False),
        (BlursPrompts(), "a cat", False),
    ],
)
def test_the_filter_has_its_word_on_previews_too(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, content_filter: ContentFilter, prompt: str, *, is_shown: bool
):
    """What it does not allow, or has not allowed of the prompt, is blurred before anyone sees it."""
    monkeypatch.setattr(PreviewMap, "draw", lambda *_: CHECKS)
    desk, previews = desk_with(studio, content_filter), []

    async def scenario() -> None:
        with suppress(ContentRefused):
            request = desk.studio.resolve(Wanted(prompt))
            await desk.make(request, ME, lambda progress: previews.append(progress.preview()))

    asyncio.run(scenario())
    assert previews
    for preview in previews:
        assert np.array_equal(preview, CHECKS if is_shown else blurred(CHECKS))


def test_a_filter_that_fails_lets_nothing_through(studio: Studio):
    """It is not taken for one that allows, and its words are not the client's."""
    with pytest.raises(ContentRefused, match="failed at the picture") as raised:
        asyncio.run(make(desk_with(studio, Broken()), "a cat"))
    assert "no model" not in str(raised.value)


def test_a_filter_that_takes_long_holds_up_pictures_alone(studio: Studio):
    """However many wait for it: whose a key is, is told meanwhile."""
    told, says = threading.Event(), threading.Event()

    class Slow(AllowAll):
        def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
            told.set()
            assert says.wait(WAIT_S)
            return Decision.REFUSE

    async def scenario() -> None:
        desk = desk_with(studio, Slow())
        waiting = [asyncio.ensure_future(make(desk, f"cat {number}")) for number in range(100)]
        try:
            await asyncio.wait_for(asyncio.to_thread(told.wait, WAIT_S), WAIT_S)
        finally:
            says.set()
        assert all(isinstance(end, ContentRefused) for end in await asyncio.gather(*waiting, return_exceptions=True))

    asyncio.run(scenario())


def test_a_filter_is_found_by_its_import_path(monkeypatch: pytest.MonkeyPatch):
    """A class is called; what is none is refused by the setting's name."""
    assert isinstance(load_filter("sd35.content_filter:AllowAll"), AllowAll)
    monkeypatch.setattr(content_filter, "rule", Rule(), raising=False)
    assert isinstance(load_filter("sd35.content_filter:rule"), Rule)
    for path in ("nowhere:Rule", "os:nothing", "os:sep", "os"):
        with pytest.raises(InvalidSetting, match="content_filter: got"):
            load_filter(path)


def test_a_picture_is_answered_though_it_cannot_be_kept(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    """A store that does not answer costs no one who waits the picture; it says so, and can be tried again."""
    desk = desk_with(studio, AllowAll())

    def unavailable(*_: Any) -> None:
        raise StoreUnavailable("the disk is full")

    async def scenario() -> None:
        with monkeypatch.context() as broken:
            for method in ("get", "put"):
                broken.setattr(desk.pictures.files, method, unavailable)
            outcome = await make(desk, "a cat")
        assert str(outcome.unstored) == "the disk is full"
        assert read_png(outcome.png)[0].shape == (128, 128, 3)
        kept = await desk.keep(outcome, "me")
        assert kept.unstored is None
        assert (await make(desk, "a cat")).png == outcome.png

    asyncio.run(scenario())


def test_who_waits_learns_that_the_engine_closes(desk: Desk, backend: NumpyBackend):
    """Not that it left itself."""

    async def scenario() -> None:
        waiting = asyncio.create_task(make(desk, "held"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(desk.studio.engine.close))
        with pytest.raises(NotReady, match="closing"):
            await waiting
        backend.release.set()
        await closing

    asyncio.run(scenario())


class Busy(MemoryStore):
    """A store of pictures in which something happens in the midst of a call: `found` one, `removing` one."""

    found: Callable[[], object] = staticmethod(lambda: None)
    removing: Callable[[], object] = staticmethod(lambda: None)

    def get(self, name: str) -> bytes | None:
        """Read one."""
        content = super().get(name)
        if content is not None:
            happening, self.found = self.found, lambda: None  # once
            happening()
        return content

    def delete(self, name: str) -> None:
        """Remove one."""
        self.removing()
        super().delete(name)


@pytest.mark.parametrize("moment", ["found", "removing"])
def test_a_picture_removed_by_one_while_another_asks_for_it_stays(studio: Studio, moment: str):
    """Whether the removal falls into the asking, or the asking into the removal."""
    files, kept = Busy(), memory_kept()
    kept = kept._replace(pictures=Holdings(files, kept.stores.pictures))
    service = service_of(studio, kept)
    mine, yours = (Order(studio.resolve(Wanted("a cat", seed=1)), owner) for owner in ("me", "you"))
    digest = mine.request.digest

    async def scenario() -> object:
        await service.make(mine, "me")
        if moment == "found":
            files.found = lambda: asyncio.run(service.disown(digest, "me"))
            assert (await service.make(yours, "you")).cache == "hit"
        else:
            files.removing = lambda: kept.stores.pictures.add(digest, "you", 1, 0.0)
            assert await service.disown(digest, "me")
        return await service.picture(digest, "you")

    assert asyncio.run(scenario()) is not None
