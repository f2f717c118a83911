"""Heun's method shows that a solver with two evaluations a step fits the interface. CONTRIBUTING.md has its code."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from jaxtyping import Float

from sd35.sampling.arithmetic import add_scaled
from sd35.sampling.noise import initial_noise
from sd35.sampling.sigmas import SigmaSchedule
from sd35.sampling.solvers.base import Solver
from sd35.sampling.solvers.euler import Euler
from sd35.tensors import Array, Tensor, to_numpy

SHAPE = (16, 4, 6)


class Heun(Solver):
    """Heun's method: an Euler step, repeated with the mean of the velocities at its start and at its end."""

    def __init__(self, sigmas: Sequence[float], latent: Float[Tensor, "16 h w"], seed: int) -> None:
        super().__init__(sigmas, latent, seed)
        self._start: tuple[Tensor, Tensor] | None = None  # latent and velocity at the start of a step that is half done

    @staticmethod
    def evaluations(steps: int) -> int:
        """Return `2 * steps - 1`: the last step ends at sigma 0, where nothing is evaluated."""
        return 2 * steps - 1

    @property
    def sigma(self) -> float:
        """The sigma at which to evaluate `latent`: the start of the step, then its end."""
        return self.sigmas[self.step if self._start is None else self.step + 1]

    def _advanced(self, latent: Float[Tensor, "16 h w"], velocity: Float[Tensor, "16 h w"]) -> Float[Tensor, "16 h w"]:
        sigma, sigma_next = self.sigmas[self.step : self.step + 2]
        if self._start is None and sigma_next > 0:
            self._start = latent, velocity
            return add_scaled(latent, velocity, sigma_next - sigma)
        if self._start is not None:
            (latent, first), self._start = self._start, None
            velocity = (first + velocity) / 2
        self.step += 1
        return add_scaled(latent, velocity, sigma_next - sigma)


def solve(kind: type[Solver], steps: int, velocity: Callable[[Array, float], Array]) -> tuple[Array, int]:
    """Return the last latent of a solver, and the number of evaluations."""
    solver = kind([float(sigma) for sigma in SigmaSchedule(3.0).sigmas(steps)], initial_noise(1, SHAPE), seed=1)
    evaluations = 0
    while not solver.is_done:
        solver.advance(velocity(to_numpy(solver.latent), solver.sigma))
        evaluations += 1
    return to_numpy(solver.latent), evaluations


@pytest.mark.parametrize("steps", [1, 2, 28])
def test_all_steps_except_the_last_take_two_evaluations(steps: int) -> None:
    _, evaluations = solve(Heun, steps, lambda latent, _: latent)
    assert evaluations == Heun.evaluations(steps) == 2 * steps - 1


def test_heun_is_nearer_to_the_solution_than_euler() -> None:
    """The velocity equals the latent, so the latent shrinks by the factor `e` from sigma 1 to 0."""
    solution = initial_noise(1, SHAPE) / np.e
    heun, euler = (abs(solve(kind, 28, lambda latent, _: latent)[0] - solution).max() for kind in (Heun, Euler))
    assert heun < euler / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_keep_the_dtype_of_the_velocity(dtype: torch.dtype) -> None:
    """After the first and after the second evaluation of a step."""
    solver = Heun([1.0, 0.5, 0.0], initial_noise(1, SHAPE), seed=1)
    while not solver.is_done:
        solver.advance(torch.ones(SHAPE, dtype=dtype))
        assert solver.latent.dtype == dtype
