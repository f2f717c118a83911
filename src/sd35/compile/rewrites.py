"""The transformer's computations, written so that the exporter gets them right and runtimes can fuse them.

None changes what is computed, beyond the last bit.
"""

from functools import partial
from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn


def rewrite(network: nn.Module) -> None:
    """Gives the modules of a network that is about to be traced the forms below, in place."""
    for module in network.modules():
        forms: Any = module  # methods are replaced on the instance, which the type does not foresee
        if isinstance(module, PatchEmbed):
            forms.cropped_pos_embed = partial(_crop_positions, module)
        elif isinstance(module, RMSNorm):
            forms.forward = partial(_rms_norm, module)
        elif isinstance(module, nn.Linear):
            forms.forward = partial(_linear, module)


def _crop_positions(positions: PatchEmbed, height: int, width: int) -> Tensor:
    """The middle of the position table, for a latent of these sides.

    Diffusers slices from start to end. The exporter writes that end with a floor division of a negative number, which
    ONNX rounds towards zero: wrong for odd numbers of patches. From a start, then to a length, nothing is negative.
    """
    rows, columns, size = height // positions.patch_size, width // positions.patch_size, positions.pos_embed_max_size
    table = positions.pos_embed.reshape(size, size, -1)
    table = table[(size - rows) // 2 :, (size - columns) // 2 :][:rows, :columns]
    return table.reshape(1, rows * columns, -1)


def _rms_norm(norm: RMSNorm, values: Tensor) -> Tensor:
    """Divided by a root, where Diffusers multiplies with its reciprocal: the form that ONNX Runtime fuses to one."""
    return values / torch.sqrt(values.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight


def _linear(linear: nn.Linear, values: Tensor) -> Tensor:
    """On a matrix of all tokens: a Gemm with its bias. Of three dimensions it would be a MatMul and an Add."""
    if values.ndim == 2:
        return nn.functional.linear(values, linear.weight, linear.bias)
    flat = nn.functional.linear(values.flatten(0, -2), linear.weight, linear.bias)
    return flat.unflatten(0, values.shape[:-1])
