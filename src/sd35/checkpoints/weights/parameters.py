"""Locate the parameters of a checkpoint's networks by their names in Diffusers and Transformers.

Files use one of two naming schemes. Files in the Diffusers layout have the names of Diffusers and Transformers.
Stability's single files name the transformer's parameters as in the reference code
(https://github.com/Stability-AI/sd3.5, `mmditx.py`), and the autoencoder's parameters as in latent diffusion. In this
scheme, the weights of q, k and v share one tensor. Norms that have only a scale and a shift store them in the opposite
order.

A part of a checkpoint is a network, by the name of its folder. This module needs no tensor library.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sd35.checkpoints.layout import weight_files, weight_map
from sd35.checkpoints.weights.safetensors_file import Stored, read_tensors
from sd35.errors import CheckpointError
from sd35.parsing import shown

# In a single file, the parameter names of each part begin with this prefix.
PREFIXES: Mapping[str, str] = {
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
CLIP = "clip"  # the part of a file with one CLIP; only the checkpoint's configurations tell which of the two it is
# A file with only this part contains a parameter of this name, without a prefix.
_MARKER_OF_SEPARATE_FILE: Mapping[str, str] = {
    "transformer": "joint_blocks.0.x_block.attn.qkv.weight",
    "text_encoder_3": "encoder.block.0.layer.0.SelfAttention.q.weight",
    CLIP: "text_model.embeddings.token_embedding.weight",
}
_FP8 = {"F8_E4M3", "F8_E5M2"}
_SCALE_DTYPES = ("F32", "F16", "BF16")
_SCALES = (".scale_weight", ".weight_scale")  # how the scales of scaled FP8 files are named: two spellings are in use
# Entries that are not parameters: marks of scaled files, scales of inputs (not used here), data of older libraries.
_IGNORED = re.compile(r"(^|\.)(scaled_fp8|comfy_quant|scale_input|input_scale|position_ids|logit_scale|spiece_model)$")
_SCALED_MARKER = re.compile(r"(^|\.)scaled_fp8$")


@dataclass(frozen=True)
class Weight:
    """The location of a parameter: a stored tensor, or one of several equal parts of its first axis.

    Attributes:
        stored: The tensor in the file.
        index: The index of the parameter among the equal parts of the tensor.
        of: The number of equal parts of the tensor. Each is one parameter.
        swapped: Whether the file has the two halves of the first axis in the opposite order.
        scale: In a scaled FP8 file, the factor for the stored values: one number, or one for each row.
    """

    stored: Stored
    index: int = 0
    of: int = 1
    swapped: bool = False
    scale: Stored | None = None


def weights_in(directory: Path, part: str) -> dict[str, Weight]:
    """Locate the parameters of one part of a directory in the Diffusers layout.

    If several shards contain a parameter, the index decides between them.

    Raises CheckpointError if a file is missing or damaged, the index is not valid, or a scaled FP8 weight has no scale.
    """
    shards = weight_map(directory, part)
    files = {Path(name).name: read_tensors(directory / name) for name in weight_files(directory, part)}
    if shards is None:
        (tensors,) = files.values()
        return _with_scales(tensors)
    for name, shard in shards.items():
        if name not in files[shard]:
            raise CheckpointError(
                f"{directory / part / shard}: expected {shown(name)}, which the index lists in this file; download or"
                " copy the checkpoint again"
            )
    located = {name: files[shard][name] for name, shard in shards.items()}
    for tensors in files.values():
        for name, stored in tensors.items():
            # A parameter that the index does not list is used if only one shard contains it.
            if located.setdefault(name, stored) is not stored and name not in shards:
                raise CheckpointError(
                    f"{directory / part}: {shown(name)} is in both {located[name].file.name} and {stored.file.name},"
                    " and the index does not list it; download or copy the checkpoint again"
                )
    return _with_scales(located)


def weights_of_file(file: Path) -> dict[str, dict[str, Weight]]:
    """Locate the parameters in a single file, or in a file with one transformer or text encoder.

    Returns them by part, then by name. The part of a file with one CLIP is `CLIP`, because the file does not tell which
    of the two it is. Raises CheckpointError if the file is damaged or contains no weights of SD3.5.
    """
    tensors = read_tensors(file)
    parts = {part: _without_prefix(tensors, prefix) for part, prefix in PREFIXES.items()}
    parts |= {part: tensors for part, marker in _MARKER_OF_SEPARATE_FILE.items() if marker in tensors}
    located = {part: _with_scales(stored) for part, stored in parts.items() if stored}
    if not located:
        raise CheckpointError(
            f"{file}: expected weights of SD3.5 (names with a prefix of {', '.join(PREFIXES.values())}, or the names of"
            f" a transformer or text encoder), found {', '.join(sorted(tensors)[:3]) or 'none'}; use another file"
        )
    if "transformer" in located:
        located["transformer"] = _TransformerNames(located["transformer"]).translate(located["transformer"])
    if "vae" in located:
        located["vae"] = {_vae_name(name): weight for name, weight in located["vae"].items()}
    return located


def _without_prefix(tensors: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    """Return the tensors with this prefix, by their names without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _with_scales(tensors: Mapping[str, Stored]) -> dict[str, Weight]:
    """Return the parameters among the tensors of a part, by name, with their scales if they are in scaled FP8.

    Raises CheckpointError if a scaled FP8 weight has no scale, or a scale of an unsupported shape or type.
    """
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
                raise CheckpointError(
                    f"{stored.file}: expected a scale for {name}, because the file has scaled FP8 weights; use another"
                    " file"
                )
            scale = tensors[scale_name]
            _check_scale(name, stored, scale_name, scale)
            weight = replace(weight, scale=scale)
        weights[name] = weight
    return weights


def _check_scale(name: str, stored: Stored, scale_name: str, scale: Stored) -> None:
    """Raise CheckpointError if a scale is neither one number nor one number for each row, or has another type."""
    is_one = all(size == 1 for size in scale.shape)
    is_one_per_row = scale.shape[:1] == stored.shape[:1] and all(size == 1 for size in scale.shape[1:])
    if not is_one and not is_one_per_row:
        raise CheckpointError(
            f"{scale.file}: {scale_name} has the shape {list(scale.shape)}, and its weight {name} has"
            f" {list(stored.shape)}; allowed: one scale, or one for each row; use another file"
        )
    if scale.dtype not in _SCALE_DTYPES:
        types = ", ".join(_SCALE_DTYPES)
        raise CheckpointError(f"{scale.file}: {scale_name} has type {scale.dtype}; allowed: {types}; use another file")


class _TransformerNames:
    """Translates the MMDiT's parameter names from Stability's scheme to the names of Diffusers.

    In the tables below, `_TOP` has the layers outside the blocks; `_IMAGE` and `_TEXT` have the layers of a block's two
    streams; `_QKV` has the layers for q, k and v, which share a tensor in Stability's files.
    """

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
        matches = (self._BLOCK.fullmatch(name) for name in names)
        self._last = max((int(match[1]) for match in matches if match), default=-1)  # the index of the last block

    def translate(self, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """Return the weights by their names in Diffusers. Unknown names stay unchanged."""
        return {target: part for name, weight in weights.items() for target, part in self._renamed(name, weight)}

    def _renamed(self, name: str, weight: Weight) -> Iterator[tuple[str, Weight]]:
        """Yield the parameters in a tensor with their names: three if q, k and v share the tensor, otherwise one."""
        match = self._BLOCK.fullmatch(name)
        if match is None:
            target = self._top_name(name)
            # The last norm of the transformer has only a scale and a shift.
            yield target, replace(weight, swapped=target.startswith("norm_out."))
            return
        layer, stream, stem, kind = int(match[1]), match[2], match[3], match[4]
        block = f"transformer_blocks.{layer}."
        if targets := self._QKV.get((stream, stem)):
            for index, target in enumerate(targets):
                yield f"{block}{target}.{kind}", replace(weight, index=index, of=3)
            return
        names = self._IMAGE if stream == "x_block" else self._TEXT
        # The last block's text stream ends in the attention, so its norm has a scale and a shift, but no gates.
        is_pair = stream == "context_block" and stem == "adaLN_modulation.1" and layer == self._last
        yield f"{block}{names.get(stem, f'{stream}.{stem}')}.{kind}", replace(weight, swapped=is_pair)

    def _top_name(self, name: str) -> str:
        """Translate the name of a parameter outside the blocks. An unknown name stays unchanged."""
        if name in self._TOP:  # a parameter that is no layer's weight or bias
            return self._TOP[name]
        layer, _, kind = name.rpartition(".")
        return f"{self._TOP[layer]}.{kind}" if layer in self._TOP else name


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
    """Translate a name from latent diffusion to Diffusers. The two count the decoder's levels in opposite orders."""
    for pattern, target in _VAE_NAMES:
        name = pattern.sub(target, name)
    return re.sub(r"up_blocks\.(\d)", lambda match: f"up_blocks.{_VAE_LEVELS - 1 - int(match[1])}", name)
