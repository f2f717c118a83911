"""Images on their way: one job for each, followed side by side, and cancelled where nobody waits any more."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from sd35.images.record import MAKER_KEY
from sd35.images.texts import read_texts
from sd35.ui.client import Client, Refusal, Visitor, words_of

_LEAST_S = 0.1  # between two looks: steps may be quicker than anyone sees
_NOT_KEPT = "The image was made, but this page has no room for it now."
_UNTOLD = "The service closed before this image was done. It goes on with it when it is back."

Keep = Callable[[bytes, str], str]


@dataclass(frozen=True)
class FinishedImage:
    """An image that was made: the file as the service gave it, and its request."""

    path: str
    digest: str
    request: Mapping[str, Any]
    was_kept: bool
    is_blurred: bool
    cut_off: Sequence[str]


@dataclass
class Drawing:
    """An image on its way. `status` is the job's; `words` say why there is none."""

    job_id: str = ""
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = "queued"
    aspect: float = 1.0
    place: int | None = None
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    preview: str | None = None
    made: FinishedImage | None = None
    words: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, one way or another, and the file is here if there is one."""
        return self.status in {"failed", "cancelled"} or self.made is not None

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return 1.0 if self.made else self.step / self.steps if self.steps else 0.0


@dataclass
class Sheet:
    """The images of one press of a button. Once `is_cancelled`, no more of them are asked for."""

    visitor: Visitor
    drawings: list[Drawing] = field(default_factory=list)
    is_cancelled: bool = False

    @property
    def jobs(self) -> list[str]:
        """Those that have not ended, for who cancels: the service would forget the images of others."""
        return [each.job_id for each in self.drawings if each.job_id and each.status in {"queued", "running"}]


async def draw(client: Client, bodies: Sequence[Mapping[str, Any]], sheet: Sheet, keep: Keep) -> AsyncGenerator[Sheet]:
    """Have images made, and tell again and again how far they are. Who stops listening cancels them.

    `keep` writes a file, by its bytes and a name, and says where. Raises Refusal where not even the first is accepted.
    """
    changed = asyncio.Event()
    following: list[asyncio.Task[None]] = []
    try:
        for body in bodies:
            drawing = await _ordered(client, body, sheet)
            sheet.drawings.append(drawing)
            if drawing.job_id:
                following.append(asyncio.create_task(_follow(client, drawing, sheet.visitor, keep, changed)))
            if sheet.is_cancelled:  # while this one was asked for
                client.cancel_later([drawing.job_id], sheet.visitor)
                break
        while not all(each.is_over for each in sheet.drawings):
            yield sheet
            await changed.wait()
            await asyncio.sleep(_LEAST_S)
            changed.clear()
        yield sheet
    finally:
        for task in following:
            task.cancel()
        if sheet.jobs:
            client.cancel_later(sheet.jobs, sheet.visitor)


async def _ordered(client: Client, body: Mapping[str, Any], sheet: Sheet) -> Drawing:
    try:
        job = await client.order(body, sheet.visitor)
    except Refusal as refusal:
        if not sheet.drawings:
            raise
        return Drawing(status="failed", words=refusal.words)
    request = job["request"]
    aspect = request["width"] / request["height"]
    return Drawing(job["id"], aspect=aspect, place=job.get("place"), steps=request["steps"])


async def _follow(client: Client, drawing: Drawing, visitor: Visitor, keep: Keep, changed: asyncio.Event) -> None:
    """Bring a drawing up to date until it is over."""
    try:
        async for event in client.events(drawing.job_id, visitor):
            await _take(client, drawing, event, visitor, keep)
            changed.set()
        if not drawing.is_over:
            drawing.status, drawing.words = "failed", _UNTOLD
    except Refusal as refusal:
        drawing.status, drawing.words = "failed", refusal.words
    except OSError:
        drawing.status, drawing.words = "failed", _NOT_KEPT
    finally:
        changed.set()


async def _take(client: Client, drawing: Drawing, event: Mapping[str, Any], visitor: Visitor, keep: Keep) -> None:
    drawing.status = event["status"]
    if image := event.get("image"):
        png = await client.image(image["digest"], visitor)
        request = event["request"]
        name = f"sd35-{request['seed']}-{image['digest'][:8]}.png"
        path = await run_in_threadpool(keep, png, name)
        cut_off = await run_in_threadpool(_cut_off, png)
        drawing.made = FinishedImage(
            path, image["digest"], request, image["cached"], image["content_filtered"], cut_off
        )
    elif error := event.get("error"):
        drawing.words = words_of(error)
    elif not drawing.is_over:
        drawing.place = event.get("place")
        drawing.step, drawing.steps = event.get("step", drawing.step), event.get("steps", drawing.steps)
        drawing.seconds_left = event.get("seconds_left")
        drawing.preview = event.get("preview", drawing.preview)


def _cut_off(png: bytes) -> Sequence[str]:
    """The prompts of which the text encoders read only a part, as the file says; none if it does not say."""
    maker = read_texts(png).texts.get(MAKER_KEY)
    found = json.loads(maker).get("cut_off", []) if maker else []
    return tuple(map(str, found))
