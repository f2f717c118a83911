"""Calibrate FP8: find the largest input magnitude of each FP8 layer over real prompts and all steps.

The magnitudes give each layer one scale for all steps (per-tensor, "amax"), as TensorRT requires. Steps with smaller
inputs lose no precision, because FP8 is a floating-point format. `rank` finds the layers that cause the largest errors
in FP8. Calibration and ranking run in PyTorch on the device of the `diffusers` backend.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sd35.backends.base import DenoiseRow
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.fp8_layers import FP8_MAX, Treatment, treatment_of
from sd35.compile.quantise import scale_of
from sd35.compile.reference_sampling import Guided, Recipe, rows_of
from sd35.compile.stages import Advance
from sd35.tensors import to_numpy

_KEPT_SHARES = (0.125, 0.5, 0.875)  # layers are ranked with the steps at these fractions of an image


@dataclass
class Calibration:
    """The result of `calibrate`.

    Attributes:
        largest_inputs: The largest input magnitude by layer.
        rows: The inputs of the transformer in some steps of the first prompt. `rank` repeats them.
    """

    largest_inputs: dict[str, float] = field(default_factory=dict)
    rows: list[DenoiseRow] = field(default_factory=list)


def fp8_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that get FP8 weights if no block is exempt, by name (see `treatment_of`)."""
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in linears.items() if treatment_of(name) is not Treatment.UNCHANGED}


def calibrate(backend: DiffusersBackend, recipe: Recipe, texts: Sequence[Guided], advance: Advance) -> Calibration:
    """Denoise an image of each text, and find the largest input magnitude of each FP8 layer. No image is decoded.

    The seed of an image is the index of its text. Calls `advance` at each step of each image.
    """
    calibration = Calibration()
    kept_steps = {int(share * recipe.steps) for share in _KEPT_SHARES}
    with _largest_inputs(fp8_layers(backend.transformer)) as largest:
        for seed, text in enumerate(texts):
            for step, row in enumerate(rows_of(backend, recipe, text, seed)):
                if row.sigma:  # the last row has a sigma of 0: it is the finished latent, not a step
                    advance()
                if seed == 0 and step in kept_steps:  # for `rank`
                    calibration.rows.append(row)
    calibration.largest_inputs = {name: float(value) for name, value in largest.items()}
    return calibration


@contextmanager
def _largest_inputs(layers: dict[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict with the largest input magnitude of each layer so far, as tensors on the layers' device."""
    largest: dict[str, Tensor] = {}

    def add_hook(name: str, layer: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        """Call `record` before each call of the layer. Return the handle that removes this hook."""

        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            magnitude = inputs[0].detach().abs().amax().float()
            largest[name] = torch.maximum(largest[name], magnitude) if name in largest else magnitude

        return layer.register_forward_pre_hook(record)

    handles = [add_hook(name, layer) for name, layer in layers.items()]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


class Sensitivity(NamedTuple):
    """The error of the velocity if only this layer is in FP8: its RMS relative to the RMS of the velocity."""

    layer: str
    treatment: Treatment
    error: float


def rank(backend: DiffusersBackend, calibration: Calibration, advance: Advance) -> list[Sensitivity]:
    """Return the layers and the error that each causes if only this layer is in FP8. The largest error is first.

    All other layers compute in the backend's precision. Calls `advance` after each layer of `fp8_layers`.
    """
    expected = _velocities(backend, calibration.rows)
    expected_rms = expected.square().mean().sqrt()
    ranking = []
    for name, layer in fp8_layers(backend.transformer).items():
        with _computing_in_fp8(name, layer, calibration.largest_inputs):
            error = (_velocities(backend, calibration.rows) - expected).square().mean().sqrt() / expected_rms
        ranking.append(Sensitivity(name, treatment_of(name), float(error)))
        advance()
    return sorted(ranking, key=lambda layer: layer.error, reverse=True)


def to_fp8_and_back(values: Tensor, scale: float) -> Tensor:
    """Round values to FP8 and convert them back to their type. Clip too large values, as a graph of `quantise` does."""
    in_fp8 = (values.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return (in_fp8.float() * scale).to(values.dtype)


def _velocities(backend: DiffusersBackend, rows: list[DenoiseRow]) -> Tensor:
    """Return the predicted velocities of all rows in one tensor."""
    return torch.stack([torch.from_numpy(to_numpy(velocity)) for velocity in backend.predict_velocity(rows)])


@contextmanager
def _computing_in_fp8(name: str, layer: nn.Linear, largest_inputs: Mapping[str, float]) -> Iterator[None]:
    """Inside the `with` block, make a layer compute as in FP8: round its weights, and its inputs if they are in FP8."""
    weight = layer.weight
    rounded = to_fp8_and_back(weight, scale_of(float(weight.abs().max())))
    layer.weight = nn.Parameter(rounded, requires_grad=False)
    handle = None
    if treatment_of(name) is Treatment.FP8:
        scale = scale_of(largest_inputs[name])
        handle = layer.register_forward_pre_hook(lambda _, inputs: (to_fp8_and_back(inputs[0], scale), *inputs[1:]))
    try:
        yield
    finally:
        layer.weight = weight
        if handle:
            handle.remove()
