"""Checkpoints with random weights have the real shapes, and load like real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open

from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.architectures import ARCHITECTURES, Architecture
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.onnx_export import export
from sd35.compile.synth import parameters, synthesise
from sd35.errors import InvalidSetting
from sd35.request import Request
from tests.support.direct_generation import generate_directly

MEDIUM = ARCHITECTURES["sd3.5-medium"]
CLIP = {
    "hidden_size": 32, "intermediate_size": 64, "projection_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
SMALL = Architecture(
    transformer=MEDIUM.transformer
    | {
        "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128, "joint_attention_dim": 96,
        "pooled_projection_dim": 64, "pos_embed_max_size": 32, "dual_attention_layers": (0,),
    },
    card={"width": 64, "height": 64, "side_px": [64, 256], "max_sequence_length": 24},
    text_encoder=MEDIUM.text_encoder | CLIP,
    text_encoder_2=MEDIUM.text_encoder_2 | CLIP,
    text_encoder_3=MEDIUM.text_encoder_3 | {"d_model": 96, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    vae=MEDIUM.vae | {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint like Medium."""
    directory = tmp_path_factory.mktemp("synth") / "small"
    progress: list[tuple[int, int]] = []
    synthesise(SMALL, directory, "bfloat16", lambda done, total: progress.append((done, total)))
    assert progress[-1][0] == progress[-1][1] == 2 * sum(parameters(SMALL).values())
    return directory


@pytest.mark.parametrize(
    ("name", "part", "file_bytes"),
    [
        ("sd3.5-large", "transformer", 16_460_379_262 - 167_666_654),  # sd3.5_large.safetensors less its autoencoder
        ("sd3.5-medium", "transformer", 5_107_104_286 - 167_666_654),  # sd3.5_medium.safetensors less its autoencoder
        ("sd3.5-medium", "text_encoder", 246_144_152),  # clip_l.safetensors
        ("sd3.5-medium", "text_encoder_2", 1_389_382_176),  # clip_g.safetensors
        ("sd3.5-medium", "text_encoder_3", 9_787_841_024),  # t5xxl_fp16.safetensors, which contains its embedding twice
        ("sd3.5-medium", "vae", 167_666_902),
    ],
)
def test_networks_have_the_size_of_the_published_files(name: str, part: str, file_bytes: int) -> None:
    """Parameters have two bytes each, plus a header. The sizes are from public file lists."""
    numbers = parameters(ARCHITECTURES[name])[part]
    if part == "text_encoder_3":
        numbers += 32128 * 4096
    assert 2 * numbers == pytest.approx(file_bytes, rel=0, abs=1_500_000)


def test_backends_generate_the_same_image_as_diffusers(small: Path) -> None:
    """Diffusers' pipeline loads the files, and both backends' images match to 2/255."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(small, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.tokenizer.model_max_length == 77
    noise = torch.Generator("cpu").manual_seed(3)
    theirs = pipeline("a cat", width=64, height=64, num_inference_steps=3, max_sequence_length=24, generator=noise)
    export(open_checkpoint(str(small)))
    request = Request("a cat", "", 64, 64, 3, 7.0, 3, "model", "revision", "profile")
    for name in ("diffusers", "onnx"):
        checkpoint = open_checkpoint(str(small))
        ours = generate_directly(
            open_backend(name, checkpoint, Options(precision="float32")), checkpoint, request
        ).astype(int)
        assert np.ptp(ours) > 10
        assert abs(ours - np.asarray(theirs.images[0])).max() <= 2, name


def test_weights_keep_activations_in_range(small: Path) -> None:
    """Matrices have variance 1 / inputs, norms are one, biases zero, and matrices differ."""
    with safe_open(small / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  not a dict
    for name, weight in weights.items():
        if weight.ndim == 1:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
        elif weight.numel() > 4096:
            inputs = weight.numel() / weight.shape[0]
            assert float(weight.std()) * inputs**0.5 == pytest.approx(1, abs=0.1), name
    first, second = (weights[f"transformer_blocks.{layer}.ff.net.0.proj.weight"] for layer in (0, 1))
    assert not (first == second).all()


def test_an_unusable_directory_or_a_full_disk_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written."""
    with pytest.raises(InvalidSetting, match="small already exists"):
        synthesise(SMALL, small, "bfloat16", lambda *_: None)
    with pytest.raises(InvalidSetting, match="is not a directory"):
        synthesise(SMALL, tmp_path / "none" / "new", "bfloat16", lambda *_: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(InvalidSetting, match=r"new needs 0\.0 GB, but only 0\.0 GB are free"):
        synthesise(SMALL, tmp_path / "new", "bfloat16", lambda *_: None)
    assert not list(tmp_path.iterdir())
