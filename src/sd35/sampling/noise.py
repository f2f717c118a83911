"""The initial noise of an image, equal to that of PyTorch's CPU generator, without PyTorch.

Source: `normal_fill` in PyTorch's ATen/native/cpu/DistributionTemplates.h. It draws one MT19937 word per value, then
turns blocks of 16 uniforms into 16 normals by the Box-Muller method. A seed gives the same noise on every backend.
"""

import math

import numpy as np
from jaxtyping import Float32

from sd35.tensors import Array

_BLOCK = 16
_MANTISSA_BITS = 24  # of a float32: PyTorch keeps the low 24 bits of each word


def initial_noise(seed: int, shape: tuple[int, ...]) -> Float32[Array, "*shape"]:
    """Return `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` to within 5e-7, in float32.

    `shape` must have at least 16 values, because PyTorch draws fewer values in another way. A latent has the shape
    [16, height_px / 8, width_px / 8].
    """
    size = math.prod(shape)
    assert size >= _BLOCK, f"{shape} holds fewer than {_BLOCK} values"
    words = np.random.RandomState(seed)
    noise = np.empty(size, np.float32)
    whole = size - size % _BLOCK
    uniforms = _uniforms(words, size)
    noise[:whole] = _box_muller(uniforms[:whole])
    if whole < size:  # as PyTorch does: draw the last 16 values again, which overwrites a part of the last block
        noise[-_BLOCK:] = _box_muller(_uniforms(words, _BLOCK))
    return noise.reshape(shape)


def _uniforms(words: np.random.RandomState, count: int) -> Float32[Array, " count"]:
    """Return `count` values in [0, 1) with 24 bits each."""
    drawn = words.randint(0, 2**32, count, np.uint32) & np.uint32(2**_MANTISSA_BITS - 1)
    return drawn.astype(np.float32) * np.float32(2.0**-_MANTISSA_BITS)


def _box_muller(uniforms: Float32[Array, " count"]) -> Float32[Array, " count"]:
    """Turn blocks of 16 uniforms into blocks of 16 normals: eight cosines, then the eight sines."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    # The logarithm in float64 and the rest in float32 is nearest to PyTorch's vector code: 92 % are bit-equal.
    log = np.log((np.float32(1) - blocks[:, 0]).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * log)
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
