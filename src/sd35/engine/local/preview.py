"""Images before they are done: what a latent looks like by a linear map, without the autoencoder."""

import numpy as np
from jaxtyping import Float32, UInt8

from sd35.tensors import LATENT_PX, Array

_ENOUGH = 100_000  # latent positions to learn from: a dozen images of a megapixel
_SANE = 20.0  # of a latent value, whose deviation is about 1: beyond, one image would outweigh all others
_RIDGE = 1e-3  # keeps the first few images, flat ones too, from a map that is all edges


class PreviewMap:
    """The linear map from 16 latent channels to RGB that fits a checkpoint best, learnt from the images it made.

    Least squares over all latent positions seen, each against the mean colour of its 8x8 pixels.
    """

    def __init__(self, channels: int) -> None:
        self._squares = np.eye(channels + 1, dtype=np.float64) * _RIDGE
        self._products = np.zeros((channels + 1, 3))
        self._seen = 0
        self._map = np.zeros((channels + 1, 3), np.float32)

    def learn(self, latent: Float32[Array, "16 h w"], pixels: UInt8[Array, "h*8 w*8 3"]) -> None:
        """A latent, and the image the autoencoder made of it; once enough were seen, nothing."""
        if self._seen >= _ENOUGH or np.abs(latent).max() > _SANE:
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

    def draw(self, latent: Float32[Array, "16 h w"]) -> UInt8[Array, "h w 3"]:
        """One pixel for each latent position."""
        colours = _with_one(latent) @ self._map
        return (np.clip(colours, 0, 1) * 255).round().astype(np.uint8).reshape(*latent.shape[1:], 3)


def _with_one(latent: Float32[Array, "16 h w"]) -> Float32[Array, "h*w 17"]:
    values = latent.reshape(len(latent), -1).T
    return np.concatenate([values, np.ones((len(values), 1), np.float32)], axis=1)
