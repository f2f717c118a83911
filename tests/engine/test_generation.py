"""One picture on its way from noise to latent."""

from pathlib import Path

import numpy as np

from sd35.engine.generation import Picture, Task
from sd35.generation.params import Wanted, resolve
from tests.support.fake_backend import NumpyBackend, double_model


def test_every_preview_is_of_the_end(tmp_path: Path):
    """On a straight path from noise to a latent, as flow matching wants it, each step's preview is the last one's."""
    model = double_model(tmp_path / "mini")
    rng = np.random.default_rng(0)
    for _ in range(3):
        latent = rng.standard_normal((16, 16, 16), np.float32)
        model.painter.preview.learn(latent, NumpyBackend().decode_latents([latent])[0])
    request = resolve(Wanted("a cat", seed=1), {model.name: model})
    picture = Picture(Task(request, 128, 128), model.painter)
    noise, end = rng.standard_normal((2, 16, 16, 16), np.float32)
    picture.latent = noise
    previews = []
    for sigma in picture.sigmas[1:]:
        assert picture.advance(((1 - sigma) * end + sigma * noise).astype(np.float32)) is None
        previews.append(picture.progress().preview().astype(int))
    assert len(previews) == 4
    assert np.ptp(previews[-1]) > 100
    assert all(abs(preview - previews[-1]).max() <= 1 for preview in previews)
