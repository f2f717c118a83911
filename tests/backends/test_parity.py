"""Every backend matches `StableDiffusion3Pipeline` with the same seed, at each step and in the final image."""

import shutil
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from sd35.backends.base import Backend
from sd35.backends.diffusers.backend import DiffusersBackend, place
from sd35.backends.options import Options
from sd35.checkpoints.card import SkipLayers
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.engine.base import Work
from sd35.engine.local.generation import Generation
from sd35.engine.local.pipeline import Pipeline
from sd35.request import Request
from sd35.sampling.noise import initial_noise
from sd35.tensors import Array
from tests.support.direct_generation import generate_directly
from tests.support.fake_backend import FakeBackend


class Case(NamedTuple):
    """The parameters of an image."""

    steps: int
    guidance: float
    negative: str
    width_px: int
    height_px: int
    skip: SkipLayers | None = None


SMALL = [Case(*case, 96, 64) for case in product((1, 4), (0.0, 1.0, 4.5, 7.0), ("", "a red dog"))]
SQUARE = [Case(1, 7.0, "a red dog", 128, 128), Case(4, 0.0, "", 128, 128), Case(4, 4.5, "a red dog", 64, 64)]
LONG = [
    Case(28, 0.0, "", 64, 96),
    Case(28, 1.0, "a red dog", 64, 64),
    Case(28, 4.5, "", 128, 128),
    Case(28, 7.0, "a red dog", 96, 64),
]
MEDIUM = SkipLayers((2, 3), 2.8, 0.01, 0.2)  # the scale and steps of SD3.5 Medium, with layers of the embedded model
LATER = SkipLayers((1,), 1.5, 0.2, 0.75)
SKIPPING = [
    Case(4, 4.5, "a red dog", 64, 64, MEDIUM),  # no step is between 0.04 and 0.8
    Case(10, 4.5, "a red dog", 64, 64, MEDIUM),  # step 1 only: 2 is not below 2.0
    Case(28, 4.5, "", 64, 96, MEDIUM),
    Case(4, 4.5, "", 96, 64, LATER),
    Case(10, 7.0, "a red dog", 64, 64, LATER),
    Case(4, 1.0, "", 64, 64, LATER),  # without guidance, layers are not skipped
]
PROMPT = "a cat to the left of a Dog on a blue background!"
SEED = 7


def plain_call(reference_pipeline: StableDiffusion3Pipeline, checkpoint: Checkpoint, case: Case, **more: Any) -> Any:
    """Call Diffusers' pipeline as its users do."""
    if case.skip:
        more |= {
            "skip_guidance_layers": list(case.skip.layers),
            "skip_layer_guidance_scale": case.skip.scale,
            "skip_layer_guidance_start": case.skip.start,
            "skip_layer_guidance_stop": case.skip.stop,
        }
    return reference_pipeline(
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
def reference(reference_pipeline: StableDiffusion3Pipeline, checkpoint: Checkpoint) -> Any:
    """A function that returns the pipeline's image of a case. Each is generated once for all backends."""

    @cache
    def generate(case: Case) -> Array:
        return np.asarray(
            plain_call(reference_pipeline, checkpoint, case, generator=torch.Generator("cpu").manual_seed(SEED))
        )

    return generate


def request_of(case: Case) -> Request:
    """Return the request of a case."""
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
        case.skip.scale if case.skip else 0.0,
    )


def with_card(checkpoint: Checkpoint, case: Case) -> Checkpoint:
    """Return the checkpoint with a card that skips the layers of the case."""
    return replace(checkpoint, card=replace(checkpoint.card, skip_layers=case.skip))


@pytest.mark.parametrize("case", SMALL + SQUARE + LONG, ids=str)
def test_the_same_seed_gives_the_same_image(
    backend: Backend, checkpoint: Checkpoint, reference: Any, case: Case
) -> None:
    """An image differs from Diffusers' by at most 2/255 at any pixel, and by 0.1/255 on average."""
    difference = abs(generate_directly(backend, checkpoint, request_of(case)).astype(int) - reference(case))
    assert difference.max() <= 2
    assert difference.mean() <= 0.1


@pytest.mark.parametrize("case", SKIPPING, ids=str)
@pytest.mark.parametrize("backend", ["diffusers"], indirect=True)
def test_skip_layer_guidance_gives_the_same_image(
    backend: Backend, checkpoint: Checkpoint, reference: Any, case: Case
) -> None:
    """The tolerance is the same. If it is on in at least one step, the image differs from the one without it."""
    difference = abs(
        generate_directly(backend, with_card(checkpoint, case), request_of(case)).astype(int) - reference(case)
    )
    assert difference.max() <= 2
    assert difference.mean() <= 0.1
    is_on = case not in {SKIPPING[0], SKIPPING[-1]}
    assert (abs(reference(case).astype(int) - reference(case._replace(skip=None))).max() > 2) == is_on


def test_layers_are_skipped_at_the_same_steps_as_in_diffusers(
    checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for many numbers of steps and windows, including their edges and rounding."""
    calls: list[Any] = []

    def forward(hidden_states: torch.Tensor, skip_layers: Any = None, **_: object) -> tuple[torch.Tensor]:
        calls.append(skip_layers)
        return (torch.zeros_like(hidden_states),)

    monkeypatch.setattr(reference_pipeline.transformer, "forward", forward)
    for steps, window in product((1, 4, 10, 28, 35, 100), ((0.01, 0.2), (0.2, 0.75), (0.0, 1.0))):
        case = Case(steps, 4.5, "", 64, 64, SkipLayers((2, 3), 2.8, *window))
        calls.clear()
        plain_call(
            reference_pipeline,
            checkpoint,
            case,
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="latent",
        )
        theirs = [calls[: index + 1].count(None) - 1 for index, layers in enumerate(calls) if layers is not None]
        pipeline = Pipeline(with_card(checkpoint, case), FakeBackend())
        generation = Generation(Work(request_of(case), 64, 64), pipeline)
        generation.begin(pipeline.backend.encode_text(generation.work.prompts), 0, 0)
        ours = []
        for step in range(steps):
            generation.solver.step = step
            if generation.row().skip:
                ours.append(step)
        assert ours == theirs, (steps, window)


@pytest.mark.parametrize("case", [Case(28, 4.5, "a red dog", 64, 64), Case(4, 0.0, "a red dog", 64, 64)], ids=str)
def test_every_step_equals_diffusers(
    backend: Backend, checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, case: Case
) -> None:
    """From each intermediate latent of Diffusers, one step leads to the next one of Diffusers."""
    assert_equal_steps(backend, checkpoint, reference_pipeline, case)


@pytest.mark.parametrize("case", SKIPPING[2:4], ids=str)
@pytest.mark.parametrize("backend", ["diffusers"], indirect=True)
def test_every_step_that_skips_layers_equals_diffusers(
    backend: Backend, checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, case: Case
) -> None:
    """The steps before, during and after skip-layer guidance are all compared."""
    assert_equal_steps(backend, checkpoint, reference_pipeline, case)


def assert_equal_steps(
    backend: Backend, checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, case: Case
) -> None:
    """Compare each step of a case, starting from Diffusers' latent before the step."""
    latents = [initial_noise(SEED, (16, case.height_px // 8, case.width_px // 8))]

    def keep(
        _pipeline: object, _step: int, _timestep: object, values: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        latents.append(values["latents"][0].numpy())
        return values

    plain_call(
        reference_pipeline, checkpoint, case, generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent", callback_on_step_end=keep,
    )  # fmt: skip
    generation = Generation(
        Work(request_of(case), case.width_px, case.height_px), Pipeline(with_card(checkpoint, case), backend)
    )
    generation.begin(backend.encode_text(generation.work.prompts), 0, 0)
    assert len(latents) == case.steps + 1
    for before, after in pairwise(latents):
        generation.solver.latent = before
        (velocity,) = backend.predict_velocity([generation.row()])
        assert generation.advance(velocity) is None
        np.testing.assert_allclose(np.asarray(generation.latent), after, atol=2e-5)


def test_a_transformer_like_mediums_skips_layers_like_diffusers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It has layers with two attentions, and random weights."""
    ignore = shutil.ignore_patterns("transformer", "*.onnx")
    shutil.copytree(checkpoint.directory, tmp_path, dirs_exist_ok=True, ignore=ignore)
    torch.manual_seed(0)
    config = checkpoint.config("transformer")
    SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=4, num_attention_heads=2, attention_head_dim=16,
        joint_attention_dim=config["joint_attention_dim"], caption_projection_dim=32,
        pooled_projection_dim=config["pooled_projection_dim"], pos_embed_max_size=24, qk_norm="rms_norm",
        dual_attention_layers=(0, 1, 2),
    ).save_pretrained(tmp_path / "transformer")  # fmt: skip
    case = Case(10, 4.5, "a red dog", 64, 64, SkipLayers((1, 2), 2.8, 0.01, 0.5))
    medium = with_card(open_checkpoint(str(tmp_path)), case)
    plain = StableDiffusion3Pipeline.from_pretrained(tmp_path, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    backend = DiffusersBackend(medium, "float32", torch.device("cpu"), Options())
    assert_equal_steps(backend, medium, plain, case)


@pytest.mark.parametrize("skip", [None, LATER], ids=["plain", "skipping layers"])
def test_bfloat16_equals_diffusers_from_the_same_noise(checkpoint: Checkpoint, skip: SkipLayers | None) -> None:
    """Diffusers has to start from the float32 noise, cast to BF16."""
    case = Case(4, 4.5, "a red dog", 64, 64, skip)
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.bfloat16)
    plain.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(initial_noise(SEED, (1, 16, 8, 8)))
    theirs = np.asarray(plain_call(plain, checkpoint, case, latents=noise))
    backend = DiffusersBackend(checkpoint, "bfloat16", torch.device("cpu"), Options())
    assert backend.precision == "bfloat16"
    assert (
        abs(generate_directly(backend, with_card(checkpoint, case), request_of(case)).astype(int) - theirs).max() <= 2
    )


def test_moving_networks_to_a_device_gives_the_same_image(checkpoint: Checkpoint, reference: Any) -> None:
    """Hooks move the networks for several images. The CPU is used in place of a GPU."""
    case = Case(1, 4.5, "", 112, 80)
    backend = DiffusersBackend(checkpoint, "float32", torch.device("cpu"), Options())
    backend._offload = "model"  # noqa: SLF001  as if it had been opened for a GPU
    place(backend._pipeline, torch.device("cpu"), "model")  # noqa: SLF001
    for _ in range(2):
        assert abs(generate_directly(backend, checkpoint, request_of(case)).astype(int) - reference(case)).max() <= 2


def test_sequential_offload_leaves_no_weight_on_the_device(checkpoint: Checkpoint) -> None:
    """A hook moves each layer's weights when it is called. The pipeline refuses calls with the CPU as the device."""
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    place(plain, torch.device("cpu"), "sequential")
    assert {weight.device.type for weight in plain.transformer.parameters()} == {"meta"}
