"""Classifier-free guidance and the Euler step over ragged rows; the same code for NumPy arrays and torch tensors."""

from collections.abc import Sequence

import numpy as np

from sd35.backends.contract import DenoiseRow, Tensor, TextEmbedding

_TIMESTEPS = np.float32(1000)


def transformer_rows(rows: Sequence[DenoiseRow]) -> list[tuple[DenoiseRow, TextEmbedding]]:
    """What the transformer is to run, in Diffusers' order: the guided rows' negatives, then every row's positive."""
    negatives = [(row, row.negative) for row in rows if row.negative is not None]
    return [*negatives, *((row, row.positive) for row in rows)]


def guided_velocities(rows: Sequence[DenoiseRow], velocities: Sequence[Tensor]) -> list[Tensor]:
    """One velocity per row from those of `transformer_rows`: `u + guidance * (c - u)`, or `c` where there is no `u`."""
    positives, negatives = velocities[-len(rows) :], iter(velocities[: -len(rows)])
    return [
        positive if row.negative is None else (u := next(negatives)) + row.guidance * (positive - u)
        for row, positive in zip(rows, positives, strict=True)
    ]


def timestep_of(row: DenoiseRow) -> np.float32:
    """What the transformer is told of the noise: `sigma * 1000`, multiplied in float32."""
    return np.float32(row.sigma) * _TIMESTEPS


def step_length_of(row: DenoiseRow) -> float:
    """`sigma_next - sigma`, subtracted in float32, as Diffusers' scheduler does; negative."""
    return float(np.float32(row.sigma_next) - np.float32(row.sigma))
