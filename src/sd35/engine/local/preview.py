"""Previews: a latent as a small RGB image, by a linear map instead of the autoencoder."""

import numpy as np
from jaxtyping import Float32, UInt8

from sd35.tensors import LATENT_PX, Array

_MAX_POSITIONS = 100_000  # latent positions to learn from: about six images of a megapixel
_MAX_ABS = 20.0  # latent values have a deviation of about 1; one image with larger ones would outweigh all others
_RIDGE = 1e-3  # regularization, for the first few images and for flat ones


class PreviewMap:
    """The best linear map from a checkpoint's 16 latent channels to RGB, learned from generated images.

    Least squares over all latent positions so far, each against the mean colour of its 8x8 pixels.
    """

    def __init__(self, channels: int) -> None:
        self._squares = np.eye(channels + 1, dtype=np.float64) * _RIDGE
        self._products = np.zeros((channels + 1, 3))
        self._seen = 0
        self._map = np.zeros((channels + 1, 3), np.float32)

    def learn(self, latent: Float32[Array, "16 h w"], pixels: UInt8[Array, "h*8 w*8 3"]) -> None:
        """Improve the map by a latent and its decoded image.

        Does nothing once it has learned from _MAX_POSITIONS positions, or if a value of the latent exceeds _MAX_ABS.
        """
        if self._seen >= _MAX_POSITIONS or np.abs(latent).max() > _MAX_ABS:
            return
        positions = _with_one(latent).astype(np.float64)
        height, width = latent.shape[1:]
        means = (
            pixels.reshape(height, LATENT_PX, width, LATENT_PX, 3).mean(axis=(1, 3), dtype=np.float64).reshape(-1, 3)
            / 255
        )
        self._squares += positions.T @ positions
        self._products += positions.T @ means
        self._seen += len(positions)
        self._map = np.linalg.lstsq(self._squares, self._products)[0].astype(np.float32)

    def to_rgb(self, latent: Float32[Array, "16 h w"]) -> UInt8[Array, "h w 3"]:
        """Return one RGB pixel for each latent position."""
        colours = _with_one(latent) @ self._map
        return (np.clip(colours, 0, 1) * 255).round().astype(np.uint8).reshape(*latent.shape[1:], 3)


def _with_one(latent: Float32[Array, "16 h w"]) -> Float32[Array, "h*w 17"]:
    values = latent.reshape(len(latent), -1).T
    return np.concatenate([values, np.ones((len(values), 1), np.float32)], axis=1)
