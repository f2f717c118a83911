"""Routes that clients of AUTOMATIC1111's API call before they generate images: lists, memory, and empty lists."""

from typing import Literal

from fastapi import APIRouter, Request

from sd35.api.auth import service_of
from sd35.api.dialects.automatic1111.errors import ERROR_FORMAT
from sd35.api.dialects.automatic1111.responses import Memory, SamplerItem, SchedulerItem
from sd35.host import HostMemory

_EMPTY = ["upscalers", "latent-upscale-modes", "loras", "sd-vae", "sd-modules", "hypernetworks", "face-restorers"]
_EMPTY += ["realesrgan-models", "prompt-styles", "script-info", "extensions"]
_NO_EFFECT = {
    "refresh-checkpoints": "the served models do not change",
    "refresh-vae": "a checkpoint has its own VAE",
    "refresh-loras": "there are none",
    "unload-checkpoint": "the service manages memory itself",
    "reload-checkpoint": "the service manages memory itself",
}
router = APIRouter(prefix="/sdapi/v1")


@router.get("/samplers", summary="List samplers")
async def samplers() -> list[SamplerItem]:
    """There is one sampler: Euler."""
    return [SamplerItem()]


@router.get("/schedulers", summary="List noise schedules")
async def schedulers() -> list[SchedulerItem]:
    """There is one schedule: the checkpoint's own."""
    return [SchedulerItem()]


@router.get("/scripts", summary="List scripts")
async def scripts() -> dict[Literal["txt2img", "img2img"], list[str]]:
    """There are no scripts, so both lists are empty."""
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings", summary="List textual inversions")
async def embeddings() -> dict[Literal["loaded", "skipped"], dict[str, str]]:
    """Textual inversions are not supported, so both objects are empty."""
    return {"loaded": {}, "skipped": {}}


async def _none() -> list[str]:
    """Return an empty list: images are generated from text by the checkpoints only."""
    return []


async def _nothing() -> None:
    """Do nothing. Clients call this before or after they generate images."""


for _name, _reason in _NO_EFFECT.items():
    router.add_api_route(
        f"/{_name}",
        _nothing,
        methods=["POST"],
        summary=f"Do nothing: {_reason}",
        operation_id=f"automatic1111-{_name}",
    )

for _name in _EMPTY:
    router.add_api_route(f"/{_name}", _none, summary=f"List {_name}", operation_id=f"automatic1111-{_name}")


@router.get("/cmd-flags", summary="Get the command-line flags")
async def cmd_flags() -> dict[str, bool]:
    """Return the flags of an AUTOMATIC1111 with the API (`api`) and without web pages (`nowebui`)."""
    return {"api": True, "nowebui": True}


@router.get("/memory", summary="Get the memory in use", responses=ERROR_FORMAT.unavailable)
async def memory(request: Request) -> Memory:
    """Return the memory of the host, and of the device of the first model."""
    status, host = service_of(request).pool.engine.status(), HostMemory()
    ram = _bytes(host.free_bytes(), host.held_bytes())
    if status.is_host_memory:
        return Memory(ram=ram, cuda={"error": "models run on the CPU"})
    return Memory(ram=ram, cuda={"system": _bytes(status.free_bytes, status.held_bytes)})


def _bytes(free: int, held: int) -> dict[str, int]:
    return {"free": free, "used": held, "total": free + held}
