"""Solver steps on a backend, without an engine."""

from collections.abc import Sequence

from sd35.backends.base import Backend, DenoiseRow
from sd35.sampling.arithmetic import add_scaled, like
from sd35.tensors import Tensor


def euler_step(backend: Backend, rows: Sequence[DenoiseRow], sigma_next: float) -> list[Tensor]:
    """Return each row's latent after one Euler step to `sigma_next`."""
    return [
        add_scaled(like(row.latent, velocity), velocity, sigma_next - row.sigma)
        for row, velocity in zip(rows, backend.predict_velocity(rows), strict=True)
    ]
