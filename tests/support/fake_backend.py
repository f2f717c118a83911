"""A deterministic backend, and the models and model pools around it, for tests of the layers above the backends."""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path

import numpy as np

from sd35.access.keys import Key
from sd35.backends.base import DenoiseRow, TextEmbedding
from sd35.checkpoints.card import Card, SkipLayers
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.tokenizers import Tokenizers
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
WAIT_S = 20  # a timeout for things that should happen at once
# Decoding does not know the prompt. Images that are to fail in it are marked in latent channels that are not shown. The
# mark grows with each step, up to one of these values.
_DECODE_ERROR, _DECODE_NAN = 1e6, 1e9


class Fault(Enum):
    """A failure of the images of one prompt."""

    ENCODE_ERROR = auto()
    """Encoding the prompt raises."""
    STEP_ERROR = auto()
    """The second step raises."""
    STEP_NAN = auto()
    """The second step computes NaN."""
    DECODE_ERROR = auto()
    """Decoding raises."""
    DECODE_NAN = auto()
    """Decoding reports values that are not finite."""
    UNIFORM = auto()
    """The image is of one colour."""


class FakeBackend:
    """A deterministic backend of a few lines, for tests of the layers above the backends.

    Latents drift towards the mean of the prompt's code points, further towards the right. In another precision than
    float32 images are darker, and embeddings from a backend of another precision are refused.

    `faults` maps prompts to failures. `hold` makes images wait until `release` is set.
    """

    name = "double"
    can_skip_layers = True
    is_tiled = False
    build = None
    is_compiled = False

    def __init__(self, precision: str = "float32", faults: Mapping[str, Fault] | None = None) -> None:
        self.precision = precision
        self.faults = dict(faults or {})
        self.versions = {"numpy": np.__version__}
        self.startup_s: dict[str, float] = {}
        self.memory = HostMemory()
        self.started = threading.Event()  # a step began
        self.release = threading.Event()
        self.release.set()
        self.encoded: list[str] = []  # prompts
        self.steps: list[str] = []  # the prompt of each row of each step
        self.rows: list[int] = []  # the number of rows of each step
        self._held: Sequence[str] | None = None  # prompts; empty for all
        self._holds_decoding = False

    def hold(self, *prompts: str, in_decoding: bool = False) -> None:
        """Make images of these prompts, or all images, wait in their first step until `release` is set.

        With `in_decoding`, all images wait in decoding instead.
        """
        self._held, self._holds_decoding = None if in_decoding else prompts, in_decoding
        self.started.clear()
        self.release.clear()

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return the prompts' code points."""
        self.encoded += prompts
        if any(self.faults.get(prompt) is Fault.ENCODE_ERROR for prompt in prompts):
            raise RuntimeError("no words for that")
        points = [np.array([ord(character) for character in prompt], self.precision) for prompt in prompts]
        return [TextEmbedding(array, array, array.nbytes) for array in points]

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """Return the velocity of each row."""
        self.rows.append(len(rows))
        return [self._velocity(row) for row in rows]

    def decode_latents(self, latents: Sequence[Array]) -> list[Array]:
        """Return each latent value as a square of 8x8 pixels."""
        mark = max(latent[3:].max() for latent in latents)
        if mark > _DECODE_NAN / 2:
            raise FloatingPointError
        if mark > _DECODE_ERROR / 2:
            raise RuntimeError("nothing to see")
        if self._holds_decoding:
            self._wait_for_release()
        squares = [np.kron(latent[:3], np.ones((1, 8, 8))) for latent in latents]
        return [np.clip(square * 40 + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0) for square in squares]

    def _velocity(self, row: DenoiseRow) -> Array:
        assert row.positive.tokens.dtype == self.precision, row.positive.tokens.dtype
        prompt = "".join(chr(int(point)) for point in row.positive.tokens)
        fault, is_first_step = self.faults.get(prompt), row.sigma == 1
        self.steps.append(prompt)
        self.started.set()
        if is_first_step and self._held is not None and (not self._held or prompt in self._held):
            self._wait_for_release()
        if fault is Fault.STEP_ERROR and not is_first_step:
            raise RuntimeError("the runtime's own words")
        if fault is Fault.STEP_NAN and not is_first_step:
            return np.full_like(row.latent, np.nan)
        mean = min(250, float(np.mean(row.positive.tokens.astype(float))))  # a larger value makes all pixels white
        target = mean / 100 + np.linspace(0, 0.5, row.latent.shape[-1]) - (self.precision != "float32")
        against = 0 if row.negative is None else row.guidance * (1 + row.negative.tokens.sum()) / 1e4
        against = min(2.5, against)  # a larger value makes all pixels black
        skipped = row.skip.scale * sum(row.skip.layers) / 100 if row.skip else 0
        velocity: Array = (row.latent - target + against + skipped).astype(np.float32)
        # A step subtracts the velocity: sigma falls by 1 over all steps.
        velocity[3:] -= _DECODE_ERROR * (fault is Fault.DECODE_ERROR) + _DECODE_NAN * (fault is Fault.DECODE_NAN)
        velocity[:3] += 1e6 * (fault is Fault.UNIFORM)
        return velocity

    def _wait_for_release(self) -> None:
        assert self.release.wait(3 * WAIT_S)  # longer than any test waits for the image


class FakeTokenizer(Tokenizers):
    """Reads the first 20 words of a prompt, each as one token."""

    def __init__(self) -> None:
        """Skip the files that `Tokenizers` reads."""

    def is_truncated(self, prompt: str) -> bool:
        """Return whether the prompt has more than 20 words."""
        return len(prompt.split()) > 20

    def tokens(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, at most 20."""
        return min(20, len(prompt.split()))


def fake_pipeline(directory: Path, card: Card = MINI, backend: FakeBackend | None = None) -> Pipeline:
    """Create a pipeline with a checkpoint in `directory`, named after it."""
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
    """Create a model pool with two models, "mini" (the default) and "large"."""
    backend = backend or FakeBackend()
    pipelines = [
        fake_pipeline(directory / "mini", MINI, backend),
        fake_pipeline(directory / "large", LARGE, backend),
        *([fake_pipeline(directory / "mini", MINI, fallback)] if fallback else []),
    ]
    limits = DeviceLimits(max_rows, max_in_flight, max_wait_s, memory_bytes=10**9)
    return pool_of(LocalEngine(pipelines, limits, EmbeddingCache(10**6), previews_per_s=math.inf))


def pool_of(engine: Engine) -> ModelPool:
    """Create a pool of an engine's models. Prompts of more than 20 words are truncated."""
    return ModelPool(engine, {model.name: FakeTokenizer() for model in engine.models}, 1024 * 1024)


class Clock:
    """A clock that only changes if a test sets `now_s`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return `now_s`."""
        return self.now_s


def key_store(*keys: Key) -> MemoryKeyStore:
    """Create a key store with these keys."""
    store = MemoryKeyStore()
    for key in keys:
        store.add(key)
    return store
