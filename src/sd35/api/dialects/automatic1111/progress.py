"""Progress, interruption and skipping of a client's running call, as in AUTOMATIC1111's API."""

import asyncio
import base64

from fastapi import APIRouter, Request

from sd35.api.auth import caller_of
from sd35.api.dialects.automatic1111.errors import BODY_ERRORS
from sd35.api.dialects.automatic1111.options import sessions_of
from sd35.api.dialects.automatic1111.responses import ProgressResponse, State
from sd35.api.dialects.automatic1111.txt2img import timestamp
from sd35.api.generate import preview_png
from sd35.api.sessions import RunningCall

router = APIRouter(prefix="/sdapi/v1")


@router.get("/progress", summary="Get the progress of the client's call", responses={422: BODY_ERRORS[422]})
async def progress(request: Request, skip_current_image: bool = False) -> ProgressResponse:  # noqa: FBT001, FBT002
    """Return the progress of the client's oldest running call. If none runs, all values are 0."""
    call = _running_call(request)
    if call is None:
        return ProgressResponse()
    batch, latest, done = call.batch, call.latest, call.done
    current = batch.job_specs[min(batch.current, len(batch.job_specs) - 1)].request
    was_skipped = any(task.cancelled() for task in batch.tasks) and not batch.was_interrupted
    image = None
    if latest and latest.preview and not skip_current_image:
        image = base64.b64encode(await asyncio.to_thread(preview_png, latest.preview, current)).decode()
    return ProgressResponse(
        progress=max(0.01, done),  # above 0 while the call runs, as in AUTOMATIC1111
        eta_relative=call.took_s * (1 - done) / done if done else 0.0,
        state=State(
            skipped=was_skipped,
            interrupted=batch.was_interrupted,
            job=call.name,
            job_count=len(batch.job_specs),
            job_timestamp=timestamp(call),
            job_no=batch.current,
            sampling_step=latest.step if latest else 0,
            sampling_steps=current.steps,
        ),
        current_image=image,
        current_task=call.name,
    )


@router.post("/interrupt", summary="End the client's call with the images that are done")
async def interrupt(request: Request) -> dict[str, str]:
    """Cancel the remaining images of the call that `progress` shows. The call then returns."""
    if call := _running_call(request):
        call.batch.interrupt()
    return {}


@router.post("/skip", summary="Skip the current image of the client's call")
async def skip(request: Request) -> None:
    """Cancel the current image of the call that `progress` shows. The call continues with the next image."""
    if call := _running_call(request):
        call.batch.skip()


def _running_call(request: Request) -> RunningCall | None:
    return sessions_of(request).oldest(caller_of(request).client)
