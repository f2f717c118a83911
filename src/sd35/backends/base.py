"""The backend contract: three batch-first functions over tensors.

A backend keeps weights, never request state. The step index and every sampler quantity are arguments, so rows of one
batch share a latent shape and nothing else: steps, guidance, prompts, seeds and progress may all differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Float32, UInt8

from sd35.tensors import Array, Tensor


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """The outputs of the three text encoders for one prompt (SD3 paper, section 4; Diffusers' `encode_prompt`).

    `tokens`: CLIP-L and CLIP-G side by side, zero-padded to T5's width, then T5, concatenated over tokens.
    `pooled`: CLIP-L's and CLIP-G's projected outputs, concatenated.
    """

    tokens: Float[Tensor, "text joint"]
    pooled: Float[Tensor, " pooled"]
    nbytes: int


@dataclass(frozen=True)
class Skip:
    """Skip-layer guidance of one step: the velocity is pushed away from a prediction without some layers, by `scale`.

    `layers`: of the transformer, counted from 0.
    """

    layers: tuple[int, ...]
    scale: float


@dataclass(frozen=True, eq=False)
class DenoiseRow:
    """One image's part of an evaluation of the transformer. `negative` is None exactly when guidance <= 1.

    `skip` is None if this step has no skip-layer guidance, and for backends that cannot skip layers.
    """

    latent: Float[Tensor, "16 h w"] | Float32[Array, "16 h w"]
    positive: TextEmbedding
    negative: TextEmbedding | None
    sigma: float
    guidance: float
    skip: Skip | None = None


def check_finite(total: float) -> None:
    """Raise FloatingPointError unless a decoder's values, whose sum is `total`, are all finite."""
    if not math.isfinite(total):
        raise FloatingPointError("the decoder's values are not finite")


class Memory(Protocol):
    """The memory that a backend computes in: the host's or a device's."""

    @property
    def is_host(self) -> bool:
        """Whether it is the host's."""

    def free_bytes(self) -> int:
        """Return how much more memory this process can take now."""

    def held_bytes(self) -> int:
        """Return how much memory this process holds now; 0 if unknown."""

    def watch(self) -> None:
        """Start to measure the peak."""

    def peak_bytes(self) -> int:
        """Return the peak since `watch`, above what was held then."""


class Backend(Protocol):
    """Computes the networks. Each runtime has one implementation, and one contract test suite runs over all.

    One thread encodes and denoises while another decodes. A backend that cannot do both at once makes one wait.
    """

    @property
    def name(self) -> str:
        """The backend's name in the table: "onnx", "openvino"."""

    @property
    def precision(self) -> str:
        """The precision that it computes in, as in the profile: "float32", "bfloat16", "fp8-weights"."""

    @property
    def build(self) -> str | None:
        """The build, if a checkpoint may have several in one precision, because calibrations differ."""

    @property
    def is_tiled(self) -> bool:
        """Whether it decodes large images in tiles, which shows in their pixels."""

    @property
    def is_compiled(self) -> bool:
        """Whether a compiler fused its operations for this machine, which shows in the last bits."""

    @property
    def startup_s(self) -> Mapping[str, float]:
        """Seconds that opening it took: to "read" weights, "place" them on the device, "compile" graphs or code."""

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that shape the numbers, name -> version; they go into each image's metadata."""

    @property
    def can_skip_layers(self) -> bool:
        """Whether a row may ask for skip-layer guidance. A graph whose layers are fixed cannot leave any out."""

    @property
    def memory(self) -> Memory:
        """The memory that it computes in."""

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return one embedding per prompt, in order. Text is truncated to the tokenizers' lengths, as in Diffusers."""

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float[Tensor, "16 h w"]]:
        """Return the velocity at each row's latent and sigma, with classifier-free guidance if guidance > 1.

        All rows have one latent shape. The transformer's timestep is `sigma * 1000`. A row's `skip` adds
        `scale * (c - s)` to its velocity: `c` for the positive prompt, `s` the same without the skipped layers.
        """

    def decode_latents(self, latents: Sequence[Float[Tensor, "16 h w"]]) -> list[UInt8[Array, "h*8 w*8 3"]]:
        """Return one RGB image per latent; all latents have one shape.

        Raises FloatingPointError if the decoder's values are not finite, which the pixels would not show.
        """
