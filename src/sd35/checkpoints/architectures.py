"""The shapes of the SD3.5 networks, from their published configurations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]

_CLIP_TOKENS = 77
_CLIP_L: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "vocab_size": 49408, "max_position_embeddings": _CLIP_TOKENS,
}  # fmt: skip
_CLIP_G: Config = {
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "vocab_size": 49408, "max_position_embeddings": _CLIP_TOKENS,
}  # fmt: skip
_T5_XXL: Config = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False,
}  # fmt: skip
_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609, "force_upcast": True,
    "use_quant_conv": False, "use_post_quant_conv": False,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def _mmdit(layers: int, position_side: int, dual_attention_layers: tuple[int, ...] = ()) -> Config:
    """Return the configuration of an MMDiT: as many heads as layers, of 64 channels each (SD3 paper, section 5.3).

    `position_side` is the side of the square position table, in patches. `dual_attention_layers` are the indices of the
    layers with a second attention.
    """
    return {
        "num_layers": layers, "num_attention_heads": layers, "attention_head_dim": 64,
        "caption_projection_dim": 64 * layers, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "sample_size": 128,
        "pos_embed_max_size": position_side, "qk_norm": "rms_norm", "dual_attention_layers": dual_attention_layers,
    }  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """The configurations of a checkpoint's five networks, and the `shift` of its scheduler.

    `card` has the fields that differ from the defaults of `sd35.checkpoints.card.Card`.
    """

    transformer: Config
    card: Config = field(default_factory=dict)
    text_encoder: Config = field(default_factory=_CLIP_L.copy)
    text_encoder_2: Config = field(default_factory=_CLIP_G.copy)
    text_encoder_3: Config = field(default_factory=_T5_XXL.copy)
    vae: Config = field(default_factory=_VAE.copy)
    shift: float = 3.0


ARCHITECTURES: Mapping[str, Architecture] = {
    "sd3.5-large": Architecture(_mmdit(38, 192), {"steps": 28, "guidance_scale": 3.5}),
    "sd3.5-large-turbo": Architecture(_mmdit(38, 192), {"steps": 4, "guidance_scale": 0.0}),
    "sd3.5-medium": Architecture(_mmdit(24, 384, tuple(range(13))), {"steps": 40, "guidance_scale": 4.5}),
}
