"""FP8 in PyTorch: weights become FP8 one by one while a network is read; `fp8_layers` is the rule of which.

Three ways, by their precisions' names. "fp8-dynamic": products in FP8, weights scaled by row, what they are multiplied
with by token and at each call; needs a GPU of compute capability 8.9. "fp8-weights": the same weights, multiplied in
BF16 on any device. Both are torchao's. "fp8-storage": Diffusers' layer-wise casting, weights without scales, brought to
BF16 and back around each call; T5's too.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import Tensor, nn

from sd35.backends.diffusers.loading import load_network
from sd35.backends.fp8_layers import Treatment, treatment_in
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import InvalidSetting

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

WAYS = ("fp8-dynamic", "fp8-weights", "fp8-storage")
FORMAT, BETWEEN = torch.float8_e4m3fn, torch.bfloat16
_LEAST_CAPABILITY = 8, 9  # Ada, Hopper, Blackwell
_MULTIPLE = 16  # of both sides of a matrix that is multiplied in FP8


def way_of(precision: str, device: torch.device) -> str:
    """One of `WAYS` for a precision that begins with "fp8". Raises InvalidSetting where the device cannot."""
    if precision == "fp8":
        return "fp8-dynamic" if multiplies_fp8(device) else "fp8-weights"
    if precision == "fp8-dynamic" and not multiplies_fp8(device):
        raise InvalidSetting(
            f"precision: got 'fp8-dynamic', which needs a GPU of compute capability 8.9 or more; {device} allows: fp8,"
            " fp8-weights, fp8-storage"
        )
    return precision


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device multiplies FP8 matrices itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def load_in_fp8(way: str, checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> nn.Module:
    """A network like `load_network`'s, with the rule's weights in FP8; the rest is in `dtype`, which is BF16."""
    network = load_network(checkpoint, part, dtype, partial(_stored, way, part))
    if way == "fp8-storage":
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear) and treatment_in(part, name, way) != Treatment.HIGH:
                apply_layerwise_casting(layer, FORMAT, BETWEEN, skip_modules_pattern=None)
    return network


def _stored(way: str, part: str, name: str, value: Tensor) -> Tensor:
    """Return a parameter as it is stored: the matrix of an FP8 layer in FP8. Diffusers also casts the bias."""
    layer, _, kind = name.rpartition(".")
    treatment = treatment_in(part, layer, way)
    if kind != "weight" or value.ndim != 2 or treatment == Treatment.HIGH:
        return value
    return value.to(FORMAT) if way == "fp8-storage" else _quantised(value, config_of(way, treatment, value.shape))


def config_of(way: str, treatment: Treatment, shape: torch.Size) -> "AOBaseConfig":
    """How torchao is to quantise a matrix, which is treated other than HIGH."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, PerRow

    # A scale for each token, not one for all: that would depend on the other images of a batch.
    multiplied = way == "fp8-dynamic" and treatment == Treatment.FP8
    if multiplied and not any(side % _MULTIPLE for side in shape):
        return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    return Float8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False)


def _quantised(weight: Tensor, config: "AOBaseConfig") -> Tensor:
    """By torchao, which quantises layers: one that has no other purpose."""
    from torchao.quantization import quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, config)
    return layer.weight
