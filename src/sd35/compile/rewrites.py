"""Replace methods of PyTorch modules, so that the exporter translates them correctly and runtimes can fuse operators.

Each replacement computes the same results except for rounding.
"""

from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

Form: TypeAlias = Literal["onnxruntime", "standard"]


def rewrite(network: nn.Module, form: Form) -> None:
    """Rewrite the modules of a network in place, before tracing.

    In the form "onnxruntime", attention becomes ONNX Runtime's own operator. A "standard" graph has only operators of
    the ONNX standard.
    """
    for module in network.modules():
        patched: Any = module  # typed as Any, because type checkers do not allow replacing methods of an instance
        if isinstance(module, PatchEmbed):
            patched.cropped_pos_embed = partial(_crop_positions, module)
        elif isinstance(module, Attention) and isinstance(module.processor, JointAttnProcessor2_0):
            if form == "onnxruntime":
                patched.processor = _joint_attention
        elif isinstance(module, RMSNorm):
            patched.forward = partial(_rms_norm, module)
        elif isinstance(module, nn.GroupNorm):
            patched.forward = partial(_group_norm, module)
        elif isinstance(module, nn.Linear):
            patched.forward = partial(_linear, module)


def _crop_positions(positions: PatchEmbed, height: int, width: int) -> Tensor:
    """Crop the middle of the position table for a latent of this height and width.

    Returns one position per patch, `[1, patches, width]`. Diffusers slices the table from a start to an end. The
    exporter computes the end with a floor division of a negative number, which ONNX rounds towards zero. This is wrong
    for odd numbers of patches. Two slices, first from the start and then to a length, need no negative numbers.
    """
    rows, columns, size = height // positions.patch_size, width // positions.patch_size, positions.pos_embed_max_size
    table = positions.pos_embed.reshape(size, size, -1)
    table = table[(size - rows) // 2 :, (size - columns) // 2 :][:rows, :columns]
    return table.reshape(1, rows * columns, -1)


def _joint_attention(
    attention: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute joint attention with ONNX Runtime's operator, which splits and joins the heads without transposes.

    `hidden_states` are the image's tokens `[R, S, width]`. `encoder_hidden_states` are the text's tokens
    `[R, T, width]`, or None in a block's second attention, which is for the image only. Returns the image's new tokens,
    and the text's unless they are None.
    """
    layers: Any = attention

    def normalise_heads(norm: nn.Module | None, projected: Tensor) -> Tensor:
        return norm(projected.unflatten(-1, (layers.heads, -1))).flatten(-2) if norm else projected

    x, text = hidden_states, encoder_hidden_states
    parts = [
        normalise_heads(layers.norm_q, layers.to_q(x)),
        normalise_heads(layers.norm_k, layers.to_k(x)),
        layers.to_v(x),
    ]
    if text is not None:
        text_parts = [
            normalise_heads(layers.norm_added_q, layers.add_q_proj(text)),
            normalise_heads(layers.norm_added_k, layers.add_k_proj(text)),
            layers.add_v_proj(text),
        ]
        parts = [torch.cat(pair, dim=1) for pair in zip(parts, text_parts, strict=True)]
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", parts, {"num_heads": layers.heads},
        dtype=x.dtype, shape=parts[0].shape, version=1,
    )  # fmt: skip
    image = layers.to_out[0](attended[:, : x.shape[1]])
    if text is None:
        return image
    text = attended[:, x.shape[1] :]
    return image, text if layers.context_pre_only else layers.to_add_out(text)


def _rms_norm(norm: RMSNorm, values: Tensor) -> Tensor:
    """Divide by the root mean square, and multiply by the weight.

    Diffusers multiplies by 1 / root instead, which ONNX Runtime cannot fuse. Computes in float32 for inputs of any
    type, as Diffusers does.
    """
    wide = values.float()
    return (wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).to(values.dtype) * norm.weight


def _group_norm(norm: nn.GroupNorm, values: Tensor) -> Tensor:
    """Express a group norm as ONNX's InstanceNormalization, with each group as a channel.

    Without this, the exporter would write separate operators for sums, roots and casts.
    """
    groups = values.reshape(values.shape[0], norm.num_groups, -1)
    ones, zeros = values.new_ones(norm.num_groups), values.new_zeros(norm.num_groups)
    normalised = torch.onnx.ops.symbolic(
        "InstanceNormalization", [groups, ones, zeros], {"epsilon": norm.eps}, dtype=values.dtype, shape=groups.shape,
        version=6,
    )  # fmt: skip
    per_channel = (-1, *(1 for _ in values.shape[2:]))
    return normalised.reshape(values.shape) * norm.weight.view(per_channel) + norm.bias.view(per_channel)


def _linear(linear: nn.Linear, values: Tensor) -> Tensor:
    """Flatten the tokens to a matrix, so that the exporter writes one Gemm instead of a MatMul and an Add."""
    if values.ndim == 2:
        return nn.functional.linear(values, linear.weight, linear.bias)
    flat = nn.functional.linear(values.flatten(0, -2), linear.weight, linear.bias)
    return flat.unflatten(0, values.shape[:-1])
