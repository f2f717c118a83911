"""A server to compare `sd35 serve` with: FastAPI around Diffusers' `StableDiffusion3Pipeline`.

`PLAIN_CHECKPOINT=directory uvicorn benchmarks.plain_fastapi:app`. Before it is ready, it generates the same warm-up
image as `sd35 serve`: one step at the checkpoint's smallest size.
"""

import io
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from diffusers import StableDiffusion3Pipeline
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from sd35.checkpoints.open import open_checkpoint

_lock = threading.Lock()


class Txt2Img(BaseModel):
    """A request for one image."""

    prompt: str
    negative_prompt: str = ""
    width: int = 128
    height: int = 128
    steps: int = 28
    guidance_scale: float = 4.5
    seed: int = 0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the pipeline and generate one image as a warm-up. Uvicorn accepts no connection before that."""
    checkpoint = open_checkpoint(os.environ["PLAIN_CHECKPOINT"])
    app.state.text_tokens = checkpoint.card.max_sequence_length
    app.state.pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    app.state.pipeline.set_progress_bar_config(disable=True)
    side_px = checkpoint.card.side_px[0]
    generate(
        app, Txt2Img(prompt=" ", width=side_px, height=side_px, steps=1, guidance_scale=checkpoint.card.guidance_scale)
    )
    yield


app = FastAPI(lifespan=lifespan)


def generate(app: FastAPI, body: Txt2Img) -> bytes:
    """Generate an image and return it as a PNG file. A lock lets one call at a time generate."""
    with _lock:
        image = app.state.pipeline(
            body.prompt,
            negative_prompt=body.negative_prompt,
            width=body.width,
            height=body.height,
            num_inference_steps=body.steps,
            guidance_scale=body.guidance_scale,
            max_sequence_length=app.state.text_tokens,
            generator=torch.Generator("cpu").manual_seed(body.seed),
        ).images[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@app.get("/readyz")
def readyz() -> dict[str, str]:
    """Report that the server is ready. It accepts requests only after its first image."""
    return {"status": "ready"}


@app.post("/v1/txt2img", response_class=Response)
def txt2img(request: Request, body: Txt2Img) -> Response:
    """Return the PNG file when the image is ready."""
    return Response(generate(request.app, body), media_type="image/png")
