"""Calibrate FP8: find the largest input magnitude of each FP8 layer over real prompts and all steps.

Each layer gets one scale for all steps (per-tensor, "amax"), as TensorRT requires. Smaller inputs lose no precision,
because FP8 is a floating-point format. Runs in PyTorch on the device of the `diffusers` backend.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sd35.backends.base import DenoiseRow
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.fp8_layers import Treatment, treatment_of
from sd35.compile.reference_sampling import Guided, Recipe, rows_of
from sd35.compile.stages import Advance

_SAMPLED = (0.125, 0.5, 0.875)  # shares of the steps: the rows for the sensitivity report


@dataclass
class Calibration:
    """The largest input magnitude by layer, and the `rows` of some steps of the first prompt."""

    largest_inputs: dict[str, float] = field(default_factory=dict)
    rows: list[DenoiseRow] = field(default_factory=list)


def fp8_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that FP8 applies to, by name, without exempt blocks."""
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in linears.items() if treatment_of(name) is not Treatment.HIGH}


def calibrate(
    backend: DiffusersBackend,
    recipe: Recipe,
    texts: Sequence[Guided],
    advance: Advance,
) -> Calibration:
    """Sample each text with its own seed, without decoding. Calls `advance` `recipe.steps` times for each text."""
    calibration = Calibration()
    sampled = {int(share * recipe.steps) for share in _SAMPLED}
    with _largest_inputs(fp8_layers(backend.transformer)) as largest:
        for seed, text in enumerate(texts):
            for step, row in enumerate(rows_of(backend, recipe, text, seed)):
                if row.sigma:
                    advance()
                if seed == 0 and step in sampled:
                    calibration.rows.append(row)
    calibration.largest_inputs = {name: float(value) for name, value in largest.items()}
    return calibration


@contextmanager
def _largest_inputs(layers: dict[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Yield the largest input magnitude of each layer so far, as tensors on the layer's device."""
    largest: dict[str, Tensor] = {}

    def add_hook(name: str, layer: nn.Linear) -> torch.utils.hooks.RemovableHandle:
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
