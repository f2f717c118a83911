"""Arithmetic on latents that gives the same numbers for NumPy arrays and for torch tensors, without importing torch."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from sd35.tensors import Tensor


def to_float32(tensor: Float[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Return `tensor` in float32, on the same device. If it is in float32 already, return the same object."""
    library = _library_of(tensor)
    return library.asarray(tensor, dtype=library.float32)


def like(tensor: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `tensor` with the library, dtype and device of `other`. If it has them already, return the same object."""
    if type(tensor) is type(other) and tensor.dtype == other.dtype and tensor.device == other.device:
        return tensor  # fast, because this runs at every step of every image
    return _library_of(other).asarray(tensor, dtype=other.dtype, device=other.device)


def add_scaled(
    latent: Float[Tensor, "*shape"], velocity: Float[Tensor, "*shape"], scale: float
) -> Float[Tensor, "*shape"]:
    """Return `latent + scale * velocity`, added in float32 and rounded to the dtype of `velocity`.

    `scale` is rounded to float32. The product is computed in the dtype of `velocity`, as in Diffusers' schedulers.
    """
    if isinstance(velocity, np.ndarray) and velocity.dtype == np.float32:
        return to_float32(latent) + scale * velocity  # NumPy rounds a Python float to the array's dtype
    library = _library_of(velocity)
    # PyTorch multiplies a tensor by a scalar tensor in the dtype of the tensor.
    return like(to_float32(latent) + library.asarray(scale, dtype=library.float32) * velocity, velocity)


def _library_of(tensor: Tensor) -> Any:  # noqa: ANN401  the module numpy or torch
    """Return the module whose functions handle a tensor."""
    return np if isinstance(tensor, np.ndarray) else sys.modules["torch"]  # a torch tensor exists, so torch is imported
