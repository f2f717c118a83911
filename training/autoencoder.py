"""Trains the 16-channel 8x autoencoder in stages: `python -m training.autoencoder --out DIR`. Resumes from DIR."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sd35.bench.quality.judge import BACKGROUNDS
from training.optimizer import Muon, schedule
from training.scenes import CELL_PX, Item, Scene, draw, sample_scene
from training.vocabulary import OBJECTS

CONFIG = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "sample_size": 128,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 96], "layers_per_block": 1, "norm_num_groups": 1,
    "mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": False,
}  # fmt: skip
PIXELS_PER_STEP = 32 * 64 * 64


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """Convert images, uint8 `[H, W, 3]`, to a batch, float32 `[B, 3, H, W]` from -1 to 1."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def whole_scenes(rng: np.random.Generator, count: int, width_px: int = 128, height_px: int = 128) -> Tensor:
    """Generate training scenes: float32 `[count, 3, H, W]` from -1 to 1."""
    return to_tensor([np.asarray(draw(sample_scene(rng, width_px, height_px, scattered=True))) for _ in range(count)])


def crops(rng: np.random.Generator, count: int, size_px: int = 64) -> Tensor:
    """Crop scenes on their grid, and keep the more varied of two crops of each: float32 `[count, 3, size, size]`."""
    chosen = []
    for _ in range(count):
        image = np.asarray(draw(sample_scene(rng, 128, 128, scattered=True)))
        corners = rng.integers(0, (128 - size_px) // CELL_PX + 1, (2, 2)) * CELL_PX
        chosen.append(max((image[y : y + size_px, x : x + size_px] for x, y in corners), key=lambda part: part.std()))
    return to_tensor(chosen)


def mosaics(rng: np.random.Generator, count: int, size_px: int = 64) -> Tensor:
    """Generate squares full of glyphs, because whole scenes are mostly background: float32 `[count, 3, size, size]`.

    Glyphs lie on the grid of scenes and have their sizes: one of 64 px; four of 32 px; one of 48 px and parts of
    others; or a part of one of 80 or 96 px.
    """
    images = []
    for _ in range(count):
        background = str(rng.choice(list(BACKGROUNDS)))
        side = int(rng.choice([32, 32, 48, 64, 64, 80, 96]))
        corner = -int(rng.integers(0, max(0, side - size_px) // CELL_PX + 1)) * CELL_PX
        places = [(x, y) for y in range(corner, size_px, side) for x in range(corner, size_px, side)]
        items = tuple(
            Item(str(name), x, y, side)
            for name, (x, y) in zip(rng.choice(list(OBJECTS), len(places)), places, strict=True)
        )
        images.append(np.asarray(draw(Scene(size_px, size_px, background, int(rng.integers(-6, 7)), items, None, ""))))
    return to_tensor(images)


@dataclass(frozen=True)
class Stage:
    """A stage of the training. It starts from the weights of the stage before.

    Each step has 32 squares of 64 px from `parts`, or whole scenes with the same number of pixels if
    `is_whole(step / steps, step)`. A stage with `decoder_only` does not change the latents, so a transformer can be
    trained at the same time.
    """

    steps: int
    seed: int
    kl_weight: float
    parts: Callable[[np.random.Generator, int], Tensor]
    is_whole: Callable[[float, int], bool]
    decoder_only: bool = False


STAGES = {
    "crops": Stage(1000, 1, 1e-5, crops, lambda share, step: share >= 0.5 and step % 2 == 1),
    "mosaics": Stage(800, 11, 3e-6, mosaics, lambda _, step: step % 3 == 0),
    "decoder": Stage(300, 21, 0.0, mosaics, lambda _, step: step % 3 == 0, decoder_only=True),
}


def loss_of(vae: AutoencoderKL, images: Tensor, stage: Stage) -> Tensor:
    """Return L1 + 2 MSE + half the L1 of image gradients + weighted KL divergence, summed over an image's latent."""
    if stage.decoder_only:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode()
        kl = torch.zeros(())
    else:
        posterior = vae.encode(images).latent_dist
        latents, kl = posterior.sample(), posterior.kl().mean()
    error = vae.decode(latents).sample - images
    gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * gradients + stage.kl_weight * kl


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the mean PSNR of decode(encode(image)) over the images, in dB, after clamping to -1..1."""
    decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(16)])
    mse = ((decoded.clamp(-1, 1) - images) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.log10()).mean())


@torch.no_grad()
def set_shift_and_scale(vae: AutoencoderKL, images: Tensor) -> None:
    """Set `shift_factor` and `scaling_factor` so that `(latent - shift) * scale` has mean 0 and deviation 1."""
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(16)])
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))


def make_optimizers(vae: AutoencoderKL, *, decoder_only: bool) -> list[torch.optim.Optimizer]:
    """Return Muon for the inner convolutions and AdamW for the other parameters."""
    trained = dict((vae.decoder if decoder_only else vae).named_parameters())
    is_inner = {name: p.ndim == 4 and "conv_in" not in name and "conv_out" not in name for name, p in trained.items()}
    return [
        Muon([p for name, p in trained.items() if is_inner[name]], lr=0.02),
        torch.optim.AdamW([p for name, p in trained.items() if not is_inner[name]], lr=2e-3, weight_decay=0.0),
    ]


def train(vae: AutoencoderKL, stage: Stage, folder: Path) -> None:
    """Train a stage. Its state is saved to `folder/state.pt` every 100 steps, from which it resumes."""
    torch.manual_seed(stage.seed)
    optimizers = make_optimizers(vae, decoder_only=stage.decoder_only)
    base = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    state_file, start, spent_s = folder / "state.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file)
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, spent_s = state["step"], state["seconds"]
    folder.mkdir(parents=True, exist_ok=True)
    check = whole_scenes(np.random.default_rng(999), 64)
    began = time.monotonic() - spent_s
    for step in range(start, stage.steps):
        rng = np.random.default_rng((stage.seed, step))
        whole = stage.is_whole(step / stage.steps, step)
        batch = whole_scenes(rng, PIXELS_PER_STEP // 128**2) if whole else stage.parts(rng, PIXELS_PER_STEP // 64**2)
        factor = schedule(step, stage.steps, warmup=20, decay_from=0.3)
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.zero_grad()
        loss = loss_of(vae, batch, stage)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            psnr, seconds = psnr_db(vae, check), time.monotonic() - began
            print(f"step {step + 1} loss {loss.item():.4f} psnr {psnr:.2f} dB, {seconds:.0f} s", flush=True)
            states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"vae": vae.state_dict(), "optimizers": states, "step": step + 1, "seconds": seconds}
            torch.save(state, state_file)
    if not stage.decoder_only:
        set_shift_and_scale(vae, check)


def main() -> None:
    """Train the stages up to `--until`. A finished stage is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", choices=STAGES, default="decoder")
    options = parser.parse_args()
    vae = AutoencoderKL(**CONFIG)
    for name, stage in STAGES.items():
        result = options.out / name / "vae"
        if not result.exists():
            train(vae.to(memory_format=torch.channels_last), stage, options.out / name)
            vae.half().save_pretrained(result)
        vae = AutoencoderKL.from_pretrained(result, torch_dtype=torch.float32)
        if name == options.until:
            break


if __name__ == "__main__":
    main()
