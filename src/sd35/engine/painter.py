"""One picture from noise to pixels, on the backend contract."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import UInt8

from sd35.backends.contract import Array, Backend, DenoiseRow, Tensor
from sd35.engine.noise import initial_noise
from sd35.engine.sampler import Sampler
from sd35.errors import PictureFailed
from sd35.request import Request

LATENT_CHANNELS = 16
LATENT_PX = 8  # pixels of a side for each latent value
Pixels: TypeAlias = UInt8[Array, "h w 3"]


@dataclass(frozen=True)
class Task:
    """A request, and the size to draw it at: the requested one, or a stand-in model's own."""

    request: Request
    width_px: int
    height_px: int


@dataclass(frozen=True, eq=False)
class Painter:
    """A checkpoint ready to draw: its weights in a backend, and its sigma schedule."""

    backend: Backend
    sampler: Sampler

    def paint(self, task: Task) -> Generator[int, None, Pixels]:
        """Yield after each denoising step how many are done; return the pixels.

        Raises PictureFailed where values stop being finite. Whoever drives it may stop between steps.
        """
        request = task.request
        sigmas = [float(sigma) for sigma in self.sampler.sigmas(request.steps)]
        latent: Tensor = initial_noise(
            request.seed, (LATENT_CHANNELS, task.height_px // LATENT_PX, task.width_px // LATENT_PX)
        )
        guided = request.guidance_scale > 1
        prompts = [request.prompt, request.negative_prompt] if guided else [request.prompt]
        positive, *negative = self.backend.encode_text(prompts)
        for step in range(request.steps):
            row = DenoiseRow(
                latent,
                positive,
                negative[0] if guided else None,
                sigmas[step],
                sigmas[step + 1],
                request.guidance_scale,
            )
            (latent,) = self.backend.denoise_step([row])
            self._check_finite(latent, step + 1, request.steps)
            yield step + 1
        (pixels,) = self.backend.decode_latents([latent])
        return pixels

    def _check_finite(self, latent: Tensor, step: int, steps: int) -> None:
        # abs and max are all that NumPy and torch spell alike, and both let NaN through to the maximum.
        if not math.isfinite(float(abs(latent).max())):
            remedy = "" if self.backend.precision == "float32" else "; a wider precision (bfloat16, float32) may help"
            raise PictureFailed(
                f"values stopped being finite in {self.backend.precision} at step {step} of {steps}{remedy}"
            )
