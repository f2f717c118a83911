"""FP8 in PyTorch. Weights are converted one by one while a network is read; `fp8_layers` selects them.

There are three implementations. Each has a separate precision:

- "fp8-dynamic", by torchao: multiplies in FP8. Weights have one scale per row of the matrix. Inputs have one scale per
  token, computed at each call. Needs a GPU of compute capability 8.9 or higher.
- "fp8-weights", by torchao: has the same weights, but multiplies in BF16. Runs on any device.
- "fp8-storage", by Diffusers' layer-wise casting: weights have no scales and are cast to BF16 for each call. T5's
  weights are in FP8 too.
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

FP8_PRECISIONS = ("fp8-dynamic", "fp8-weights", "fp8-storage")
FP8_DTYPE, COMPUTE_DTYPE = torch.float8_e4m3fn, torch.bfloat16
_MIN_CAPABILITY = 8, 9  # of the Ada generation; Hopper and Blackwell have higher ones
_MULTIPLE = 16  # multiplication in FP8 needs both sides of a matrix to be multiples of this


def resolve_fp8(precision: str, device: torch.device) -> str:
    """Return one of `FP8_PRECISIONS` for a precision that starts with "fp8". For "fp8", the device decides.

    Raises InvalidSetting if the device does not support the precision.
    """
    if precision == "fp8":
        return "fp8-dynamic" if multiplies_fp8(device) else "fp8-weights"
    if precision == "fp8-dynamic" and not multiplies_fp8(device):
        raise InvalidSetting(
            "precision: got 'fp8-dynamic', which needs a GPU of compute capability 8.9 or higher; allowed on"
            f" {device}: fp8, fp8-weights, fp8-storage"
        )
    return precision


def multiplies_fp8(device: torch.device) -> bool:
    """Return whether a device can multiply matrices in FP8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def load_in_fp8(precision: str, checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> nn.Module:
    """Load a network like `load_network`, but convert the weights that `fp8_layers` selects to FP8.

    `dtype` is the format of all other weights. It must be BF16.
    """
    network = load_network(checkpoint, part, dtype, partial(_to_fp8, precision, part))
    if precision == "fp8-storage":
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear) and treatment_in(part, name, precision) != Treatment.UNCHANGED:
                # With None, Diffusers casts this layer itself instead of searching it for layers to cast.
                apply_layerwise_casting(layer, FP8_DTYPE, COMPUTE_DTYPE, skip_modules_pattern=None)
    return network


def _to_fp8(precision: str, part: str, name: str, value: Tensor) -> Tensor:
    """Return a parameter, converted to FP8 if it is the matrix of an FP8 layer.

    Biases are returned unchanged. With "fp8-storage", layer-wise casting converts the biases of FP8 layers later.
    """
    layer, _, kind = name.rpartition(".")
    treatment = treatment_in(part, layer, precision)
    if kind != "weight" or value.ndim != 2 or treatment == Treatment.UNCHANGED:
        return value
    if precision == "fp8-storage":
        return value.to(FP8_DTYPE)
    return _quantised(value, torchao_config(precision, treatment, value.shape))


def torchao_config(precision: str, treatment: Treatment, shape: torch.Size) -> "AOBaseConfig":
    """Return torchao's configuration for a matrix of shape `shape`. The treatment must be FP8 or WEIGHTS.

    The matrix is multiplied in FP8 if the precision, the treatment and the shape allow this, otherwise in BF16.
    """
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, PerRow

    # PerRow gives inputs one scale per token. One scale for all tokens would depend on the other images in the batch.
    # set_inductor_config would change settings of PyTorch's compiler for the whole process.
    is_multiplied = precision == "fp8-dynamic" and treatment == Treatment.FP8
    if is_multiplied and not any(side % _MULTIPLE for side in shape):
        return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    return Float8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False)


def _quantised(weight: Tensor, config: "AOBaseConfig") -> Tensor:
    """Return a weight in torchao's FP8 format. Puts it in a temporary layer, because torchao only quantises layers."""
    from torchao.quantization import quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, config)
    return layer.weight
