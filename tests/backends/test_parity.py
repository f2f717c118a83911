"""Same seed, same picture: every backend against plain `StableDiffusion3Pipeline`, step by step and at the end."""

from functools import cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from sd35.backends.contract import Array, Backend, DenoiseRow
from sd35.backends.diffusers import DiffusersBackend, place
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.noise import initial_noise
from sd35.engine.sampler import sampler_of
from sd35.request import Request
from tests.painting import paint


class Case(NamedTuple):
    """What the pictures differ in."""

    steps: int
    guidance: float
    negative: str
    width_px: int
    height_px: int


SMALL = [Case(*case, 96, 64) for case in product((1, 4), (0.0, 1.0, 4.5, 7.0), ("", "a red dog"))]
SQUARE = [Case(1, 7.0, "a red dog", 128, 128), Case(4, 0.0, "", 128, 128), Case(4, 4.5, "a red dog", 64, 64)]
LONG = [
    Case(28, 0.0, "", 64, 96),
    Case(28, 1.0, "a red dog", 64, 64),
    Case(28, 4.5, "", 128, 128),
    Case(28, 7.0, "a red dog", 96, 64),
]
PROMPT = "a cat to the left of a Dog on a blue background!"
SEED = 7


def plain_call(pipeline: StableDiffusion3Pipeline, checkpoint: Checkpoint, case: Case, **more: Any) -> Any:
    """What a user of Diffusers writes."""
    return pipeline(
        PROMPT,
        negative_prompt=case.negative,
        width=case.width_px,
        height=case.height_px,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        max_sequence_length=checkpoint.card.max_sequence_length,
        **more,
    ).images[0]


@pytest.fixture(scope="session")
def reference(pipeline: StableDiffusion3Pipeline, checkpoint: Checkpoint) -> Any:
    """Case -> the pipeline's picture, each drawn once for all backends."""

    @cache
    def draw(case: Case) -> Array:
        return np.asarray(plain_call(pipeline, checkpoint, case, generator=torch.Generator("cpu").manual_seed(SEED)))

    return draw


def request_of(case: Case) -> Request:
    """A case as the engine sees it."""
    return Request(
        PROMPT,
        case.negative,
        case.width_px,
        case.height_px,
        case.steps,
        case.guidance,
        SEED,
        "model",
        "revision",
        "profile",
    )


@pytest.mark.parametrize("case", SMALL + SQUARE + LONG, ids=str)
def test_same_seed_same_picture(backend: Backend, checkpoint: Checkpoint, reference: Any, case: Case) -> None:
    """A picture differs from Diffusers' by at most 2/255 at any pixel and 0.1/255 on average."""
    difference = abs(paint(backend, checkpoint, request_of(case)).astype(int) - reference(case))
    assert difference.max() <= 2
    assert difference.mean() <= 0.1


@pytest.mark.parametrize(("steps", "guidance"), [(28, 4.5), (4, 0.0)])
def test_every_step_equals_diffusers(
    backend: Backend, checkpoint: Checkpoint, pipeline: StableDiffusion3Pipeline, steps: int, guidance: float
) -> None:
    """From each of Diffusers' own intermediate latents, one step leads to Diffusers' next."""
    case = Case(steps, guidance, "a red dog", 64, 64)
    latents = [initial_noise(SEED, (16, 8, 8))]

    def keep(
        _pipeline: object, _step: int, _timestep: object, values: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        latents.append(values["latents"][0].numpy())
        return values

    plain_call(
        pipeline, checkpoint, case, generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent", callback_on_step_end=keep,
    )  # fmt: skip
    sigmas = sampler_of(checkpoint).sigmas(steps)
    positive, negative = backend.encode_text([PROMPT, case.negative])
    for (before, after), (sigma, sigma_next) in zip(pairwise(latents), pairwise(sigmas.tolist()), strict=True):
        row = DenoiseRow(before, positive, negative if guidance > 1 else None, sigma, sigma_next, guidance)
        (ours,) = backend.denoise_step([row])
        np.testing.assert_allclose(np.asarray(ours), after, atol=2e-5)


def test_bfloat16_equals_diffusers_from_the_same_noise(checkpoint: Checkpoint) -> None:
    """In BF16 the diffusers backend draws Diffusers' very picture, once that starts from float32 noise, cast."""
    case = Case(4, 4.5, "a red dog", 64, 64)
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.bfloat16)
    plain.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(initial_noise(SEED, (1, 16, 8, 8)))
    theirs = np.asarray(plain_call(plain, checkpoint, case, latents=noise))
    backend = DiffusersBackend(checkpoint, "bfloat16", torch.device("cpu"), "none")
    assert backend.precision == "bfloat16"
    assert abs(paint(backend, checkpoint, request_of(case)).astype(int) - theirs).max() <= 2


def test_model_offload_draws_the_same_picture(checkpoint: Checkpoint, reference: Any) -> None:
    """With networks moved by hooks, one picture after the other is what it is without; the CPU stands in for a GPU."""
    case = Case(1, 4.5, "", 112, 80)
    backend = DiffusersBackend(checkpoint, "float32", torch.device("cpu"), "model")
    for _ in range(2):
        assert abs(paint(backend, checkpoint, request_of(case)).astype(int) - reference(case)).max() <= 2


def test_sequential_offload_leaves_no_weight_on_the_device(checkpoint: Checkpoint) -> None:
    """Each layer's weights are brought by a hook when it is called; with the CPU for a device no call can be tried."""
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    place(plain, torch.device("cpu"), "sequential")
    assert {weight.device.type for weight in plain.transformer.parameters()} == {"meta"}
