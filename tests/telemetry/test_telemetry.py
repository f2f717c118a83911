"""Counting and logging images."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from sd35.content_filter import AllowAll, Decision
from sd35.errors import ContentRefused, Overloaded, Sd35Error, StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult, GenerationService, Requester
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.telemetry.telemetry import Telemetry
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault
from tests.support.services import memory_storage


@pytest.fixture
def max_in_flight() -> int:
    """The limit of the pool."""
    return 1


@pytest.fixture
def telemetry() -> Telemetry:
    """The telemetry of the generation service."""
    return Telemetry()


class Strict:
    """Refuses prompts with "rude" and images of dogs, and blurs images of cats."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Refuse or allow a prompt."""
        return Decision.REFUSE if "rude" in prompt else Decision.ALLOW

    def check_image(self, pixels: Any, prompt: str) -> Decision:  # noqa: ARG002
        """Refuse, blur or allow an image, judged by its prompt."""
        if "dog" in prompt:
            return Decision.REFUSE
        return Decision.BLUR if "cat" in prompt else Decision.ALLOW


class FullBlobStore(MemoryBlobStore):
    """A store on a full disk."""

    def put(self, name: str, content: bytes) -> bool:
        """Raise StoreUnavailable."""
        raise StoreUnavailable(f"no room for {name}, {len(content)} bytes")


def generate(generation_service: GenerationService, prompt: str) -> Coroutine[Any, Any, GenerationResult]:
    """Generate an image."""
    return generation_service.generate(generation_service.pool.resolve(GenerationParams(prompt, seed=1)), Requester())


def counted(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a counter that are not 0, by the values of its labels, sorted by the labels' names."""
    (family,) = [each for each in telemetry.metrics.registry.collect() if f"{each.name}_total" == name]
    samples = {tuple(value for _, value in sorted(each.labels.items())): each.value for each in family.samples}
    return {labels: value for labels, value in samples.items() if value}


def test_each_end_of_an_image_is_counted(pool: ModelPool, backend: FakeBackend, telemetry: Telemetry):
    """A request that is refused for its prompt is not an image, and does not count."""
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, Strict(), telemetry)

    async def scenario() -> None:
        await generate(generation_service, "a tree")
        backend.faults["bad"] = Fault.STEP_ERROR
        for prompt in ("bad", "a dog", "rude"):
            with pytest.raises(Sd35Error):
                await generate(generation_service, prompt)
        backend.hold()
        held = asyncio.create_task(generate(generation_service, "a held cat"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)

    asyncio.run(scenario())
    assert counted(telemetry, "sd35_images_total") == {
        ("generated",): 1,
        ("failed",): 1,
        ("refused",): 1,
        ("cancelled",): 1,
    }


def test_an_image_that_an_overloaded_engine_refuses_is_not_counted_as_failed(
    pool: ModelPool, backend: FakeBackend, telemetry: Telemetry
):
    """The API counts the error."""
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, AllowAll(), telemetry)

    async def scenario() -> None:
        backend.hold()
        held = asyncio.create_task(generate(generation_service, "a tree"))
        await asyncio.to_thread(backend.started.wait, WAIT_S)
        with pytest.raises(Overloaded):
            await generate(generation_service, "a cat")
        backend.release.set()
        await held

    asyncio.run(scenario())
    assert counted(telemetry, "sd35_images_total") == {("generated",): 1}


def test_decisions_of_the_filter_are_counted_for_prompts_and_images(pool: ModelPool, telemetry: Telemetry):
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, Strict(), telemetry)
    asyncio.run(generate(generation_service, "a cat"))
    for prompt in ("rude", "a dog"):
        with pytest.raises(ContentRefused):
            asyncio.run(generate(generation_service, prompt))
    assert counted(telemetry, "sd35_filter_decisions_total") == {
        ("allow", "prompt"): 2,
        ("refuse", "prompt"): 1,
        ("blur", "image"): 1,
        ("refuse", "image"): 1,
    }


def test_shared_and_cached_images_are_counted_as_such(pool: ModelPool, telemetry: Telemetry):
    """Of four requests, one generates the image, two share it, and the last one gets it from the store."""
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, AllowAll(), telemetry)

    async def scenario() -> None:
        await asyncio.gather(*(generate(generation_service, "a cat") for _ in range(3)))
        await generate(generation_service, "a cat")

    asyncio.run(scenario())
    assert counted(telemetry, "sd35_result_cache_total") == {("miss",): 1, ("shared",): 2, ("hit",): 1}


def test_an_image_that_cannot_be_stored_is_counted(pool: ModelPool, telemetry: Telemetry):
    """It counts as generated too."""
    generation_service = GenerationService(
        pool, ImageStore(FullBlobStore(), memory_storage().database.ownership), AllowAll(), telemetry
    )
    asyncio.run(generate(generation_service, "a cat"))
    assert counted(telemetry, "sd35_unstored_images_total") == {(): 1}
    assert counted(telemetry, "sd35_images_total") == {("generated",): 1}


@pytest.mark.parametrize(("log_prompts", "logged"), [(False, None), (True, f"{'a ' * 100}… (600 characters)")])
def test_prompts_are_logged_only_if_enabled(pool: ModelPool, log_prompts: bool, logged: str | None):  # noqa: FBT001
    """An image has one log line, with its parameters and the durations of its stages. Long prompts are shortened."""
    storage = memory_storage()
    generation_service = GenerationService(pool, storage.images, AllowAll(), Telemetry(log_prompts=log_prompts))
    with capture_logs() as lines:
        result = asyncio.run(generate(generation_service, "a " * 300))
    (line,) = lines
    assert line["event"] == "image"
    assert (line["digest"], line["steps"], line["size"]) == (result.request.digest, 4, "128x128")
    assert [name for name in line if name.endswith("_ms")] == [f"{stage.name}_ms" for stage in result.stages]
    assert line.get("prompt") == logged
    assert logged or "a a a" not in str(line)
