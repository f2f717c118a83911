"""Generate an image step by step, without an engine's threads."""

from sd35.backends.base import Backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.base import Pixels, Work
from sd35.engine.local.executor import BatchExecutor
from sd35.engine.local.generation import Generation
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.request import Request


def generate_directly(backend: Backend, checkpoint: Checkpoint, request: Request) -> Pixels:
    """Return the pixels of a request, at its size."""
    generation = Generation(Work(request, request.width, request.height), Pipeline(checkpoint, backend))
    executor = BatchExecutor(EmbeddingCache(0), reproducible=False)
    while not generation.has_begun or not generation.solver.is_done:
        errors = executor.step([generation], measure=False).errors
        assert not errors, errors
    return executor.decode(generation, measure=False)[0]
