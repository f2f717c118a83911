"""A checkpoint in a backend, ready to be served under its name."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from sd35.backends.base import Backend
from sd35.checkpoints.card import Card, SkipLayers
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.generation import Pipeline
from sd35.sampling.sigmas import sigma_schedule_of

TILED, COMPILED = "tiled", "compiled"  # parts of a profile, see there


class Texts(Protocol):
    """What text encoders read of a prompt."""

    def is_truncated(self, prompt: str) -> bool:
        """Whether they read less than the whole of it."""

    def tokens(self, prompt: str) -> int:
        """How many tokens the one that reads the most reads."""


@dataclass(frozen=True, eq=False)
class Model:
    """What makes a request's images, and `texts`, what its text encoders read of a prompt."""

    checkpoint: Checkpoint
    backend: Backend
    texts: Texts

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.checkpoint.name

    @property
    def card(self) -> Card:
        """What the checkpoint says of itself."""
        return self.checkpoint.card

    @property
    def profile(self) -> str:
        """The numeric profile: "onnx/float32", "onnx/fp8/5d7e9a10", or "diffusers/bfloat16/compiled/tiled"."""
        parts = [self.backend.name, self.backend.precision]
        parts += [self.backend.build] if self.backend.build else []
        parts += [COMPILED] if self.backend.is_compiled else []
        parts += [TILED] if self.backend.is_tiled else []
        return "/".join(parts)

    @property
    def skip_layers(self) -> SkipLayers | None:
        """Skip-layer guidance as the card has it; None where it has none, or where the backend cannot skip layers."""
        return self.card.skip_layers if self.backend.can_skip_layers else None

    @cached_property
    def pipeline(self) -> Pipeline:
        """Raises CheckpointError where the checkpoint's scheduler is none that is known."""
        return Pipeline(self.backend, sigma_schedule_of(self.checkpoint), self.card.side_px, self.card.skip_layers)
