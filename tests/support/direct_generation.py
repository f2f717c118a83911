"""A picture on a backend, step by step and without an engine's threads."""

from sd35.backends.base import Backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.executor import Calls
from sd35.engine.generation import Painter, Picture, Pixels, Task
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.request import Request
from sd35.sampling.sigmas import sampler_of


def paint(backend: Backend, checkpoint: Checkpoint, request: Request) -> Pixels:
    """The pixels of a request, drawn at the size it asks for."""
    painter = Painter(backend, sampler_of(checkpoint), checkpoint.card.side_px, checkpoint.card.skip_layers)
    picture = Picture(Task(request, request.width, request.height), painter)
    calls = Calls(EmbeddingCache(0), reproducible=False)
    for _ in range(request.steps):
        errors = calls.step([picture], measure=False).errors
        assert not errors, errors
    return calls.decode(picture, measure=False)[0]
