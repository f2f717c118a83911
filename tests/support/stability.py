"""Convert checkpoints from Diffusers' parameter names to Stability's. Diffusers' own converters verify the result."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
PREFIXES = {
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
_TOP = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_BLOCK = {
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k", "attn.to_out.0": "x_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k", "attn2.to_out.0": "x_block.attn2.proj",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
_QKV = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def transformer(state: Mapping[str, Tensor]) -> State:
    """Return an MMDiT's parameters under Stability's names."""
    remaining, found = dict(state), {}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    for layer in range(layers):
        block = f"transformer_blocks.{layer}."
        for joined, parts in _QKV.items():
            for kind in ("weight", "bias"):
                names = [f"{block}{part}.{kind}" for part in parts]
                if names[0] in remaining:
                    found[f"joint_blocks.{layer}.{joined}.{kind}"] = torch.cat([remaining.pop(name) for name in names])
    for name, value in remaining.items():
        stem, _, kind = name.rpartition(".")
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem):
            is_pair = int(match[1]) == layers - 1 and match[2] == "norm1_context.linear"
            found[f"joint_blocks.{match[1]}.{_BLOCK[match[2]]}.{kind}"] = _swapped(value) if is_pair else value
        else:
            renamed = _TOP.get(name) or f"{_TOP.get(stem, stem)}.{kind}"
            found[renamed] = _swapped(value) if stem == "norm_out.linear" else value
    return found


def vae(state: Mapping[str, Tensor]) -> State:
    """Return an autoencoder's parameters under the names of latent diffusion.

    Levels are counted from the image, and linear layers are stored as 1x1 convolutions.
    """
    return {_vae_name(name): _as_convolution(name, value).contiguous() for name, value in state.items()}


def single_file(parts: Mapping[str, Mapping[str, Tensor]]) -> State:
    """Join all parts in one state dict, as in Stability's files."""
    converters = {"transformer": transformer, "vae": vae}
    return {
        PREFIXES[part] + name: value.contiguous().clone()
        for part, state in parts.items()
        for name, value in converters.get(part, dict)(state).items()
    }


def _swapped(value: Tensor) -> Tensor:
    return torch.cat(value.chunk(2)[::-1])


def _as_convolution(name: str, value: Tensor) -> Tensor:
    is_linear = re.search(r"attentions\.0\.to_.*weight$", name)
    return value[:, :, None, None] if is_linear else value


def _vae_name(name: str) -> str:
    for pattern, target in (
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", r"up.\1.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", r"up.\1.upsample"),
    ):
        name = re.sub(pattern, target, name)
    return re.sub(r"(decoder\.up)\.(\d)", lambda found: f"{found[1]}.{3 - int(found[2])}", name)
