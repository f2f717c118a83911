"""A deterministic backend of a few lines, for tests of what lies above the backends. Words of a prompt steer it.

"held" waits in its first step for `release`; "crash" raises in the second step; "mute" cannot be encoded; "heavy" waits
in decoding for `release`, "blind" cannot be decoded. Three more spoil the numbers, unless the backend is `sound`: "nan"
in the second step, "void" in decoding, and "flat" makes a frame of one colour.
"""

import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sd35.access.keys import Key
from sd35.backends.base import DenoiseRow, TextEmbedding
from sd35.checkpoints.card import Card, SkipLayers
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.base import DeviceLimits, Engine
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.generation.model_pool import ModelPool
from sd35.host import HostMemory
from sd35.storage.memory.keys import MemoryKeyStore
from sd35.tensors import Array

MINI = Card(
    width=128,
    height=128,
    steps=4,
    guidance_scale=4.5,
    max_sequence_length=20,
    side_px=(64, 256),
    native_pixels=128 * 128,
    enlarges=True,
    licence="Apache-2.0",
)
LARGE = Card(skip_layers=SkipLayers((7, 8, 9), 2.8, 0.01, 0.2))
WAIT_S = 20  # a bound for what is expected to happen at once
_HEAVY, _BLIND, _VOID = 1e6, 1e9, 1e12


class FakeBackend:
    """Latents drift towards the prompt's code points, more so to the right; other words steer it, see the module.

    In another precision than float32 images are darker, and what another one encoded is not taken.
    """

    name = "double"
    can_skip_layers = True
    is_tiled = False
    build = None
    is_compiled = False

    def __init__(self, precision: str = "float32", *, sound: bool = False) -> None:
        self.precision, self._sound = precision, sound
        self.versions = {"numpy": np.__version__}
        self.startup_s: dict[str, float] = {}
        self.memory = HostMemory()
        self.started = threading.Event()
        self.release = threading.Event()
        self.encoded: list[str] = []
        self.steps: list[str] = []
        self.rows: list[int] = []  # of each call

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """The prompt's code points."""
        self.encoded += prompts
        if any("mute" in prompt for prompt in prompts):
            raise RuntimeError("no words for that")
        points = [np.array([ord(character) for character in prompt], self.precision) for prompt in prompts]
        return [TextEmbedding(array, array, array.nbytes) for array in points]

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """The velocity of each row."""
        self.rows.append(len(rows))
        return [self._velocity(row) for row in rows]

    def decode_latents(self, latents: Sequence[Array]) -> list[Array]:
        """Each latent value as a square of 8x8 pixels."""
        farthest = max(latent[3:].max() for latent in latents)
        if farthest >= _VOID:
            raise FloatingPointError
        if farthest >= _HEAVY:
            assert self.release.wait(3 * WAIT_S)
        if farthest >= _BLIND:
            raise RuntimeError("nothing to see")
        squares = [np.kron(latent[:3], np.ones((1, 8, 8))) for latent in latents]
        return [np.clip(square * 40 + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0) for square in squares]

    def _velocity(self, row: DenoiseRow) -> Array:
        assert row.positive.tokens.dtype == self.precision, row.positive.tokens.dtype
        prompt = "".join(chr(int(point)) for point in row.positive.tokens)
        self.steps.append(prompt)
        self.started.set()
        if "held" in prompt and row.sigma == 1:
            assert self.release.wait(3 * WAIT_S)  # longer than any test waits for what this holds up
        if "crash" in prompt and row.sigma < 1:
            raise RuntimeError("the runtime's own words")
        if "nan" in prompt and row.sigma < 1 and not self._sound:
            return np.full_like(row.latent, np.nan)
        mean = min(250, float(np.mean(row.positive.tokens.astype(float))))  # more would be white all over
        target = mean / 100 + np.linspace(0, 0.5, row.latent.shape[-1]) - (self.precision != "float32")
        against = 0 if row.negative is None else row.guidance * (1 + row.negative.tokens.sum()) / 1e4
        against = min(2.5, against)  # more would be black all over
        skipped = row.skip.scale * sum(row.skip.layers) / 100 if row.skip else 0
        velocity: Array = (row.latent - target + against + skipped).astype(np.float32)
        # The latent moves against the velocity, in all steps together by once its value. Channels from 3 are not shown.
        velocity[3:] -= 2 * (_HEAVY * ("heavy" in prompt) + _BLIND * ("blind" in prompt))
        if not self._sound:
            velocity[3:] -= 2 * _VOID * ("void" in prompt)
            velocity[:3] += 2 * _HEAVY * ("flat" in prompt)
        return velocity


class Words:
    """Reads 20 words, each a token."""

    def is_truncated(self, prompt: str) -> bool:
        """Whether there are more."""
        return len(prompt.split()) > 20

    def tokens(self, prompt: str) -> int:
        """How many it reads."""
        return min(20, len(prompt.split()))


def fake_pipeline(directory: Path, card: Card = MINI, backend: FakeBackend | None = None) -> Pipeline:
    """A pipeline named after `directory`, which is made."""
    scheduler = directory / "scheduler"
    scheduler.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (scheduler / "scheduler_config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(directory.name, directory, card)
    return Pipeline(checkpoint, backend or FakeBackend())


def fake_pool(  # noqa: PLR0913, PLR0917  a pool's own parameters
    directory: Path,
    backend: FakeBackend | None = None,
    max_in_flight: int = 3,
    max_rows: int = 8,
    max_wait_s: float = 600,
    fallback: FakeBackend | None = None,
) -> ModelPool:
    """A model pool with two models, "mini" (the default) and "large"."""
    backend = backend or FakeBackend()
    pipelines = [
        fake_pipeline(directory / "mini", MINI, backend),
        fake_pipeline(directory / "large", LARGE, backend),
        *([fake_pipeline(directory / "mini", MINI, fallback)] if fallback else []),
    ]
    limits = DeviceLimits(max_rows, max_in_flight, max_wait_s, memory_bytes=10**9)
    return pool_of(LocalEngine(pipelines, limits, EmbeddingCache(10**6), previews_per_s=math.inf))


def pool_of(engine: Engine) -> ModelPool:
    """A pool of an engine's models, each of which reads 20 words of a prompt."""
    return ModelPool(engine, {model.name: Words() for model in engine.models}, 1024 * 1024)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """What it is."""
        return self.now_s


def key_store(*keys: Key) -> MemoryKeyStore:
    """A store that holds these keys."""
    store = MemoryKeyStore()
    for key in keys:
        store.add(key)
    return store
