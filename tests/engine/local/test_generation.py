"""One generation, from noise to latent."""

from pathlib import Path

import numpy as np

from sd35.engine.base import Work
from sd35.engine.local.generation import Generation
from sd35.generation.params import GenerationParams, resolve
from tests.support.fake_backend import FakeBackend, fake_pipeline


def test_every_preview_predicts_the_end_of_a_straight_path(tmp_path: Path):
    """A velocity that does not change, as in ideal flow matching, makes all previews equal."""
    pipeline = fake_pipeline(tmp_path / "mini")
    rng = np.random.default_rng(0)
    for _ in range(3):
        latent = rng.standard_normal((16, 16, 16), np.float32)
        pipeline.preview.learn(latent, FakeBackend().decode_latents([latent])[0])
    request = resolve(GenerationParams("a cat", seed=1), {pipeline.info.name: pipeline.info})
    generation = Generation(Work(request, 128, 128), pipeline)
    noise, end = rng.standard_normal((2, 16, 16, 16), np.float32)
    generation.begin(pipeline.backend.encode_text(generation.work.prompts), 0, 0)
    generation.solver.latent = noise
    previews = []
    while not generation.solver.is_done:
        assert generation.advance(noise - end) is None
        previews.append(generation.preview().astype(int))
    assert len(previews) == 4
    assert np.ptp(previews[-1]) > 100
    assert all(abs(preview - previews[-1]).max() <= 1 for preview in previews)
