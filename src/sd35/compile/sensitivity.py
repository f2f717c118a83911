"""Rank a transformer's layers by the error that each causes if it alone is in FP8."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sd35.backends.base import DenoiseRow
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.fp8_layers import LARGEST, Treatment, treatment_of
from sd35.compile.calibration import Calibration, fp8_layers
from sd35.compile.quantise import scale_of
from sd35.compile.stages import Advance
from sd35.tensors import to_numpy


class Sensitivity(NamedTuple):
    """The relative RMS error of the velocity if only this layer is in FP8, over some steps of one image."""

    layer: str
    treatment: Treatment
    error: float


def rank(backend: DiffusersBackend, calibration: Calibration, advance: Advance) -> list[Sensitivity]:
    """Rank the layers, the most sensitive first. Calls `advance` for each of `fp8_layers`.

    All other layers compute in the backend's precision.
    """
    expected = _velocities(backend, calibration.rows)
    size = expected.square().mean().sqrt()
    ranking = []
    for name, layer in fp8_layers(backend.transformer).items():
        with _rounded(name, layer, calibration.largest_inputs):
            error = (_velocities(backend, calibration.rows) - expected).square().mean().sqrt() / size
        ranking.append(Sensitivity(name, treatment_of(name), float(error)))
        advance()
    return sorted(ranking, key=lambda each: each.error, reverse=True)


def to_fp8_and_back(values: Tensor, scale: float) -> Tensor:
    """Round values to FP8 as the graph does, with saturation."""
    small = (values.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return (small.float() * scale).to(values.dtype)


def _velocities(backend: DiffusersBackend, rows: list[DenoiseRow]) -> Tensor:
    return torch.stack([torch.from_numpy(to_numpy(velocity)) for velocity in backend.predict_velocity(rows)])


@contextmanager
def _rounded(name: str, layer: nn.Linear, largest: Mapping[str, float]) -> Iterator[None]:
    """Let a layer compute as it does in FP8."""
    weight = layer.weight
    rounded = to_fp8_and_back(weight, scale_of(float(weight.abs().max())))
    layer.weight = nn.Parameter(rounded, requires_grad=False)
    handle = None
    if treatment_of(name) is Treatment.FP8:
        scale = scale_of(largest[name])
        handle = layer.register_forward_pre_hook(lambda _, inputs: (to_fp8_and_back(inputs[0], scale), *inputs[1:]))
    try:
        yield
    finally:
        layer.weight = weight
        if handle:
            handle.remove()
