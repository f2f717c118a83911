"""Finds the largest magnitude that each layer of FP8 is multiplied with, over real prompts and all steps.

One scale a layer for all steps (per-tensor, "amax"), as TensorRT wants it: what is smaller loses nothing, for FP8 is a
floating-point format. It runs in PyTorch, on the device that the `diffusers` backend has.
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

_SAMPLED = (0.125, 0.5, 0.875)  # of the way from noise to image: rows that the sensitivity report looks at


@dataclass
class Calibration:
    """What was found: `largest` by layer. `rows` are some of the steps, of the first prompt."""

    largest: dict[str, float] = field(default_factory=dict)
    rows: list[DenoiseRow] = field(default_factory=list)


def fp8_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that are not left alone, by name; none exempt."""
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in linears.items() if treatment_of(name) is not Treatment.HIGH}


def calibrate(
    backend: DiffusersBackend,
    recipe: Recipe,
    texts: Sequence[Guided],
    advance: Advance,
) -> Calibration:
    """Draws each text with a seed of its own, without decoding; `advance` is called `recipe.steps` times for each."""
    found = Calibration()
    sampled = {int(share * recipe.steps) for share in _SAMPLED}
    with _watched(fp8_layers(backend.transformer)) as largest:
        for seed, text in enumerate(texts):
            for step, row in enumerate(rows_of(backend, recipe, text, seed)):
                if row.sigma:
                    advance()
                if seed == 0 and step in sampled:
                    found.rows.append(row)
    found.largest = {name: float(value) for name, value in largest.items()}
    return found


@contextmanager
def _watched(layers: dict[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """The largest magnitude of each layer's input so far, where the layer computes."""
    largest: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach().abs().amax().float()
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return layer.register_forward_pre_hook(look)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
