"""Same seed, same image: every backend against plain `StableDiffusion3Pipeline`, step by step and at the end."""

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
    """What the images differ in."""

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
MEDIUM = SkipLayers((2, 3), 2.8, 0.01, 0.2)  # SD3.5 Medium's scale and steps, layers that the embedded model has
LATER = SkipLayers((1,), 1.5, 0.2, 0.75)
SKIPPING = [
    Case(4, 4.5, "a red dog", 64, 64, MEDIUM),  # no step is between 0.04 and 0.8
    Case(10, 4.5, "a red dog", 64, 64, MEDIUM),  # step 1 only: 2 is not below 2.0
    Case(28, 4.5, "", 64, 96, MEDIUM),
    Case(4, 4.5, "", 96, 64, LATER),
    Case(10, 7.0, "a red dog", 64, 64, LATER),
    Case(4, 1.0, "", 64, 64, LATER),  # no guidance, no skipping
]
PROMPT = "a cat to the left of a Dog on a blue background!"
SEED = 7


def plain_call(reference_pipeline: StableDiffusion3Pipeline, checkpoint: Checkpoint, case: Case, **more: Any) -> Any:
    """What a user of Diffusers writes."""
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
    """Case -> the reference_pipeline's image, each drawn once for all backends."""

    @cache
    def draw(case: Case) -> Array:
        return np.asarray(
            plain_call(reference_pipeline, checkpoint, case, generator=torch.Generator("cpu").manual_seed(SEED))
        )

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
        case.skip.scale if case.skip else 0.0,
    )


def carded(checkpoint: Checkpoint, case: Case) -> Checkpoint:
    """The checkpoint, with a card that says what the case skips."""
    return replace(checkpoint, card=replace(checkpoint.card, skip_layers=case.skip))


@pytest.mark.parametrize("case", SMALL + SQUARE + LONG, ids=str)
def test_same_seed_same_image(backend: Backend, checkpoint: Checkpoint, reference: Any, case: Case) -> None:
    """An image differs from Diffusers' by at most 2/255 at any pixel and 0.1/255 on average."""
    difference = abs(generate_directly(backend, checkpoint, request_of(case)).astype(int) - reference(case))
    assert difference.max() <= 2
    assert difference.mean() <= 0.1


@pytest.mark.parametrize("case", SKIPPING, ids=str)
@pytest.mark.parametrize("backend", ["diffusers"], indirect=True)
def test_skip_layer_guidance_draws_the_same_image(
    backend: Backend, checkpoint: Checkpoint, reference: Any, case: Case
) -> None:
    """The same tolerance with skip-layer guidance; where it is on at any step, it is another image than without."""
    difference = abs(
        generate_directly(backend, carded(checkpoint, case), request_of(case)).astype(int) - reference(case)
    )
    assert difference.max() <= 2
    assert difference.mean() <= 0.1
    is_on = case not in {SKIPPING[0], SKIPPING[-1]}
    assert (abs(reference(case).astype(int) - reference(case._replace(skip=None))).max() > 2) == is_on


def test_layers_are_skipped_at_diffusers_steps(
    checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of steps and the window, edges and rounding included, the same steps skip layers."""
    asked: list[Any] = []

    def forward(hidden_states: torch.Tensor, skip_layers: Any = None, **_: object) -> tuple[torch.Tensor]:
        asked.append(skip_layers)
        return (torch.zeros_like(hidden_states),)

    monkeypatch.setattr(reference_pipeline.transformer, "forward", forward)
    for steps, window in product((1, 4, 10, 28, 35, 100), ((0.01, 0.2), (0.2, 0.75), (0.0, 1.0))):
        case = Case(steps, 4.5, "", 64, 64, SkipLayers((2, 3), 2.8, *window))
        asked.clear()
        plain_call(
            reference_pipeline,
            checkpoint,
            case,
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="latent",
        )
        theirs = [asked[: index + 1].count(None) - 1 for index, layers in enumerate(asked) if layers is not None]
        pipeline = Pipeline(carded(checkpoint, case), FakeBackend())
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
    """From each of Diffusers' own intermediate latents, one step leads to Diffusers' next."""
    assert_equal_steps(backend, checkpoint, reference_pipeline, case)


@pytest.mark.parametrize("case", SKIPPING[2:4], ids=str)
@pytest.mark.parametrize("backend", ["diffusers"], indirect=True)
def test_every_step_that_skips_layers_equals_diffusers(
    backend: Backend, checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, case: Case
) -> None:
    """The same with skip-layer guidance, on before, in and after its steps."""
    assert_equal_steps(backend, checkpoint, reference_pipeline, case)


def assert_equal_steps(
    backend: Backend, checkpoint: Checkpoint, reference_pipeline: StableDiffusion3Pipeline, case: Case
) -> None:
    """Every step of a case, each from where Diffusers' reference_pipeline was before it."""
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
        Work(request_of(case), case.width_px, case.height_px), Pipeline(carded(checkpoint, case), backend)
    )
    generation.begin(backend.encode_text(generation.work.prompts), 0, 0)
    assert len(latents) == case.steps + 1
    for before, after in pairwise(latents):
        generation.solver.latent = before
        (velocity,) = backend.predict_velocity([generation.row()])
        assert generation.advance(velocity) is None
        np.testing.assert_allclose(np.asarray(generation.latent), after, atol=2e-5)


def test_a_transformer_of_mediums_kind_skips_layers_alike(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Layers with two attentions, as SD3.5 Medium has them, are skipped as Diffusers does; the weights are random."""
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
    medium = carded(open_checkpoint(str(tmp_path)), case)
    plain = StableDiffusion3Pipeline.from_pretrained(tmp_path, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    backend = DiffusersBackend(medium, "float32", torch.device("cpu"), Options())
    assert_equal_steps(backend, medium, plain, case)


@pytest.mark.parametrize("skip", [None, LATER], ids=["plain", "skipping layers"])
def test_bfloat16_equals_diffusers_from_the_same_noise(checkpoint: Checkpoint, skip: SkipLayers | None) -> None:
    """In BF16 the diffusers backend draws Diffusers' very image, once that starts from float32 noise, cast."""
    case = Case(4, 4.5, "a red dog", 64, 64, skip)
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.bfloat16)
    plain.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(initial_noise(SEED, (1, 16, 8, 8)))
    theirs = np.asarray(plain_call(plain, checkpoint, case, latents=noise))
    backend = DiffusersBackend(checkpoint, "bfloat16", torch.device("cpu"), Options())
    assert backend.precision == "bfloat16"
    assert abs(generate_directly(backend, carded(checkpoint, case), request_of(case)).astype(int) - theirs).max() <= 2


def test_moving_networks_to_a_device_draws_the_same_image(checkpoint: Checkpoint, reference: Any) -> None:
    """With networks moved by hooks, one image after the other is what it is without; the CPU stands in for a GPU."""
    case = Case(1, 4.5, "", 112, 80)
    backend = DiffusersBackend(checkpoint, "float32", torch.device("cpu"), Options())
    backend._offload = "model"  # noqa: SLF001  what opening it for a GPU sets
    place(backend._pipeline, torch.device("cpu"), "model")  # noqa: SLF001
    for _ in range(2):
        assert abs(generate_directly(backend, checkpoint, request_of(case)).astype(int) - reference(case)).max() <= 2


def test_sequential_offload_leaves_no_weight_on_the_device(checkpoint: Checkpoint) -> None:
    """Each layer's weights are brought by a hook when it is called; with the CPU for a device no call can be tried."""
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    place(plain, torch.device("cpu"), "sequential")
    assert {weight.device.type for weight in plain.transformer.parameters()} == {"meta"}
