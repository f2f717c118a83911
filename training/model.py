"""The untrained networks of sd35-mini, and how they are written and read as a Diffusers checkpoint."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from training.text import CLIP_TOKENS, EOS, T5_TOKENS, make_clip_tokenizer, make_t5_tokenizer

SHIFT = 3.0
CARD = {
    "width": 128, "height": 128, "steps": 28, "guidance_scale": 4.5, "max_sequence_length": T5_TOKENS,
    "side_px": [64, 256], "native_pixels": 128 * 128, "enlarges": True, "licence": "Apache-2.0",
}  # fmt: skip


@dataclass
class Text:
    """The three tokenizers and text encoders."""

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer, T5TokenizerFast]
    encoders: nn.ModuleList  # CLIP-L, CLIP-G, T5

    def token_ids(self, captions: list[str]) -> list[Tensor]:
        """Return int64 token ids `[B, 16]`, `[B, 16]` and `[B, 20]`, padded and truncated as Diffusers does."""
        lengths = (CLIP_TOKENS, CLIP_TOKENS, T5_TOKENS)
        return [
            tokenizer(captions, padding="max_length", max_length=n, truncation=True, return_tensors="pt").input_ids
            for tokenizer, n in zip(self.tokenizers, lengths, strict=True)
        ]

    def encode(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode token ids as `StableDiffusion3Pipeline.encode_prompt`: tokens `[B, 36, 128]` and pooled `[B, 128]`."""
        clips = [
            encoder(part, output_hidden_states=True) for encoder, part in zip(self.encoders[:2], ids[:2], strict=True)
        ]
        t5 = self.encoders[2](ids[2])[0]
        both = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
        both = nn.functional.pad(both, (0, t5.shape[-1] - both.shape[-1]))
        return torch.cat([both, t5], dim=1), torch.cat([clip.text_embeds for clip in clips], dim=-1)


def make_text() -> Text:
    """Make two CLIPs (width 64, 2 layers) and a T5 (width 128, 2 layers), with their tokenizers."""
    tokenizers = (make_clip_tokenizer(EOS), make_clip_tokenizer("!"), make_t5_tokenizer())
    encoders = nn.ModuleList()
    for tokenizer in tokenizers[:2]:
        clip = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, projection_dim=64,
                num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=CLIP_TOKENS,
                hidden_act="quick_gelu",
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        for name, weight in clip.named_parameters():
            if "embedding" in name:  # the default, 0.02, is for wide models; words would be too similar at first
                nn.init.normal_(weight, std=0.5 if "token" in name else 0.1)
        encoders.append(clip)
    t5 = T5Config(
        vocab_size=len(tokenizers[2]), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, is_encoder_decoder=False, use_cache=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    encoders.append(T5EncoderModel(t5))
    return Text(tokenizers, encoders)


def position_table(width: int, side: int) -> Tensor:
    """Return the position table of the checkpoint: sines and cosines of each patch's row, then of its column.

    Wavelengths are from 3 to 48 patches. The default table is for wide models and large images: on a grid of 8 patches,
    most of it is constant, and the parts of an object appear in the wrong places.

    Returns:
        float32 `[1, side * side, width]`.
    """
    wavelengths = torch.logspace(math.log10(3), math.log10(48), width // 4)
    angles = 2 * math.pi * torch.arange(side)[:, None] / wavelengths
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)[None]


def make_transformer() -> SD3Transformer2DModel:
    """Make an MMDiT (width 256, 6 layers). Modulations and output start at 0 (AdaLN-zero, DiT paper, section 3.2)."""
    side = 16  # patches, for the largest images of the checkpoint: 256 px
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=6, num_attention_heads=4,
        attention_head_dim=64, joint_attention_dim=128, caption_projection_dim=256, pooled_projection_dim=128,
        pos_embed_max_size=side, qk_norm="rms_norm",
    )  # fmt: skip
    transformer.pos_embed.pos_embed.copy_(position_table(256, side))
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ("norm1" in name or "norm_out" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def save_checkpoint(directory: Path, text: Text, transformer: SD3Transformer2DModel, vae: AutoencoderKL) -> None:
    """Write a checkpoint that `StableDiffusion3Pipeline.from_pretrained` reads, with FP16 weights and `sd35.json`."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.half(), vae=vae.half(), scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        text_encoder=text.encoders[0].half(), tokenizer=text.tokenizers[0],
        text_encoder_2=text.encoders[1].half(), tokenizer_2=text.tokenizers[1],
        text_encoder_3=text.encoders[2].half(), tokenizer_3=text.tokenizers[2],
    )  # fmt: skip
    pipeline.save_pretrained(directory, safe_serialization=True)
    (directory / "sd35.json").write_text(json.dumps(CARD, indent=2) + "\n")


def load_checkpoint(directory: Path, text: Text, transformer: SD3Transformer2DModel) -> None:
    """Load the weights of a saved checkpoint into FP32 networks of the same shapes."""
    kinds = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
    parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    for part, kind, encoder in zip(parts, kinds, text.encoders, strict=True):
        encoder.load_state_dict(kind.from_pretrained(directory / part, dtype=torch.float32).state_dict())
    saved = SD3Transformer2DModel.from_pretrained(directory / "transformer", torch_dtype=torch.float32)
    transformer.load_state_dict(saved.state_dict())
