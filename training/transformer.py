"""Trains the MMDiT and the text encoders by flow matching: `python -m training.transformer --help`. Resumes."""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

from training.autoencoder import to_tensor
from training.model import SHIFT, Text, load_checkpoint, make_text, make_transformer
from training.optimizer import Muon, schedule
from training.scenes import caption_for_training, draw, sample_scene

SQUARE = (128, 128)
# Other sizes than the native square: other aspect ratios with the native number of pixels, then the ends of the range.
OTHER_SIZES_PX = (
    (176, 96), (96, 176), (144, 112), (112, 144), (160, 96), (96, 160), (192, 80), (80, 192), (256, 64), (64, 256),
    (64, 64), (96, 96), (96, 64), (64, 96), (192, 192), (256, 256),
)  # fmt: skip
BATCH, SEED = 64, 2
DECAY_FROM = 0.6  # share of the steps after which the learning rate falls
EMA_DECAY = 0.998


@dataclass(frozen=True)
class Stage:
    """A stage of the training.

    Attributes:
        steps: the number of steps.
        rate: the factor of the learning rates.
        squares_until: the share of the steps that have only images of 128x128 px.
        other_sizes: the share of other sizes in the steps after that.
        by_area: other sizes occur in proportion to their areas; otherwise they are equally frequent.
    """

    steps: int
    rate: float
    squares_until: float
    other_sizes: float
    by_area: bool = False


# In order. Each stage starts from the weights of the stage before, rounded to FP16. After the first two stages, images
# were good at 128x128 but smeared at 192x192 and above, because there were few of these sizes.
STAGES = {
    "first": Stage(2300, 1.0, 0.6, 0.25),
    "refined": Stage(1000, 0.4, 0.6, 0.25),
    "sizes": Stage(600, 0.4, 0.0, 0.75, by_area=True),
}


@dataclass
class Pool:
    """Encoded scenes of one size, from which batches are sampled. Each use replaces a few of them by new scenes."""

    latents: Tensor
    ids: list[Tensor]

    def put(self, where: Tensor, latents: Tensor, ids: list[Tensor]) -> None:
        """Replace the entries at the indices `where`."""
        self.latents[where] = latents
        for mine, new in zip(self.ids, ids, strict=True):
            mine[where] = new


class Data:
    """An endless supply of encoded scenes. Each scene is used about `reuse` times, each time with other noise."""

    def __init__(self, vae: AutoencoderKL, text: Text, *, capacity: int = 2048, reuse: int = 8) -> None:
        self.vae, self.text, self.capacity, self.reuse = vae, text, capacity, reuse
        self.pools: dict[tuple[int, int], Pool] = {}

    @torch.no_grad()
    def fresh(self, rng: np.random.Generator, count: int, size_px: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Make and encode `count` new scenes: scaled latents `[count, 16, h, w]` and token ids."""
        scenes = [sample_scene(rng, *size_px) for _ in range(count)]
        images = to_tensor([np.asarray(draw(scene)) for scene in scenes])
        latents = torch.cat([self.vae.encode(part).latent_dist.mode() for part in images.split(32)])
        config = self.vae.config
        captions = [caption_for_training(scene, rng) for scene in scenes]
        captions = [caption.capitalize() if rng.random() < 0.1 else caption for caption in captions]
        return (latents - config.shift_factor) * config.scaling_factor, self.text.token_ids(captions)

    def batch(self, rng: np.random.Generator, count: int, size_px: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Sample `count` encoded scenes of one size: latents and token ids as in `fresh`."""
        if size_px not in self.pools:
            capacity = self.capacity if size_px == SQUARE else count * 4
            self.pools[size_px] = Pool(*self.fresh(rng, capacity, size_px))
        pool = self.pools[size_px]
        total = len(pool.latents)
        renewed = torch.from_numpy(rng.choice(total, max(1, count // self.reuse), replace=False))
        pool.put(renewed, *self.fresh(rng, len(renewed), size_px))
        chosen = torch.from_numpy(rng.choice(total, count, replace=False))
        return pool.latents[chosen], [ids[chosen] for ids in pool.ids]


class Networks(nn.Module):
    """All networks that are trained, as one module, so that they are averaged and saved together."""

    def __init__(self, text: Text, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.encoders, self.transformer = text.encoders, transformer


def flow_matching_loss(transformer: Callable[..., Any], text: Text, latents: Tensor, ids: list[Tensor]) -> Tensor:
    """Return the mean squared error of the velocity, `noise - latent`.

    Sigma is logit-normal and shifted (SD3 paper, section 3.1).
    """
    noise = torch.randn_like(latents)
    sigma = torch.sigmoid(torch.randn(len(latents)))
    sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
    level = sigma.view(-1, 1, 1, 1)
    tokens, pooled = text.encode(ids)
    velocity = transformer(
        hidden_states=(1 - level) * latents + level * noise, timestep=sigma * 1000,
        encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False,
    )[0]  # fmt: skip
    return (velocity - (noise - latents)).square().mean()


def make_optimizers(networks: Networks) -> list[torch.optim.Optimizer]:
    """Return Muon for the attention and MLP matrices of the blocks, and AdamW for the other parameters."""
    matrices = [
        weight
        for name, weight in networks.transformer.transformer_blocks.named_parameters()
        if weight.ndim == 2 and "norm" not in name
    ]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in networks.parameters() if id(weight) not in chosen and weight.requires_grad]
    return [Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0)]


@dataclass
class Run:
    """The state of a training. `average` is the exponential moving average of `networks`, which is kept at the end."""

    networks: Networks
    average: Networks
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    images: int = 0

    def save(self, file: Path) -> None:
        """Save the state. The file is replaced at once, so that it is never incomplete."""
        state = {name: getattr(self, name) for name in ("step", "seconds", "images")} | {
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    def load(self, file: Path) -> None:
        """Restore a saved state."""
        state = torch.load(file)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.images = state["step"], state["seconds"], state["images"]

    def update(self, loss: Tensor, learning_rates: list[float]) -> None:
        """Make one step of the optimizers, and update the average."""
        for optimizer, learning_rate in zip(self.optimizers, learning_rates, strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.networks.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)


def size_of_step(rng: np.random.Generator, stage: Stage, share: float) -> tuple[tuple[int, int], int]:
    """Return the size of a step's scenes in pixels, and their number. All steps have about equally many pixels.

    `share` is the share of the stage's steps that are done.
    """
    if share < stage.squares_until or rng.random() >= stage.other_sizes:
        return SQUARE, BATCH
    areas = np.prod(OTHER_SIZES_PX, axis=1) if stage.by_area else np.ones(len(OTHER_SIZES_PX))
    width_px, height_px = OTHER_SIZES_PX[rng.choice(len(OTHER_SIZES_PX), p=areas / areas.sum())]
    return (width_px, height_px), min(BATCH, max(8, BATCH * 128 * 128 // (width_px * height_px) // 8 * 8))


def main() -> None:
    """Train one stage. Saves its state every 100 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, default="first")
    parser.add_argument("--begin-with", type=Path, help="the checkpoint of the stage before")
    parser.add_argument("--steps", type=int, help="number of steps; default: that of the stage")
    options = parser.parse_args()
    stage = STAGES[options.stage]
    steps = options.steps or stage.steps
    torch.manual_seed(SEED)
    text, transformer = make_text(), make_transformer()
    vae = AutoencoderKL.from_pretrained(options.vae, torch_dtype=torch.float32).eval()
    networks = Networks(text, transformer)
    if options.begin_with:
        load_checkpoint(options.begin_with, text, transformer)
    run = Run(networks, copy.deepcopy(networks), make_optimizers(networks))
    base = [optimizer.param_groups[0]["lr"] * stage.rate for optimizer in run.optimizers]
    options.out.mkdir(parents=True, exist_ok=True)
    state_file = options.out / "state.pt"
    if state_file.exists():
        run.load(state_file)
    data = Data(vae, text)
    compiled = torch.compile(transformer)
    began, losses = time.monotonic() - run.seconds, []
    while run.step < steps:
        rng = np.random.default_rng((SEED, run.step))
        torch.manual_seed(SEED * 1_000_003 + run.step)
        size_px, count = size_of_step(rng, stage, run.step / steps)
        # Only the most frequent size is compiled, because a compilation takes a minute.
        network = compiled if size_px == SQUARE else transformer
        batch = data.batch(rng, count, size_px)
        loss = flow_matching_loss(network, text, *batch)
        factor = schedule(run.step, steps, warmup=50, decay_from=DECAY_FROM)
        run.update(loss, [lr * factor for lr in base])
        losses.append(loss.item())
        run.step, run.images, run.seconds = run.step + 1, run.images + count, time.monotonic() - began
        if run.step % 25 == 0:
            print(f"step {run.step} loss {np.mean(losses[-25:]):.4f} {run.seconds:.0f} s", flush=True)
        if run.step % 100 == 0 or run.step == steps:
            run.save(state_file)


if __name__ == "__main__":
    main()
