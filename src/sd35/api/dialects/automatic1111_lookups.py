"""What clients of AUTOMATIC1111's API look up before they make images: lists, memory, and what is not there."""

from typing import Literal

from fastapi import APIRouter, Request

from sd35.api.auth import service_of
from sd35.api.dialects.automatic1111_errors import READY
from sd35.api.dialects.automatic1111_shapes import Memory, SamplerItem, SchedulerItem
from sd35.host import HostMemory

_EMPTY = ["upscalers", "latent-upscale-modes", "loras", "sd-vae", "sd-modules", "hypernetworks", "face-restorers"]
_EMPTY += ["realesrgan-models", "prompt-styles", "script-info", "extensions"]
_NO_EFFECT = {
    "refresh-checkpoints": "what is served does not change",
    "refresh-vae": "a checkpoint has its own",
    "refresh-loras": "there are none",
    "unload-checkpoint": "the service itself decides what is in memory",
    "reload-checkpoint": "the service itself decides what is in memory",
}
router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"])


@router.get("/samplers", summary="Which samplers are there?")
async def samplers() -> list[SamplerItem]:
    """There is one sampler: Euler."""
    return [SamplerItem()]


@router.get("/schedulers", summary="Which noise schedules are there?")
async def schedulers() -> list[SchedulerItem]:
    """There is one schedule: the checkpoint's own."""
    return [SchedulerItem()]


@router.get("/scripts", summary="Which scripts are there?")
async def scripts() -> dict[Literal["txt2img", "img2img"], list[str]]:
    """There are no scripts, so both lists are empty."""
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings", summary="Which textual inversions are there?")
async def embeddings() -> dict[Literal["loaded", "skipped"], dict[str, str]]:
    """Textual inversions are not supported, so both objects are empty."""
    return {"loaded": {}, "skipped": {}}


async def _none() -> list[str]:
    """The list is always empty: images are made from text, with nothing but the checkpoints."""
    return []


async def _nothing() -> None:
    """This does nothing. It is there because clients call it before or after they make images."""


for _name, _why in _NO_EFFECT.items():
    router.add_api_route(
        f"/{_name}",
        _nothing,
        methods=["POST"],
        summary=f"Do nothing: {_why}",
        operation_id=f"automatic1111-{_name}",
    )

for _name in _EMPTY:
    router.add_api_route(f"/{_name}", _none, summary=f"Which {_name} are there?", operation_id=f"automatic1111-{_name}")


@router.get("/cmd-flags", summary="How was the service started?")
async def cmd_flags() -> dict[str, bool]:
    """As AUTOMATIC1111's UI would say it: with the API (`api`), and without web pages (`nowebui`)."""
    return {"api": True, "nowebui": True}


@router.get("/memory", summary="How much memory is there?", responses=READY)
async def memory(request: Request) -> Memory:
    """The memory of the host, and of the device on which the first model runs."""
    status, host = service_of(request).pool.engine.status(), HostMemory()
    ram = _bytes(host.free_bytes(), host.held_bytes())
    if status.is_host_memory:
        return Memory(ram=ram, cuda={"error": "models compute on processors"})
    return Memory(ram=ram, cuda={"system": _bytes(status.free_bytes, status.held_bytes)})


def _bytes(free: int, held: int) -> dict[str, int]:
    return {"free": free, "used": held, "total": free + held}
