"""The backend contract: three batch-first functions over tensors.

A backend holds weights but no state of a request: everything that an evaluation needs is in its arguments. Rows of one
batch must have the same latent shape. Their steps, guidance, prompts, seeds and progress may differ.
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

    Attributes:
        tokens: CLIP-L and CLIP-G side by side, zero-padded to T5's width, followed by T5's tokens.
        pooled: The projected outputs of CLIP-L and CLIP-G, concatenated.
        nbytes: The size of both tensors together.
    """

    tokens: Float[Tensor, "text joint"]
    pooled: Float[Tensor, " pooled"]
    nbytes: int


@dataclass(frozen=True)
class Skip:
    """Skip-layer guidance in one step: pushes the velocity away from a prediction without some layers.

    Attributes:
        layers: Indices of the skipped transformer layers, counted from 0.
        scale: The strength of the push.
    """

    layers: tuple[int, ...]
    scale: float


@dataclass(frozen=True, eq=False)
class DenoiseRow:
    """The input of one image to an evaluation of the transformer.

    Attributes:
        negative: The embedding of the negative prompt. None exactly if guidance <= 1.
        skip: None if this step has no skip-layer guidance, and for backends that cannot skip layers.
    """

    latent: Float[Tensor, "16 h w"] | Float32[Array, "16 h w"]
    positive: TextEmbedding
    negative: TextEmbedding | None
    sigma: float
    guidance: float
    skip: Skip | None = None


def check_finite(total: float) -> None:
    """Raise FloatingPointError if `total`, the sum of a decoder's values, is not finite."""
    if not math.isfinite(total):
        raise FloatingPointError("the decoder's values are not finite")


class Memory(Protocol):
    """The memory that a backend computes in: that of the host or of a device."""

    @property
    def is_host(self) -> bool:
        """Whether it is the host's memory."""

    def free_bytes(self) -> int:
        """Return how much more memory this process can take now."""

    def held_bytes(self) -> int:
        """Return how much memory this process holds now; 0 if unknown."""

    def watch(self) -> None:
        """Start measuring the peak."""

    def peak_bytes(self) -> int:
        """Return the peak since `watch`, minus the memory that the process held at that time."""


class Backend(Protocol):
    """Computes the networks of a checkpoint. Each runtime has one implementation; one contract test suite covers all.

    One thread encodes and denoises while another decodes. A backend that cannot do both at once makes one of them wait.
    """

    @property
    def name(self) -> str:
        """The name in the registry, such as "onnx"."""

    @property
    def precision(self) -> str:
        """The precision that it computes in, as it appears in the profile: "float32", "bfloat16", "fp8-weights"."""

    @property
    def build(self) -> str | None:
        """The fingerprint of the transformer's graph if its precision needs calibration, otherwise None."""

    @property
    def is_tiled(self) -> bool:
        """Whether it decodes large images in tiles, which changes their pixels."""

    @property
    def is_compiled(self) -> bool:
        """Whether a compiler fused its operations for this machine, which changes the last bits of results."""

    @property
    def startup_s(self) -> Mapping[str, float]:
        """Seconds that opening took, by phase: "read" weights, "place" them on the device, "compile" graphs or code."""

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that affect results, by name. They go into each image's metadata."""

    @property
    def can_skip_layers(self) -> bool:
        """Whether rows may have skip-layer guidance. A graph with fixed layers cannot skip any."""

    @property
    def memory(self) -> Memory:
        """The memory that it computes in."""

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return one embedding per prompt, in order. Truncates text to the tokenizers' lengths, as Diffusers does."""

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float[Tensor, "16 h w"]]:
        """Return the velocity at each row's latent and sigma, with classifier-free guidance if guidance > 1.

        All rows must have the same latent shape. The transformer's timestep is `sigma * 1000`. If a row has `skip`,
        `scale * (c - s)` is added, where `c` is the velocity for the positive prompt and `s` the same without the
        skipped layers.
        """

    def decode_latents(self, latents: Sequence[Float[Tensor, "16 h w"]]) -> list[UInt8[Array, "h*8 w*8 3"]]:
        """Return one RGB image per latent. All latents must have the same shape.

        Raises FloatingPointError if the decoder's values are not finite. The pixels alone would not show this.
        """
