"""The generation service: shared generations, the store, the content filter, and cancellation."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

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
    """Refuses prompts with "evil words" and images of prompts with "evil", and blurs images of prompts with "nude"."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:
        """Judge both prompts."""
        return Decision.REFUSE if "evil words" in prompt + negative_prompt else Decision.ALLOW

    def check_image(self, pixels: Any, prompt: str) -> Decision:
        """Judge the image by its prompt."""
        assert pixels.shape[2] == 3
        return Decision.REFUSE if "evil" in prompt else Decision.BLUR if "nude" in prompt else Decision.ALLOW


class BlursPrompts(AllowAll):
    """Requires that all images are blurred."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Return BLUR."""
        return Decision.BLUR


class FailingFilter(AllowAll):
    """A filter that fails."""

    def check_image(self, pixels: Any, prompt: str) -> Decision:  # noqa: ARG002
        """Raise an error."""
        raise RuntimeError("no model")


@pytest.fixture
def generation_service(pool: ModelPool) -> GenerationService:
    """A generation service without a filter, with an empty store."""
    return service_with(pool, AllowAll())


def service_with(pool: ModelPool, content_filter: ContentFilter) -> GenerationService:
    """Return a generation service with a filter, and an empty store."""
    storage = memory_storage()
    return GenerationService(pool, storage.images, content_filter)


def generate(
    generation_service: GenerationService, prompt: str, requester: Requester = ME, **params: Any
) -> Coroutine[Any, Any, GenerationResult]:
    """Generate an image with seed 1, unless `params` has another seed."""
    return generation_service.generate(
        generation_service.pool.resolve(GenerationParams(prompt, **{"seed": 1, **params})), requester
    )


def test_a_hundred_simultaneous_equal_requests_generate_one_image(
    generation_service: GenerationService, backend: FakeBackend
):
    """All of them own the same file. One of them was a cache miss, and the others shared its image."""

    async def scenario() -> list[GenerationResult]:
        return await asyncio.gather(
            *(generate(generation_service, "a cat", Requester(str(owner))) for owner in range(100))
        )

    results = asyncio.run(scenario())
    assert len(backend.steps) == results[0].request.steps
    assert len({result.png for result in results}) == 1
    assert sorted(result.cache for result in results) == ["miss", *["shared"] * 99]
    assert generation_service.images.ownership.owners(results[0].request.digest) == {str(owner) for owner in range(100)}


def test_an_equal_request_is_a_cache_hit(generation_service: GenerationService, backend: FakeBackend):
    """Even of another owner. Another seed is a cache miss."""

    async def scenario() -> list[GenerationResult]:
        return [
            await generate(generation_service, "a cat"),
            await generate(generation_service, "a cat", YOU),
            await generate(generation_service, "a cat", seed=2),
        ]

    first, second, other = asyncio.run(scenario())
    assert (first.cache, second.cache, other.cache) == ("miss", "hit", "miss")
    assert second.png == first.png != other.png
    assert len(backend.steps) == 2 * first.request.steps
    assert from_text(read_png(second.png)[1]).request == second.request == first.request
    assert generation_service.images.ownership.owners(first.request.digest) == {"me", "you"}


def test_a_shared_image_is_generated_until_its_last_caller_cancels(
    generation_service: GenerationService, backend: FakeBackend
):
    """It then ends before its next step, and a new request starts from the beginning."""

    async def scenario() -> None:
        backend.hold()
        one, other = (asyncio.create_task(generate(generation_service, "a cat", requester)) for requester in (ME, YOU))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        backend.release.set()
        assert (await other).cache == "shared"
        backend.hold()
        leaving = [
            asyncio.create_task(generate(generation_service, "a cat", requester, seed=2)) for requester in (ME, YOU)
        ]
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        new = asyncio.create_task(generate(generation_service, "a cat", seed=2))
        await asyncio.sleep(0)
        before = len(backend.steps)
        backend.release.set()
        assert (await new).cache == "miss"
        assert len(backend.steps) <= before + new.result().request.steps

    asyncio.run(scenario())


def test_the_filter_allows_blurs_or_refuses(pool: ModelPool, backend: FakeBackend):
    """A refused prompt computes nothing, a refused image is not stored, and a blurred image has no record."""
    generation_service = service_with(pool, Rule())

    async def refused(prompt: str) -> str:
        with pytest.raises(ContentRefused) as raised:
            await generate(generation_service, prompt)
        return str(raised.value)

    async def scenario() -> tuple[list[str], GenerationResult, GenerationResult, GenerationResult]:
        messages = [await refused("evil words")]
        assert not backend.steps
        messages.append(await refused("evil"))
        return (
            messages,
            await generate(generation_service, "nude"),
            await generate(generation_service, "nude", YOU),
            await generate(generation_service, "a nice cat"),
        )

    (prompt, image), blurred, repeated, clear = asyncio.run(scenario())
    assert ("prompt" in prompt, "image" in image) == (True, True)
    assert (blurred.is_blurred, repeated.is_blurred, clear.is_blurred) == (True, True, False)
    assert (repeated.png, repeated.cache) == (blurred.png, "hit")
    pixels, text = read_png(blurred.png)
    assert text == {}
    sharp = read_png(asyncio.run(generate(service_with(pool, AllowAll()), "nude")).png)[0]
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
        (FailingFilter(), "a cat", False),
        (BlursPrompts(), "a cat", False),
    ],
)
def test_previews_are_blurred_unless_the_filter_allows_them(
    pool: ModelPool, monkeypatch: pytest.MonkeyPatch, content_filter: ContentFilter, prompt: str, *, is_shown: bool
):
    """Both the prompt and the preview must be allowed."""
    monkeypatch.setattr(PreviewMap, "to_rgb", lambda *_: CHECKS)
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


def test_a_failing_filter_refuses_all_images(pool: ModelPool):
    """The response does not have the exception's message. The log says which exception the filter raised, and where."""
    with capture_logs() as logs, pytest.raises(ContentRefused, match="failed on the image") as raised:
        asyncio.run(generate(service_with(pool, FailingFilter()), "a cat"))
    assert "no model" not in str(raised.value)
    (line,) = [line for line in logs if line["event"] == "the content filter failed"]
    assert line["error"] == "RuntimeError"
    assert Path(__file__).name in line["at"]
    assert "no model" not in str(line)


def test_a_slow_filter_does_not_delay_other_threads(pool: ModelPool):
    """A hundred requests wait for the filter."""
    started, may_end = threading.Event(), threading.Event()

    class Slow(AllowAll):
        def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
            started.set()
            assert may_end.wait(WAIT_S)
            return Decision.REFUSE

    async def scenario() -> None:
        generation_service = service_with(pool, Slow())
        waiting = [asyncio.ensure_future(generate(generation_service, f"cat {number}")) for number in range(100)]
        try:
            await asyncio.wait_for(asyncio.to_thread(started.wait, WAIT_S), WAIT_S)
        finally:
            may_end.set()
        assert all(isinstance(end, ContentRefused) for end in await asyncio.gather(*waiting, return_exceptions=True))

    asyncio.run(scenario())


def test_a_filter_is_found_by_its_import_path(monkeypatch: pytest.MonkeyPatch):
    """The path names an instance, or a class, which is called. The error of another path names the setting."""
    assert isinstance(load_filter("sd35.content_filter:AllowAll"), AllowAll)
    monkeypatch.setattr(content_filter, "rule", Rule(), raising=False)
    assert isinstance(load_filter("sd35.content_filter:rule"), Rule)
    for path in ("nowhere:Rule", "os:nothing", "os:sep", "os"):
        with pytest.raises(InvalidSetting, match="content_filter: got"):
            load_filter(path)


def test_an_image_that_cannot_be_stored_is_still_returned(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """The result has the error of the store, and can be stored later."""
    generation_service = service_with(pool, AllowAll())

    def unavailable(*_: Any) -> None:
        raise StoreUnavailable("the disk is full")

    async def scenario() -> None:
        with monkeypatch.context() as broken:
            for method in ("get", "put"):
                broken.setattr(generation_service.images.blobs, method, unavailable)
            result = await generate(generation_service, "a cat")
        assert str(result.unstored) == "the disk is full"
        assert read_png(result.png)[0].shape == (128, 128, 3)
        stored = await generation_service.store(result, "me")
        assert stored.unstored is None
        assert (await generate(generation_service, "a cat")).png == result.png

    asyncio.run(scenario())


def test_callers_get_not_ready_when_the_engine_closes(generation_service: GenerationService, backend: FakeBackend):
    """Not a cancellation."""

    async def scenario() -> None:
        backend.hold()
        waiting = asyncio.create_task(generate(generation_service, "a cat"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(generation_service.pool.engine.close))
        with pytest.raises(NotReady, match="closing"):
            await waiting
        backend.release.set()
        await closing

    asyncio.run(scenario())


class InterruptedBlobStore(MemoryBlobStore):
    """An image store in which a call happens during `get` (`found`) or `delete` (`removing`)."""

    found: Callable[[], object] = staticmethod(lambda: None)
    removing: Callable[[], object] = staticmethod(lambda: None)

    def get(self, name: str) -> bytes | None:
        """Read an image, and then call `found` once."""
        content = super().get(name)
        if content is not None:
            call, self.found = self.found, lambda: None  # once
            call()
        return content

    def delete(self, name: str) -> None:
        """Call `removing`, and then delete an image."""
        self.removing()
        super().delete(name)


@pytest.mark.parametrize("during", ["found", "removing"])
def test_an_image_that_another_client_requests_survives_a_concurrent_removal(pool: ModelPool, during: str):
    """The removal happens during the request, or the request during the removal."""
    files, storage = InterruptedBlobStore(), memory_storage()
    storage = storage._replace(images=ImageStore(files, storage.database.ownership))
    service = service_of(pool, storage)
    mine, yours = (JobSpec(pool.resolve(GenerationParams("a cat", seed=1)), owner) for owner in ("me", "you"))
    digest = mine.request.digest

    async def scenario() -> object:
        await service.generate(mine, "me")
        if during == "found":
            files.found = lambda: asyncio.run(service.disown(digest, "me"))
            assert (await service.generate(yours, "you")).cache == "hit"
        else:
            files.removing = lambda: storage.database.ownership.add(digest, "you", 1, 0.0)
            assert await service.disown(digest, "me")
        return await service.image(digest, "you")

    assert asyncio.run(scenario()) is not None
