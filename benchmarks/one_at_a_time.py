"""A server to compare `sd35 serve` with: the same backend, solver and embedding cache, but one request at a time.

`PLAIN_CHECKPOINT=directory uvicorn benchmarks.one_at_a_time:app`.
"""

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from benchmarks.plain_fastapi import Txt2Img
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.open import open_checkpoint
from sd35.engine.base import Pixels, Work
from sd35.engine.local.executor import BatchExecutor
from sd35.engine.local.generation import Generation
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.images.png import write_png
from sd35.request import Request as ImageRequest

_lock = threading.Lock()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model and generate one image as a warm-up. Uvicorn accepts no connection before that."""
    checkpoint = open_checkpoint(os.environ["PLAIN_CHECKPOINT"])
    backend = open_backend("onnx", checkpoint, Options())
    app.state.pipeline = Pipeline(checkpoint, backend)
    app.state.executor = BatchExecutor(EmbeddingCache(64_000_000), reproducible=False)
    generate(app, Txt2Img(prompt=" ", width=64, height=64, steps=1))
    yield


app = FastAPI(lifespan=lifespan)


def generate(app: FastAPI, body: Txt2Img) -> Pixels:
    """Generate an image and return its pixels. A lock lets one call at a time generate."""
    request = ImageRequest(**body.model_dump(), model="model", revision="", profile="")
    image = Generation(Work(request, body.width, body.height), app.state.pipeline)
    executor: BatchExecutor = app.state.executor
    with _lock:
        for _ in range(body.steps):
            errors = executor.step([image], measure=False).errors
            assert not errors, errors
        return executor.decode(image, measure=False)[0]


@app.get("/readyz")
def readyz() -> dict[str, str]:
    """Report that the server is ready. It accepts requests only after its first image."""
    return {"status": "ready"}


@app.post("/v1/txt2img", response_class=Response)
def txt2img(request: Request, body: Txt2Img) -> Response:
    """Return the PNG file when the image is ready."""
    return Response(write_png(generate(request.app, body), {}), media_type="image/png")
