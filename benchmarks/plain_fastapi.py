"""The file one writes first: FastAPI around `StableDiffusion3Pipeline`, which `sd35 serve` is compared with.

`PLAIN_CHECKPOINT=directory uvicorn benchmarks.plain_fastapi:app`. It is ready when it has drawn a first image, as
small as that of `sd35 serve`: the checkpoint's shortest side, one step.
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

_drawing = threading.Lock()


class Txt2Img(BaseModel):
    """What to draw."""

    prompt: str
    negative_prompt: str = ""
    width: int = 128
    height: int = 128
    steps: int = 28
    guidance_scale: float = 4.5
    seed: int = 0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Build the pipeline and draw once; uvicorn answers nothing before."""
    checkpoint = open_checkpoint(os.environ["PLAIN_CHECKPOINT"])
    app.state.text_tokens = checkpoint.card.max_sequence_length
    app.state.pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    app.state.pipeline.set_progress_bar_config(disable=True)
    side_px = checkpoint.card.side_px[0]
    draw(
        app, Txt2Img(prompt=" ", width=side_px, height=side_px, steps=1, guidance_scale=checkpoint.card.guidance_scale)
    )
    yield


app = FastAPI(lifespan=lifespan)


def draw(app: FastAPI, wanted: Txt2Img) -> bytes:
    """One image as a PNG file; one at a time."""
    with _drawing:
        image = app.state.pipeline(
            wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            width=wanted.width,
            height=wanted.height,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance_scale,
            max_sequence_length=app.state.text_tokens,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
        ).images[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@app.get("/readyz")
def readyz() -> dict[str, str]:
    """Only reached once the pipeline has drawn."""
    return {"status": "ready"}


@app.post("/v1/txt2img", response_class=Response)
def txt2img(request: Request, wanted: Txt2Img) -> Response:
    """Answers with the PNG file when the image is made."""
    return Response(draw(request.app, wanted), media_type="image/png")
