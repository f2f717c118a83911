"""Classifier-free guidance and skip-layer guidance for batches of guided and unguided rows.

The same code handles NumPy arrays and torch tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from sd35.backends.base import DenoiseRow, TextEmbedding
from sd35.tensors import Tensor

_TIMESTEPS = np.float32(1000)

TransformerRow: TypeAlias = tuple[DenoiseRow, TextEmbedding]
Layers: TypeAlias = tuple[int, ...]


def transformer_rows(rows: Sequence[DenoiseRow]) -> list[TransformerRow]:
    """Return the transformer's rows, in Diffusers' order: the negatives of guided rows, then all positives."""
    negatives = [(row, row.negative) for row in rows if row.negative is not None]
    return [*negatives, *((row, row.positive) for row in rows)]


def skipping_rows(rows: Sequence[DenoiseRow]) -> dict[Layers, list[TransformerRow]]:
    """Group the rows with skip-layer guidance by their skipped layers. Only positive prompts are evaluated this way."""
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
    """Combine the velocities of `transformer_rows` and `skipping_rows` into one per row.

    A velocity is `u + guidance * (c - u)`, or `c` for a row without a negative; `c` and `u` are those of the positive
    and the negative prompt. If the row skips layers, `scale * (c - s)` is added, with `s` from `skipping`. The order of
    operations is that of Diffusers.
    """
    positives, negatives = velocities[-len(rows) :], iter(velocities[: -len(rows)])
    without = {layers: iter(each) for layers, each in skipping.items()}
    return [_guided(row, positive, negatives, without) for row, positive in zip(rows, positives, strict=True)]


def _guided(
    row: DenoiseRow, positive: Tensor, negatives: Iterator[Tensor], without: Mapping[Layers, Iterator[Tensor]]
) -> Tensor:
    velocity = positive if row.negative is None else (u := next(negatives)) + row.guidance * (positive - u)
    return velocity + (positive - next(without[row.skip.layers])) * row.skip.scale if row.skip else velocity


def timestep_of(row: DenoiseRow) -> np.float32:
    """Return the transformer's timestep: `sigma * 1000`, multiplied in float32."""
    return np.float32(row.sigma) * _TIMESTEPS
