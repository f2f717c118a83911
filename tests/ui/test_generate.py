"""Images on their way, before a service that does what a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, cast

from sd35.ui.client import Client, Visitor
from sd35.ui.generate import Drawing, Sheet, draw

REQUEST = {"width": 64, "height": 64, "steps": 4, "seed": 7}


class Service:
    """What stands for the client: each job has the event that is given, or is cancelled."""

    def __init__(self, on_order: Callable[[], None] = lambda: None, **event: object) -> None:
        self.ordered: list[str] = []
        self.cancelled: list[str] = []
        self._on_order, self._event, self._is_cancelled = on_order, event, asyncio.Event()

    async def order(self, _body: Mapping[str, Any], _visitor: Visitor) -> dict[str, Any]:
        """The job."""
        self.ordered.append(f"job {len(self.ordered)}")
        self._on_order()
        return {"id": self.ordered[-1], "request": REQUEST}

    async def events(self, _job_id: str, _visitor: Visitor) -> AsyncIterator[dict[str, Any]]:
        """The one that it has."""
        if not self._event:
            await self._is_cancelled.wait()
        yield self._event or {"status": "cancelled"}

    async def image(self, _digest: str, _visitor: Visitor) -> bytes:
        """A file."""
        return b"png"

    def cancel_later(self, job_ids: Iterable[str], _visitor: Visitor) -> None:
        """Noted."""
        self.cancelled += job_ids
        self._is_cancelled.set()


def drawn(service: Service, sheet: Sheet, keep: Callable[[bytes, str], str]) -> None:
    """Three images, to their end."""

    async def follow() -> None:
        async for _ in draw(cast(Client, service), [{}] * 3, sheet, keep):
            pass

    asyncio.run(asyncio.wait_for(follow(), timeout=10))


def test_who_cancels_while_images_are_asked_for_has_none_of_them():
    """The one that was being asked for is cancelled when it is there, and the rest is not asked for."""
    sheet = Sheet(Visitor())

    def cancel() -> None:
        sheet.is_cancelled = True

    service = Service(cancel)
    drawn(service, sheet, lambda _, name: name)
    assert service.ordered == service.cancelled == ["job 0"]
    assert [each.status for each in sheet.drawings] == ["cancelled"]


def test_a_image_that_cannot_be_kept_is_told():
    """Instead of being waited for; on a full disk, say."""

    def keep(_png: bytes, _name: str) -> str:
        raise OSError(28, "No space left on device")

    sheet = Sheet(Visitor())
    image = {"digest": "00ff", "cached": False, "content_filtered": False}
    drawn(Service(status="succeeded", image=image, request=REQUEST), sheet, keep)
    assert [each.words[:24] for each in sheet.drawings] == ["The image was made, bu"] * 3


def test_a_image_that_is_done_is_not_cancelled():
    """The service would forget it, before it is fetched."""
    drawings = [Drawing("a", "succeeded"), Drawing("b", "running"), Drawing("", "failed"), Drawing("c", "queued")]
    assert Sheet(Visitor(), drawings).jobs == ["b", "c"]
