"""Generation of a batch of images, with a fake client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, cast

from sd35.ui.client import Client, Visitor
from sd35.ui.generate import ImageBatch, ImageJob, generate

REQUEST = {"width": 64, "height": 64, "steps": 4, "seed": 7}


class FakeClient:
    """A client whose jobs have one given event each. Without one, they wait until they are cancelled."""

    def __init__(self, on_create: Callable[[], None] = lambda: None, **event: object) -> None:
        self.created: list[str] = []
        self.cancelled: list[str] = []
        self._on_create, self._event, self._is_cancelled = on_create, event, asyncio.Event()

    async def create_job(self, _body: Mapping[str, Any], _visitor: Visitor) -> dict[str, Any]:
        """Create a job."""
        self.created.append(f"job {len(self.created)}")
        self._on_create()
        return {"id": self.created[-1], "request": REQUEST}

    async def events(self, _job_id: str, _visitor: Visitor) -> AsyncIterator[dict[str, Any]]:
        """Yield the event of a job."""
        if not self._event:
            await self._is_cancelled.wait()
        yield self._event or {"status": "cancelled"}

    async def image(self, _digest: str, _visitor: Visitor) -> bytes:
        """Return a file."""
        return b"png"

    def cancel_later(self, job_ids: Iterable[str], _visitor: Visitor) -> None:
        """Record the cancelled jobs."""
        self.cancelled += job_ids
        self._is_cancelled.set()


def run(client: FakeClient, batch: ImageBatch, save_file: Callable[[bytes, str], str]) -> None:
    """Generate three images, and wait until all jobs have ended."""

    async def follow() -> None:
        async for _ in generate(cast(Client, client), [{}] * 3, batch, save_file):
            pass

    asyncio.run(asyncio.wait_for(follow(), timeout=10))


def test_a_batch_cancelled_while_jobs_are_created_creates_no_more():
    """The job that is being created is cancelled as soon as it exists."""
    batch = ImageBatch(Visitor())

    def cancel() -> None:
        batch.is_cancelled = True

    client = FakeClient(cancel)
    run(client, batch, lambda _, name: name)
    assert client.created == client.cancelled == ["job 0"]
    assert [each.status for each in batch.jobs] == ["cancelled"]


def test_an_image_that_cannot_be_saved_is_an_error():
    """For example because the disk is full."""

    def fail(_png: bytes, _name: str) -> str:
        raise OSError(28, "No space left on device")

    batch = ImageBatch(Visitor())
    image = {"digest": "00ff", "cached": False, "content_filtered": False}
    run(FakeClient(status="succeeded", image=image, request=REQUEST), batch, fail)
    assert [each.error[:24] for each in batch.jobs] == ["The image was generated,"] * 3


def test_only_queued_and_running_jobs_are_cancelled():
    """The service would delete the image of an ended job."""
    jobs = [ImageJob("a", "succeeded"), ImageJob("b", "running"), ImageJob("", "failed"), ImageJob("c", "queued")]
    assert ImageBatch(Visitor(), jobs).active_job_ids == ["b", "c"]
