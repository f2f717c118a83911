"""The interface of backends: encode prompts, predict velocities and decode latents, each for a batch.

A backend holds weights but no state of a request. All inputs of an evaluation are in its arguments. In this module, a
row is the input of one image (`DenoiseRow`). With guidance, it becomes two rows of the transformer's own batch. Rows of
one batch must have the same latent shape. Their steps, guidance and prompts may differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Float32, UInt8

from sd35.tensors import Array, Tensor

# The remedy in errors about files that a runtime cannot load.
CHECK_FILES = (
    "check downloaded files with `sd35 verify`, and download or build damaged files again; if the files are intact,"
    " please report this"
)


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """The outputs of the three text encoders for one prompt (SD3 paper, section 4; Diffusers' `encode_prompt`).

    Attributes:
        tokens: First the token outputs of CLIP-L and CLIP-G, joined along the channels and zero-padded to T5's width.
            Then T5's token outputs.
        pooled: The projected outputs of CLIP-L and CLIP-G, concatenated.
        nbytes: The size of `tokens` and `pooled` together.
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
        latent: The noisy latent.
        positive: The embedding of the prompt.
        negative: The embedding of the negative prompt. None if guidance <= 1, and only then.
        sigma: The share of noise in `latent`, from 1 (all noise) to 0 (none).
        guidance: The scale of classifier-free guidance.
        skip: None if this step has no skip-layer guidance, and for backends that cannot skip layers.
    """

    latent: Float[Tensor, "16 h w"] | Float32[Array, "16 h w"]
    positive: TextEmbedding
    negative: TextEmbedding | None
    sigma: float
    guidance: float
    skip: Skip | None = None


def check_finite(total: float) -> None:
    """Raise FloatingPointError if `total`, the sum of a decoder's values, is not finite.

    Internal: the engine turns the error into a NumericalFailure.
    """
    if not math.isfinite(total):
        raise FloatingPointError("the decoder's values are not finite")


class Memory(Protocol):
    """The memory that a backend computes in: the memory of the host or of a device."""

    @property
    def is_host(self) -> bool:
        """Whether this is the host's memory."""

    def free_bytes(self) -> int:
        """Return how much more memory this process can take now."""

    def held_bytes(self) -> int:
        """Return how much memory this process holds now; 0 if unknown."""

    def watch(self) -> None:
        """Start measuring the peak of the memory that this process holds."""

    def peak_bytes(self) -> int:
        """Return the peak since `watch`, minus the memory that the process held at that time."""


class Backend(Protocol):
    """Computes the networks of a checkpoint. `tests/backends/test_contract.py` tests all implementations.

    One thread encodes and denoises while another decodes. If a backend cannot do this at the same time, it makes one of
    the threads wait.
    """

    @property
    def name(self) -> str:
        """The name in the registry, such as "onnx"."""

    @property
    def precision(self) -> str:
        """The precision of the computation, as the image's profile names it, such as "float32" or "fp8-weights"."""

    @property
    def build(self) -> str | None:
        """Digits that identify the transformer's graph if `sd35 compile` calibrated it for FP8, otherwise None.

        Graphs of other calibrations may give other images. The digits are therefore part of the image's profile.
        """

    @property
    def is_tiled(self) -> bool:
        """Whether the backend decodes large images in tiles, which changes their pixels."""

    @property
    def is_compiled(self) -> bool:
        """Whether `torch.compile` compiled the transformer, which changes the last bits of results."""

    @property
    def startup_s(self) -> Mapping[str, float]:
        """Seconds that opening the backend took, by phase.

        Phases are "read" (weights from disk), "place" (weights on the device) and "compile" (graphs or code). A backend
        leaves out the phases that it does not have.
        """

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that affect results, by name. They go into each image's metadata."""

    @property
    def can_skip_layers(self) -> bool:
        """Whether rows may have skip-layer guidance. A graph with fixed layers cannot skip any."""

    @property
    def memory(self) -> Memory:
        """The memory that the backend computes in."""

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return one embedding per prompt, in order. Truncates long prompts in the same place as Diffusers."""

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float[Tensor, "16 h w"]]:
        """Return the velocity at each row's latent and sigma, with classifier-free guidance if guidance > 1.

        All rows must have the same latent shape. The transformer's timestep is `sigma * 1000`. If a row has `skip`, the
        backend adds `scale * (c - s)`. Here, `c` is the velocity for the positive prompt, and `s` is the velocity for
        the same prompt without the skipped layers.
        """

    def decode_latents(self, latents: Sequence[Float[Tensor, "16 h w"]]) -> list[UInt8[Array, "h*8 w*8 3"]]:
        """Return one RGB image per latent. All latents must have the same shape.

        Raises FloatingPointError if the decoder's values are not finite, because the pixels would not show this.
        """
