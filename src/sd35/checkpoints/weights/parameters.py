"""Locate the parameters of a checkpoint's networks by their names in Diffusers and Transformers.

Files use one of two naming schemes. Files in the Diffusers layout have the networks' own names. Stability's single
files, with or without the text encoders, name the transformer's parameters as in the reference code
(https://github.com/Stability-AI/sd3.5, `mmditx.py`) and the autoencoder's as in latent diffusion. In this scheme, q, k
and v share one tensor, and norms that have only a scale and a shift store them in the opposite order.

This module needs no tensor library.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sd35.checkpoints.layout import weight_files, weight_map
from sd35.checkpoints.weights.safetensors_file import Stored, read_tensors
from sd35.errors import CheckpointError
from sd35.parsing import shown

# The prefix of each part's parameter names in a single file.
PREFIXES: Mapping[str, str] = {
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
CLIP = "clip"  # a separate file of a CLIP; the checkpoint's configurations identify which of the two it is
_MARKER_OF_SEPARATE_FILE: Mapping[str, str] = {
    "transformer": "joint_blocks.0.x_block.attn.qkv.weight",
    "text_encoder_3": "encoder.block.0.layer.0.SelfAttention.q.weight",
    CLIP: "text_model.embeddings.token_embedding.weight",
}
_FP8 = {"F8_E4M3", "F8_E5M2"}
_SCALE_DTYPES = ("F32", "F16", "BF16")
_SCALES = (".scale_weight", ".weight_scale")  # the two spellings in use
# Entries that are not parameters: markers of scaled files, unused scales for FP8 arithmetic, data of older libraries.
_IGNORED = re.compile(r"(^|\.)(scaled_fp8|comfy_quant|scale_input|input_scale|position_ids|logit_scale|spiece_model)$")
_SCALED_MARKER = re.compile(r"(^|\.)scaled_fp8$")


@dataclass(frozen=True)
class Weight:
    """A parameter, as a stored tensor or a part of one.

    Attributes:
        stored: The tensor in the file.
        part: The index of the parameter, if the tensor's first axis is divided into `of` equal parts.
        of: The number of parameters in the tensor.
        swapped: Whether the two halves of the first axis are stored in the opposite order.
        scale: In a scaled FP8 file, the factor for the stored values: one number, or one for each row.
    """

    stored: Stored
    part: int = 0
    of: int = 1
    swapped: bool = False
    scale: Stored | None = None


def weights_in(directory: Path, part: str) -> dict[str, Weight]:
    """Locate the parameters of one part of a directory in the Diffusers layout.

    If several shards contain a parameter, the index decides. Raises CheckpointError if a file is missing or damaged,
    the index is not valid, or a scaled FP8 weight has no scale.
    """
    shards = weight_map(directory, part)
    files = {Path(name).name: read_tensors(directory / name) for name in weight_files(directory, part)}
    if shards is None:
        (tensors,) = files.values()
        return _with_scales(tensors)
    for name, shard in shards.items():
        if name not in files[shard]:
            raise CheckpointError(f"{directory / part / shard}: expected {shown(name)}, as its index says; found none")
    found = {name: files[shard][name] for name, shard in shards.items()}
    for tensors in files.values():
        for name, stored in tensors.items():
            if found.setdefault(name, stored) is not stored and name not in shards:
                raise CheckpointError(
                    f"{directory / part}: {shown(name)} is in both {found[name].file.name} and {stored.file.name}, and"
                    " the index lists neither"
                )
    return _with_scales(found)


def weights_of_file(file: Path) -> dict[str, dict[str, Weight]]:
    """Locate the parameters of a single file, or of a separate file of a text encoder, by part.

    The part of a separate CLIP file is `CLIP`, because the file alone does not identify which of the two it is. Raises
    CheckpointError if the file is damaged or not part of SD3.5.
    """
    tensors = read_tensors(file)
    parts = {part: _below(tensors, prefix) for part, prefix in PREFIXES.items()}
    for part, marker in _MARKER_OF_SEPARATE_FILE.items():
        if marker in tensors:
            parts[part] = tensors
    found = {part: _with_scales(below) for part, below in parts.items() if below}
    if not found:
        raise CheckpointError(
            f"{file}: expected weights of SD3.5 (names with the prefix {', '.join(PREFIXES.values())}, or those of a"
            f" text encoder), found {', '.join(sorted(tensors)[:3])}, ..."
        )
    if "transformer" in found:
        renamed = _Transformer(found["transformer"]).renamed
        found["transformer"] = dict(item for entry in found["transformer"].items() for item in renamed(*entry))
    if "vae" in found:
        found["vae"] = {_vae_name(name): weight for name, weight in found["vae"].items()}
    return found


def _below(tensors: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _with_scales(tensors: Mapping[str, Stored]) -> dict[str, Weight]:
    """Combine weights with their scales, and skip entries that are not parameters."""
    is_scaled = any(_SCALED_MARKER.search(name) or name.endswith(_SCALES) for name in tensors)
    weights = {}
    for name, stored in tensors.items():
        if _IGNORED.search(name) or name.endswith(_SCALES):
            continue
        weight = Weight(stored)
        if stored.dtype in _FP8 and is_scaled:
            stem = name.removesuffix(".weight")
            scale_name = next((stem + spelling for spelling in _SCALES if stem + spelling in tensors), None)
            if scale_name is None:
                raise CheckpointError(f"{stored.file}: expected a scale for {name} in scaled FP8; found none")
            scale = tensors[scale_name]
            _check_scale(name, stored, scale_name, scale)
            weight = replace(weight, scale=scale)
        weights[name] = weight
    return weights


def _check_scale(name: str, stored: Stored, scale_name: str, scale: Stored) -> None:
    """Raise CheckpointError unless the weight has one scale, or one for each of its rows."""
    is_one = all(size == 1 for size in scale.shape)
    is_one_per_row = scale.shape[:1] == stored.shape[:1] and all(size == 1 for size in scale.shape[1:])
    if not is_one and not is_one_per_row:
        rows = stored.shape[0] if stored.shape else 1
        raise CheckpointError(
            f"{scale.file}: {scale_name} has the shape {list(scale.shape)}, for {name} of {list(stored.shape)};"
            f" allowed: one scale, or one for each of the {rows} rows; scales of columns or blocks are not supported"
        )
    if scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(f"{scale.file}: {scale_name} is {scale.dtype}; allowed: {', '.join(_SCALE_DTYPES)}")


class _Transformer:
    """Translates the MMDiT's parameter names from Stability's scheme to that of Diffusers."""

    _TOP: Mapping[str, str] = {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    _IMAGE: Mapping[str, str] = {
        "attn.ln_q": "attn.norm_q", "attn.ln_k": "attn.norm_k", "attn.proj": "attn.to_out.0",
        "attn2.ln_q": "attn2.norm_q", "attn2.ln_k": "attn2.norm_k", "attn2.proj": "attn2.to_out.0",
        "adaLN_modulation.1": "norm1.linear", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
    }  # fmt: skip
    _TEXT: Mapping[str, str] = {
        "attn.ln_q": "attn.norm_added_q", "attn.ln_k": "attn.norm_added_k", "attn.proj": "attn.to_add_out",
        "adaLN_modulation.1": "norm1_context.linear",
        "mlp.fc1": "ff_context.net.0.proj", "mlp.fc2": "ff_context.net.2",
    }  # fmt: skip
    _BLOCK = re.compile(r"joint_blocks\.(\d+)\.(x_block|context_block)\.(.+)\.(weight|bias)")
    _QKV: Mapping[tuple[str, str], tuple[str, str, str]] = {
        ("x_block", "attn.qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
        ("x_block", "attn2.qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        ("context_block", "attn.qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    }

    def __init__(self, names: Iterable[str]) -> None:
        self._last = max((int(match[1]) for name in names if (match := self._BLOCK.fullmatch(name))), default=-1)

    def renamed(self, name: str, weight: Weight) -> Iterator[tuple[str, Weight]]:
        """Yield one parameter, or three if q, k and v share the tensor. Unknown names stay unchanged."""
        if not (match := self._BLOCK.fullmatch(name)):
            stem, _, kind = name.rpartition(".")
            is_whole = name in self._TOP
            target = self._TOP[name] if is_whole else f"{self._TOP[stem]}.{kind}" if stem in self._TOP else name
            yield target, replace(weight, swapped=target.startswith("norm_out."))
            return
        layer, stream, stem, kind = int(match[1]), match[2], match[3], match[4]
        block = f"transformer_blocks.{layer}."
        if targets := self._QKV.get((stream, stem)):
            for part, target in enumerate(targets):
                yield f"{block}{target}.{kind}", replace(weight, part=part, of=3)
            return
        names = self._IMAGE if stream == "x_block" else self._TEXT
        # The last block's text stream ends in the attention, so its norm has a scale and a shift, but no gates.
        is_pair = stream == "context_block" and stem == "adaLN_modulation.1" and layer == self._last
        yield f"{block}{names.get(stem, f'{stream}.{stem}')}.{kind}", replace(weight, swapped=is_pair)


_VAE_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\bdown\.(\d)\.block\.", r"down_blocks.\1.resnets."),
        (r"\bdown\.(\d)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
        (r"\bup\.(\d)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
        (r"\bup\.(\d)\.block\.", r"up_blocks.\1.resnets."),
        (r"\bmid\.block_1\.", "mid_block.resnets.0."),
        (r"\bmid\.block_2\.", "mid_block.resnets.1."),
        (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
        (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
        (r"\bmid\.attn_1\.(q|k|v)\.", r"mid_block.attentions.0.to_\1."),
        (r"\bnin_shortcut\b", "conv_shortcut"),
        (r"\bnorm_out\b", "conv_norm_out"),
    )
)
_VAE_LEVELS = 4


def _vae_name(name: str) -> str:
    """Translate a name from latent diffusion, which counts the decoder's levels in the opposite order."""
    for pattern, target in _VAE_NAMES:
        name = pattern.sub(target, name)
    return re.sub(r"up_blocks\.(\d)", lambda match: f"up_blocks.{_VAE_LEVELS - 1 - int(match[1])}", name)
