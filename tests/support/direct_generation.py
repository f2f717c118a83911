"""Generate an image on a backend without the engine's threads."""

from sd35.backends.base import Backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.executor import BatchExecutor
from sd35.engine.generation import Generation, Pipeline, Pixels, Task
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.request import Request
from sd35.sampling.sigmas import sigma_schedule_of


def generate_directly(backend: Backend, checkpoint: Checkpoint, request: Request) -> Pixels:
    """Return the pixels of a request, generated at the requested size."""
    pipeline = Pipeline(backend, sigma_schedule_of(checkpoint), checkpoint.card.side_px, checkpoint.card.skip_layers)
    generation = Generation(Task(request, request.width, request.height), pipeline)
    calls = BatchExecutor(EmbeddingCache(0), reproducible=False)
    for _ in range(request.steps):
        errors = calls.step([generation], measure=False).errors
        assert not errors, errors
    return calls.decode(generation, measure=False)[0]
