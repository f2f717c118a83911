"""Pictures drawn straight with a backend, for calibrating and judging: no queue, one picture at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from sd35.backends.contract import LATENT_CHANNELS, LATENT_PX, Array, Backend, DenoiseRow, TextEmbedding, to_numpy
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.noise import initial_noise
from sd35.engine.sampler import Sampler, sampler_of


@dataclass(frozen=True)
class Recipe:
    """How pictures are drawn; sides in pixels."""

    width_px: int
    height_px: int
    steps: int
    guidance: float
    sampler: Sampler


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """The checkpoint's own defaults."""
    card = checkpoint.card
    return Recipe(card.width, card.height, card.steps, card.guidance_scale, sampler_of(checkpoint))


def rows_of(
    backend: Backend, recipe: Recipe, embeddings: tuple[TextEmbedding, TextEmbedding], seed: int
) -> Iterator[DenoiseRow]:
    """Each step's row; the last one's is the finished latent's, with a sigma of 0.

    `embeddings`: the prompt's, and the negative one's.
    """
    shape = (LATENT_CHANNELS, recipe.height_px // LATENT_PX, recipe.width_px // LATENT_PX)
    latent = initial_noise(seed, shape)
    sigmas = [float(sigma) for sigma in recipe.sampler.sigmas(recipe.steps)]
    positive, negative = embeddings
    against = negative if recipe.guidance > 1 else None
    for sigma, sigma_next in pairwise(sigmas):
        row = DenoiseRow(latent, positive, against, sigma, sigma_next, recipe.guidance)
        yield row
        (latent,) = backend.denoise_step([row])
    yield DenoiseRow(latent, positive, against, 0.0, 0.0, recipe.guidance)


def draw(backend: Backend, recipe: Recipe, embeddings: tuple[TextEmbedding, TextEmbedding], seed: int) -> Array:
    """A picture, uint8 `[height, width, 3]`."""
    *_, last = rows_of(backend, recipe, embeddings, seed)
    (pixels,) = backend.decode_latents([last.latent])
    return pixels


def as_arrays(embedding: TextEmbedding) -> TextEmbedding:
    """An embedding of any backend for the `onnx` backend."""
    tokens, pooled = to_numpy(embedding.tokens), to_numpy(embedding.pooled)
    return TextEmbedding(tokens, pooled, tokens.nbytes + pooled.nbytes)
