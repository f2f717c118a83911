"""The initial noise of an image: the noise of PyTorch's CPU generator except for rounding, without PyTorch.

A seed gives the same noise on every backend. Source: `normal_fill` in PyTorch's
ATen/native/cpu/DistributionTemplates.h. It draws one MT19937 word per value and turns it into a uniform value. The
Box-Muller method then turns blocks of 16 uniform values into blocks of 16 normal values.
"""

import math

import numpy as np
from jaxtyping import Float32

from sd35.tensors import Array

_BLOCK = 16
_MANTISSA_BITS = 24  # of a float32; PyTorch keeps the low 24 bits of each word


def initial_noise(seed: int, shape: tuple[int, ...]) -> Float32[Array, "*shape"]:
    """Return the same float32 noise as PyTorch, to within 5e-7.

    In PyTorch: `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`. `shape` must have at least 16
    values, because PyTorch draws fewer values in another way. A latent's shape is [16, height_px / 8, width_px / 8].
    """
    size = math.prod(shape)
    assert size >= _BLOCK, f"{shape} holds fewer than {_BLOCK} values"
    generator = np.random.RandomState(seed)  # MT19937
    noise = np.empty(size, np.float32)
    whole = size - size % _BLOCK  # the number of values in whole blocks
    uniforms = _uniforms(generator, size)
    noise[:whole] = _box_muller(uniforms[:whole])
    if whole < size:  # like PyTorch, draw the last 16 values again, which overwrites a part of the last whole block
        noise[-_BLOCK:] = _box_muller(_uniforms(generator, _BLOCK))
    return noise.reshape(shape)


def _uniforms(generator: np.random.RandomState, count: int) -> Float32[Array, " count"]:
    """Draw `count` uniform values in [0, 1) with 24 bits each."""
    drawn = generator.randint(0, 2**32, count, np.uint32) & np.uint32(2**_MANTISSA_BITS - 1)
    return drawn.astype(np.float32) * np.float32(2.0**-_MANTISSA_BITS)


def _box_muller(uniforms: Float32[Array, " count"]) -> Float32[Array, " count"]:
    """Turn blocks of 16 uniform values into blocks of 16 normal values: eight cosines, then the eight sines."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    # With the logarithm in float64 and the rest in float32, 92 % of the values equal PyTorch's in all bits.
    log = np.log((np.float32(1) - blocks[:, 0]).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * log)
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
