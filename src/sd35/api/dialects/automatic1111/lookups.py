"""Routes that clients of AUTOMATIC1111's API call before they generate images: lists, flags and memory."""

from typing import Literal

from fastapi import APIRouter, Request

from sd35.api.auth import service_of
from sd35.api.dialects.automatic1111.errors import ERROR_FORMAT
from sd35.api.dialects.automatic1111.responses import Memory, SamplerItem, SchedulerItem
from sd35.host import HostMemory

_EMPTY = {
    "upscalers": "upscalers",
    "latent-upscale-modes": "latent upscale modes",
    "loras": "LoRAs",
    "sd-vae": "VAEs",
    "sd-modules": "VAEs and text encoders",
    "hypernetworks": "hypernetworks",
    "face-restorers": "face restorers",
    "realesrgan-models": "Real-ESRGAN models",
    "prompt-styles": "prompt styles",
    "script-info": "the arguments of scripts",
    "extensions": "extensions",
}
_NO_EFFECT = {
    "refresh-checkpoints": "the served models do not change",
    "refresh-vae": "a checkpoint has its own VAE",
    "refresh-loras": "there are no LoRAs",
    "unload-checkpoint": "the service manages memory itself",
    "reload-checkpoint": "the service manages memory itself",
}
router = APIRouter(prefix="/sdapi/v1")


@router.get("/samplers", summary="List samplers")
async def samplers() -> list[SamplerItem]:
    """Return the only sampler, Euler."""
    return [SamplerItem()]


@router.get("/schedulers", summary="List noise schedules")
async def schedulers() -> list[SchedulerItem]:
    """Return the only noise schedule: the checkpoint's own."""
    return [SchedulerItem()]


@router.get("/scripts", summary="List scripts")
async def scripts() -> dict[Literal["txt2img", "img2img"], list[str]]:
    """Return two empty lists. Scripts are not supported."""
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings", summary="List textual inversions")
async def embeddings() -> dict[Literal["loaded", "skipped"], dict[str, str]]:
    """Return two empty objects. Textual inversions are not supported."""
    return {"loaded": {}, "skipped": {}}


async def _list_nothing() -> list[str]:
    """Return an empty list, because the server has nothing to list."""
    return []


async def _do_nothing() -> None:
    """Return null. Clients call this route before or after they generate images."""


for _name, _reason in _NO_EFFECT.items():
    router.add_api_route(
        f"/{_name}",
        _do_nothing,
        methods=["POST"],
        summary=f"Do nothing: {_reason}",
        operation_id=f"automatic1111-{_name}",
    )

for _name, _title in _EMPTY.items():
    router.add_api_route(f"/{_name}", _list_nothing, summary=f"List {_title}", operation_id=f"automatic1111-{_name}")


@router.get("/cmd-flags", summary="Get the command-line flags")
async def cmd_flags() -> dict[str, bool]:
    """Return the flags `api` and `nowebui`, like an AUTOMATIC1111 server without web pages."""
    return {"api": True, "nowebui": True}


@router.get("/memory", summary="Get the memory in use", responses=ERROR_FORMAT.unavailable)
async def memory(request: Request) -> Memory:
    """Return the memory of the host, and the memory of the device that runs the models."""
    status, host = service_of(request).pool.engine.status(), HostMemory()
    ram = _memory_fields(host.free_bytes(), host.held_bytes())
    if status.is_host_memory:
        return Memory(ram=ram, cuda={"error": "models run on the CPU"})
    return Memory(ram=ram, cuda={"system": _memory_fields(status.free_bytes, status.held_bytes)})


def _memory_fields(free_bytes: int, held_bytes: int) -> dict[str, int]:
    """Return memory sizes in bytes under AUTOMATIC1111's names. See `Memory`."""
    return {"free": free_bytes, "used": held_bytes, "total": free_bytes + held_bytes}
