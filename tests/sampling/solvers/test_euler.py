"""Euler's method compared with Diffusers' scheduler."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sd35.sampling.noise import initial_noise
from sd35.sampling.sigmas import SigmaSchedule
from sd35.sampling.solvers.base import Solver
from sd35.sampling.solvers.euler import Euler
from sd35.tensors import to_numpy

SHAPE = (16, 4, 6)


def solver_of(steps: int, shift: float, latent: Any) -> Solver:
    """Return a solver with `steps` steps."""
    return Euler([float(sigma) for sigma in SigmaSchedule(shift).sigmas(steps)], latent, seed=0)


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 60), shift=st.floats(1.0, 6.0), seed=st.integers(0, 100))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_step_equals_that_of_diffusers_to_the_bit(dtype: torch.dtype, steps: int, shift: float, seed: int) -> None:
    """For the same sigmas and velocities, in every dtype."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    solver = Euler(scheduler.sigmas.tolist(), initial_noise(seed, SHAPE), seed)
    theirs = torch.from_numpy(initial_noise(seed, SHAPE)).to(dtype)
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = torch.from_numpy(initial_noise(1000 + index, SHAPE)).to(dtype)
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
        solver.advance(velocity)
        assert solver.latent.dtype == dtype
        assert torch.equal(solver.latent, theirs)
    assert solver.is_done


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_numpy_arrays_and_tensors_give_the_same_float32_latents(steps: int) -> None:
    arrays, tensors = (solver_of(steps, 3.0, initial_noise(7, SHAPE)) for _ in range(2))
    while not arrays.is_done:
        velocity = initial_noise(arrays.step, SHAPE)
        arrays.advance(velocity)
        tensors.advance(torch.from_numpy(velocity))
        assert isinstance(arrays.latent, np.ndarray)
        np.testing.assert_allclose(arrays.latent, to_numpy(tensors.latent), rtol=1e-6, atol=1e-6)
    assert tensors.is_done


def test_the_given_noise_is_not_changed() -> None:
    noise = initial_noise(1, SHAPE)
    before = noise.copy()
    solver = solver_of(2, 3.0, noise)
    solver.advance(np.ones(SHAPE, np.float32))
    assert np.array_equal(noise, before)


@pytest.mark.parametrize("steps", [1, 5, 28])
def test_each_step_takes_one_evaluation(steps: int) -> None:
    solver, evaluations = solver_of(steps, 3.0, initial_noise(1, SHAPE)), 0
    while not solver.is_done:
        solver.advance(np.zeros(SHAPE, np.float32))
        evaluations += 1
    assert evaluations == solver.evaluations(steps) == steps


def test_a_straight_path_is_predicted_from_its_first_evaluation() -> None:
    """If the velocity is constant, `denoised` is the result after each step."""
    noise, end = initial_noise(1, SHAPE), initial_noise(2, SHAPE)
    solver = solver_of(6, 3.0, noise)
    while not solver.is_done:
        solver.advance(noise - end)
        np.testing.assert_allclose(solver.denoised(), end, atol=1e-5)
    np.testing.assert_allclose(solver.latent, end, atol=1e-5)
