"""The initial noise compared with PyTorch's."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd35.sampling.noise import initial_noise

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 40)


@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_noise_equals_torch(seed: int, height: int, width: int) -> None:
    """Within 5e-7, in float32, for any seed and shape."""
    shape = (16, height, width)
    noise = initial_noise(seed, shape)
    assert noise.dtype == np.float32
    expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    assert abs(noise - expected).max() <= 5e-7


@given(seed=SEEDS, size=st.integers(16, 100))
def test_sizes_that_are_not_multiples_of_16_equal_torch(seed: int, size: int) -> None:
    """PyTorch draws the last 16 values again, and so does this."""
    expected = torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    assert abs(initial_noise(seed, (size,)) - expected).max() <= 5e-7
