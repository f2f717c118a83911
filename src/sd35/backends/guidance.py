"""Classifier-free guidance and skip-layer guidance for a batch of images. Images without guidance may be among them.

The same code handles NumPy arrays and torch tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from sd35.backends.base import DenoiseRow, TextEmbedding
from sd35.tensors import Tensor

_TIMESTEPS = np.float32(1000)  # in the training of SD3.5; a timestep is a sigma scaled by this number

TransformerRow: TypeAlias = tuple[DenoiseRow, TextEmbedding]
"""One row of the transformer's batch: the input of an image, and the embedding of its positive or negative prompt."""
Layers: TypeAlias = tuple[int, ...]
"""Indices of skipped transformer layers."""


def transformer_rows(rows: Sequence[DenoiseRow]) -> list[TransformerRow]:
    """Return the rows of the transformer's batch. Negative prompts come first, as in Diffusers, then positive prompts.

    A row without guidance has no negative prompt.
    """
    negatives = [(row, row.negative) for row in rows if row.negative is not None]
    return [*negatives, *((row, row.positive) for row in rows)]


def skipping_rows(rows: Sequence[DenoiseRow]) -> dict[Layers, list[TransformerRow]]:
    """Return the transformer rows to evaluate without some layers, by the layers to skip.

    Each image with skip-layer guidance needs one such row, with its positive prompt.
    """
    by_layers: dict[Layers, list[TransformerRow]] = {}
    for row in rows:
        if row.skip:
            by_layers.setdefault(row.skip.layers, []).append((row, row.positive))
    return by_layers


def guided_velocities(
    rows: Sequence[DenoiseRow],
    velocities: Sequence[Tensor],
    skipping: Mapping[Layers, Sequence[Tensor]] = MappingProxyType({}),
) -> list[Tensor]:
    """Combine the transformer's velocities into one guided velocity per row.

    Let `c` and `u` be the velocities for the positive and the negative prompt. The result is `u + guidance * (c - u)`,
    or `c` if the row has no negative prompt. Skip-layer guidance adds `scale * (c - s)`, where `s` is the velocity
    without the skipped layers. The order of operations is the same as in Diffusers.

    Args:
        rows: The rows of the batch.
        velocities: The transformer's outputs for `transformer_rows(rows)`, in this order.
        skipping: The transformer's outputs for `skipping_rows(rows)`, by the same keys.
    """
    positives, negatives = velocities[-len(rows) :], iter(velocities[: -len(rows)])
    without_layers = {layers: iter(outputs) for layers, outputs in skipping.items()}
    return [_guided(row, positive, negatives, without_layers) for row, positive in zip(rows, positives, strict=True)]


def _guided(
    row: DenoiseRow, positive: Tensor, negatives: Iterator[Tensor], without_layers: Mapping[Layers, Iterator[Tensor]]
) -> Tensor:
    """Return the guided velocity of one row. Takes the row's other velocities from the iterators, in row order."""
    velocity = positive
    if row.negative is not None:
        negative = next(negatives)
        velocity = negative + row.guidance * (positive - negative)
    if row.skip:
        velocity = velocity + (positive - next(without_layers[row.skip.layers])) * row.skip.scale
    return velocity


def timestep_of(row: DenoiseRow) -> np.float32:
    """Return the transformer's timestep: `sigma * 1000`, multiplied in float32."""
    return np.float32(row.sigma) * _TIMESTEPS
