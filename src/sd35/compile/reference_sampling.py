"""Generate images with a backend directly, one at a time, for calibration and the quality gate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sd35.backends.base import Backend, DenoiseRow, TextEmbedding
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.sampling.noise import initial_noise
from sd35.sampling.sigmas import SigmaSchedule, sigma_schedule_of
from sd35.sampling.solvers.euler import Euler
from sd35.tensors import LATENT_CHANNELS, LATENT_PX, Array, to_numpy

Guided: TypeAlias = tuple[TextEmbedding, TextEmbedding]
"""A text to generate an image of: the embeddings of a prompt and of its negative prompt."""


@dataclass(frozen=True)
class Recipe:
    """The sampling parameters of an image. `guidance` is the guidance scale; `sampler` computes the sigmas."""

    width_px: int
    height_px: int
    steps: int
    guidance: float
    sampler: SigmaSchedule


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """Return the default sampling parameters of a checkpoint's card."""
    card = checkpoint.card
    return Recipe(card.width, card.height, card.steps, card.guidance_scale, sigma_schedule_of(checkpoint))


def rows_of(backend: Backend, recipe: Recipe, text: Guided, seed: int) -> Iterator[DenoiseRow]:
    """Denoise an image with Euler's method, and yield the transformer's inputs at each step.

    The last row has a sigma of 0: it is no step, but has the finished latent.
    """
    shape = (LATENT_CHANNELS, recipe.height_px // LATENT_PX, recipe.width_px // LATENT_PX)
    solver = Euler([float(sigma) for sigma in recipe.sampler.sigmas(recipe.steps)], initial_noise(seed, shape), seed)
    positive, negative = text
    negative_if_guided = negative if recipe.guidance > 1 else None
    while not solver.is_done:
        row = DenoiseRow(solver.latent, positive, negative_if_guided, solver.sigma, recipe.guidance)
        yield row
        (velocity,) = backend.predict_velocity([row])
        solver.advance(velocity)
    yield DenoiseRow(solver.latent, positive, negative_if_guided, 0.0, recipe.guidance)


def generate_image(backend: Backend, recipe: Recipe, text: Guided, seed: int) -> Array:
    """Generate an image, uint8 `[height, width, 3]`."""
    *_, last = rows_of(backend, recipe, text, seed)
    (pixels,) = backend.decode_latents([last.latent])
    return pixels


def as_arrays(text: Guided) -> Guided:
    """Convert the embeddings of any backend to NumPy arrays."""
    positive, negative = (TextEmbedding(to_numpy(each.tokens), to_numpy(each.pooled), each.nbytes) for each in text)
    return positive, negative
