"""The one path of an image: made once however many ask, kept, found again, filtered, and not made for nobody."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from sd35 import content_filter
from sd35.content_filter import AllowAll, ContentFilter, Decision, load_filter
from sd35.engine.local.preview import PreviewMap
from sd35.errors import ContentRefused, InvalidSetting, NotReady, StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult, GenerationService, ImageProgress, Requester
from sd35.images.png import read_png
from sd35.images.record import from_text
from sd35.images.resize import blurred
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.storage.jobs import JobSpec
from tests.support.fake_backend import WAIT_S, FakeBackend
from tests.support.services import memory_storage, service_of

ME, YOU = Requester("me", "me"), Requester("you", "you")


class Rule(AllowAll):
    """Refuses a prompt or image of "evil", blurs one of "nude"; an image is judged by its prompt."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:
        """Refused by either."""
        return Decision.REFUSE if "evil words" in prompt + negative_prompt else Decision.ALLOW

    def check_image(self, pixels: Any, prompt: str) -> Decision:
        """Judged by the prompt."""
        assert pixels.shape[2] == 3
        return Decision.REFUSE if "evil" in prompt else Decision.BLUR if "nude" in prompt else Decision.ALLOW


class BlursPrompts(AllowAll):
    """Wants every image blurred before it sees one."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Blurred."""
        return Decision.BLUR


class Broken(AllowAll):
    """A filter that does not work."""

    def check_image(self, pixels: Any, prompt: str) -> Decision:  # noqa: ARG002
        """Fails."""
        raise RuntimeError("no model")


@pytest.fixture
def generation_service(pool: ModelPool) -> GenerationService:
    """A generation service whose store is empty, with no filter."""
    return service_with(pool, AllowAll())


def service_with(pool: ModelPool, content_filter: ContentFilter) -> GenerationService:
    """A generation service with a filter."""
    storage = memory_storage()
    return GenerationService(pool, storage.images, content_filter)


def make(
    generation_service: GenerationService, prompt: str, source: Requester = ME, **wanted: Any
) -> Coroutine[Any, Any, GenerationResult]:
    """An image of a seed."""
    return generation_service.generate(
        generation_service.pool.resolve(GenerationParams(prompt, **{"seed": 1, **wanted})), source
    )


def test_a_hundred_equal_requests_at_once_compute_one_image(
    generation_service: GenerationService, backend: FakeBackend
):
    """It is computed once, each gets the same file, and each says whether it was made for it alone."""

    async def scenario() -> list[GenerationResult]:
        return await asyncio.gather(*(make(generation_service, "a cat", Requester(str(owner))) for owner in range(100)))

    outcomes = asyncio.run(scenario())
    assert len(backend.steps) == outcomes[0].request.steps
    assert len({outcome.png for outcome in outcomes}) == 1
    assert sorted(outcome.cache for outcome in outcomes) == ["miss", *["shared"] * 99]
    assert generation_service.images.ownership.owners(outcomes[0].request.digest) == {
        str(owner) for owner in range(100)
    }


def test_an_equal_request_is_a_cache_hit(generation_service: GenerationService, backend: FakeBackend):
    """The same file, nothing computed, also for another owner; another seed is another image."""

    async def scenario() -> list[GenerationResult]:
        return [
            await make(generation_service, "a cat"),
            await make(generation_service, "a cat", YOU),
            await make(generation_service, "a cat", seed=2),
        ]

    first, second, other = asyncio.run(scenario())
    assert (first.cache, second.cache, other.cache) == ("miss", "hit", "miss")
    assert second.png == first.png != other.png
    assert len(backend.steps) == 2 * first.request.steps
    assert from_text(read_png(second.png)[1]).request == second.request == first.request
    assert generation_service.images.ownership.owners(first.request.digest) == {"me", "you"}


def test_a_shared_image_is_generated_until_its_last_client_cancels(
    generation_service: GenerationService, backend: FakeBackend
):
    """One of two leaves, and the other has it; both leave, and it ends before its next step, for whoever comes anew."""

    async def scenario() -> None:
        backend.hold()
        one, other = (asyncio.create_task(make(generation_service, "a cat", source)) for source in (ME, YOU))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        backend.release.set()
        assert (await other).cache == "shared"
        backend.hold()
        leaving = [asyncio.create_task(make(generation_service, "a cat", source, seed=2)) for source in (ME, YOU)]
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        anew = asyncio.create_task(make(generation_service, "a cat", seed=2))
        await asyncio.sleep(0)
        before = len(backend.steps)
        backend.release.set()
        assert (await anew).cache == "miss"
        assert len(backend.steps) <= before + anew.result().request.steps

    asyncio.run(scenario())


def test_the_filter_allows_blurs_or_refuses(pool: ModelPool, backend: FakeBackend):
    """A refused prompt computes nothing, a refused image is not kept, a blurred one does not say how it is made."""
    generation_service = service_with(pool, Rule())

    async def refused(prompt: str) -> str:
        with pytest.raises(ContentRefused) as raised:
            await make(generation_service, prompt)
        return str(raised.value)

    async def scenario() -> tuple[list[str], GenerationResult, GenerationResult, GenerationResult]:
        words = [await refused("evil words")]
        assert not backend.steps
        words.append(await refused("evil"))
        return (
            words,
            await make(generation_service, "nude"),
            await make(generation_service, "nude", YOU),
            await make(generation_service, "a nice cat"),
        )

    (prompt, image), blurred, again, clear = asyncio.run(scenario())
    assert ("prompt" in prompt, "image" in image) == (True, True)
    assert (blurred.is_blurred, again.is_blurred, clear.is_blurred) == (True, True, False)
    assert (again.png, again.cache) == (blurred.png, "hit")
    pixels, text = read_png(blurred.png)
    assert text == {}
    sharp = read_png(asyncio.run(make(service_with(pool, AllowAll()), "nude")).png)[0]
    assert np.abs(np.diff(pixels.astype(int), axis=1)).max() < np.abs(np.diff(sharp.astype(int), axis=1)).max() / 4
    digest = generation_service.pool.resolve(GenerationParams("evil", seed=1)).digest
    assert generation_service.images.ownership.owners(digest) == set()


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
def test_previews_are_blurred_unless_the_filter_allows_them(
    pool: ModelPool, monkeypatch: pytest.MonkeyPatch, content_filter: ContentFilter, prompt: str, *, is_shown: bool
):
    """What it does not allow, or has not allowed of the prompt, is blurred before anyone sees it."""
    monkeypatch.setattr(PreviewMap, "draw", lambda *_: CHECKS)
    generation_service, previews = service_with(pool, content_filter), list[ImageProgress]()

    async def scenario() -> None:
        with suppress(ContentRefused):
            request = generation_service.pool.resolve(GenerationParams(prompt))
            await generation_service.generate(request, ME, previews.append, previews=True)

    asyncio.run(scenario())
    assert previews
    for progress in previews:
        assert progress.preview
        assert np.array_equal(progress.preview(), CHECKS if is_shown else blurred(CHECKS))


def test_a_filter_that_fails_lets_nothing_through(pool: ModelPool):
    """It is not taken for one that allows, and its words are not the client's."""
    with pytest.raises(ContentRefused, match="failed at the image") as raised:
        asyncio.run(make(service_with(pool, Broken()), "a cat"))
    assert "no model" not in str(raised.value)


def test_a_slow_filter_does_not_delay_key_lookups(pool: ModelPool):
    """However many wait for it: whose a key is, is told meanwhile."""
    told, says = threading.Event(), threading.Event()

    class Slow(AllowAll):
        def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
            told.set()
            assert says.wait(WAIT_S)
            return Decision.REFUSE

    async def scenario() -> None:
        generation_service = service_with(pool, Slow())
        waiting = [asyncio.ensure_future(make(generation_service, f"cat {number}")) for number in range(100)]
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


def test_an_image_that_cannot_be_stored_is_still_returned(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """A store that does not answer costs no one who waits the image; it says so, and can be tried again."""
    generation_service = service_with(pool, AllowAll())

    def unavailable(*_: Any) -> None:
        raise StoreUnavailable("the disk is full")

    async def scenario() -> None:
        with monkeypatch.context() as broken:
            for method in ("get", "put"):
                broken.setattr(generation_service.images.blobs, method, unavailable)
            outcome = await make(generation_service, "a cat")
        assert str(outcome.unstored) == "the disk is full"
        assert read_png(outcome.png)[0].shape == (128, 128, 3)
        storage = await generation_service.store(outcome, "me")
        assert storage.unstored is None
        assert (await make(generation_service, "a cat")).png == outcome.png

    asyncio.run(scenario())


def test_clients_waiting_for_an_image_learn_that_the_engine_closes(
    generation_service: GenerationService, backend: FakeBackend
):
    """Not that it left itself."""

    async def scenario() -> None:
        backend.hold()
        waiting = asyncio.create_task(make(generation_service, "a cat"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(generation_service.pool.engine.close))
        with pytest.raises(NotReady, match="closing"):
            await waiting
        backend.release.set()
        await closing

    asyncio.run(scenario())


class Busy(MemoryBlobStore):
    """A store of images in which something happens in the midst of a call: `found` one, `removing` one."""

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
def test_an_image_requested_by_another_client_survives_a_concurrent_removal(pool: ModelPool, moment: str):
    """Whether the removal falls into the asking, or the asking into the removal."""
    files, storage = Busy(), memory_storage()
    storage = storage._replace(images=ImageStore(files, storage.database.ownership))
    service = service_of(pool, storage)
    mine, yours = (JobSpec(pool.resolve(GenerationParams("a cat", seed=1)), owner) for owner in ("me", "you"))
    digest = mine.request.digest

    async def scenario() -> object:
        await service.generate(mine, "me")
        if moment == "found":
            files.found = lambda: asyncio.run(service.disown(digest, "me"))
            assert (await service.generate(yours, "you")).cache == "hit"
        else:
            files.removing = lambda: storage.database.ownership.add(digest, "you", 1, 0.0)
            assert await service.disown(digest, "me")
        return await service.image(digest, "you")

    assert asyncio.run(scenario()) is not None
