"""`sd35 serve` with a backend that computes nothing, to measure the service alone.

`python -m benchmarks.free_server --port N`. Everything but the model is real: uvicorn, the SQLite database and the
image store of the settings.
"""

import argparse
from collections.abc import Sequence
from unittest import mock

import numpy as np

from sd35.api import server
from sd35.backends.base import DenoiseRow, TextEmbedding
from sd35.checkpoints.card import Card
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.generation.model_pool import ModelPool
from sd35.host import HostMemory
from sd35.planning.plan import AvailableMemory
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings, load_settings
from sd35.startup import OnPlan, limits_of
from sd35.tensors import LATENT_PX, Array

CARD = Card(width=1024, height=1024, steps=28, guidance_scale=4.5, side_px=(64, 1024))
_MEMORY_BYTES = 10**10
_GRAIN = 2.0  # standard deviation of the noise in the image, in levels from 0 to 255


class FreeBackend:
    """A backend without networks. All images of a size are the same, and compress like a photograph."""

    name, precision = "free", "float32"
    is_tiled = is_compiled = can_skip_layers = False
    build = None

    def __init__(self) -> None:
        self.memory = HostMemory()
        self.versions = {"numpy": np.__version__}
        self.startup_s: dict[str, float] = {}
        self._frame = _photograph(max(CARD.side_px))

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return embeddings that nothing reads."""
        empty = np.zeros(1, np.float32)
        return [TextEmbedding(empty, empty, empty.nbytes) for _ in prompts]

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """Return zeros, so that latents stay unchanged. They take no memory."""
        return [np.broadcast_to(np.float32(0), row.latent.shape) for row in rows]

    def decode_latents(self, latents: Sequence[Array]) -> list[Array]:
        """Return, for each latent, the top left part of one fixed image."""
        sides = [(LATENT_PX * latent.shape[1], LATENT_PX * latent.shape[2]) for latent in latents]
        return [np.ascontiguousarray(self._frame[:height, :width]) for height, width in sides]


def _photograph(side_px: int) -> Array:
    """Return the pixels of a square image of smooth colours with noise."""
    rng = np.random.default_rng(1)
    across, down = np.meshgrid(*2 * [np.linspace(0, 6, side_px)])
    soft = np.stack([np.sin(across + down * (1 + channel)) for channel in range(3)], axis=2)
    grain = rng.normal(0, _GRAIN, soft.shape)
    return np.clip(128 + 90 * soft + grain, 0, 255).astype(np.uint8)


def open_free_model_pool(
    settings: Settings,
    checkpoints: Sequence[Checkpoint],
    startup: StartupTimes,
    on_plan: OnPlan,
    *,
    with_fallback: bool,
) -> ModelPool:
    """Open a model pool with `FreeBackend`, in place of `sd35.startup.open_model_pool`. The memory plan is empty."""
    assert not with_fallback or settings.fallback is None
    on_plan(AvailableMemory("cpu", _MEMORY_BYTES, None), ())
    checkpoint = Checkpoint("free", checkpoints[0].directory, CARD)
    pipeline = Pipeline(checkpoint, FreeBackend())
    engine = LocalEngine([pipeline], limits_of(settings, _MEMORY_BYTES), EmbeddingCache(10**6))
    pool = ModelPool(engine, {checkpoint.name: Tokenizers(checkpoints[0])}, settings.max_pixels)
    with startup.phase("warm"):
        pool.warm_up()
    return pool


def main() -> None:
    """Serve until a signal stops the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    with mock.patch.object(server, "open_model_pool", open_free_model_pool):
        server.serve(load_settings({"port": parser.parse_args().port}))


if __name__ == "__main__":
    main()
