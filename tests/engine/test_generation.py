"""One image on its way from noise to latent."""

from pathlib import Path

import numpy as np

from sd35.engine.generation import Generation, Task
from sd35.generation.params import GenerationParams, resolve
from tests.support.fake_backend import FakeBackend, fake_model


def test_every_preview_predicts_the_final_image(tmp_path: Path):
    """On a straight path from noise to a latent, as flow matching wants it, each step's preview is the last one's."""
    model = fake_model(tmp_path / "mini")
    rng = np.random.default_rng(0)
    for _ in range(3):
        latent = rng.standard_normal((16, 16, 16), np.float32)
        model.pipeline.preview.learn(latent, FakeBackend().decode_latents([latent])[0])
    request = resolve(GenerationParams("a cat", seed=1), {model.name: model})
    generation = Generation(Task(request, 128, 128), model.pipeline)
    noise, end = rng.standard_normal((2, 16, 16, 16), np.float32)
    generation.latent = noise
    previews = []
    for sigma in generation.sigmas[1:]:
        assert generation.advance(((1 - sigma) * end + sigma * noise).astype(np.float32)) is None
        previews.append(generation.progress().preview().astype(int))
    assert len(previews) == 4
    assert np.ptp(previews[-1]) > 100
    assert all(abs(preview - previews[-1]).max() <= 1 for preview in previews)
