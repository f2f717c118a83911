"""Previews: convert a latent to a small RGB image, with a linear map instead of the slow autoencoder."""

import numpy as np
from jaxtyping import Float32, UInt8

from sd35.tensors import LATENT_PX, Array

_MAX_POSITIONS = 100_000  # latent positions to learn from: about six images of a megapixel
_MAX_ABS = 20.0  # usual values have a standard deviation of about 1; a latent with huge ones would outweigh all others
_RIDGE = 1e-3  # regularization, because a few images or flat images do not determine the map


class PreviewMap:
    """The best linear map from a checkpoint's 16 latent channels to RGB, learned from generated images.

    It is the least-squares fit of all latent positions so far to the mean colours of their 8x8 pixels.
    """

    def __init__(self, channels: int) -> None:
        # Sums over all positions. The map solves `squares @ map = products`, and its last row is a constant.
        self._squares = np.eye(channels + 1, dtype=np.float64) * _RIDGE
        self._products = np.zeros((channels + 1, 3))
        self._seen = 0  # positions
        self._map = np.zeros((channels + 1, 3), np.float32)

    def learn(self, latent: Float32[Array, "16 h w"], pixels: UInt8[Array, "h*8 w*8 3"]) -> None:
        """Improve the map with a latent and its decoded image.

        Does nothing after _MAX_POSITIONS positions, or if a value of the latent exceeds _MAX_ABS.
        """
        if self._seen >= _MAX_POSITIONS or np.abs(latent).max() > _MAX_ABS:
            return
        positions = _with_one(latent).astype(np.float64)
        height, width = latent.shape[1:]
        tiles = pixels.reshape(height, LATENT_PX, width, LATENT_PX, 3)  # of 8x8 pixels, one for each position
        means = tiles.mean(axis=(1, 3), dtype=np.float64).reshape(-1, 3) / 255
        self._squares += positions.T @ positions
        self._products += positions.T @ means
        self._seen += len(positions)
        self._map = np.linalg.lstsq(self._squares, self._products)[0].astype(np.float32)

    def to_rgb(self, latent: Float32[Array, "16 h w"]) -> UInt8[Array, "h w 3"]:
        """Return one RGB pixel for each latent position."""
        colours = _with_one(latent) @ self._map
        return (np.clip(colours, 0, 1) * 255).round().astype(np.uint8).reshape(*latent.shape[1:], 3)


def _with_one(latent: Float32[Array, "16 h w"]) -> Float32[Array, "h*w 17"]:
    """Return the channels of each position, followed by a 1 for the constant of the linear map."""
    values = latent.reshape(len(latent), -1).T
    return np.concatenate([values, np.ones((len(values), 1), np.float32)], axis=1)
