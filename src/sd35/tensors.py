"""Type aliases for arrays and tensors, and the shape of a latent."""

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32

Array: TypeAlias = np.ndarray[Any, Any]
Tensor: TypeAlias = Any
"""A latent or an embedding on the backend's device: a NumPy array or a torch tensor. Only the backend reads it."""

LATENT_CHANNELS = 16
LATENT_PX = 8  # pixels per latent position, horizontally and vertically


def to_numpy(tensor: Float[Tensor, "*shape"]) -> Float32[Array, "*shape"]:
    """Convert the tensor of any backend to a float32 NumPy array."""
    return tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor.float().cpu())
