"""Evaluates a checkpoint on held-out prompts: `python -m training.evaluate DIRECTORY --out FOLDER`.

The prompts combine words that never occur together in training. Prints a table, and writes `contact-sheet.png` and
`evaluation.md`. Plain `StableDiffusion3Pipeline` generates the images, and the judge compares them with the font.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from PIL import Image

from sd35.bench.quality.judge import Judge, Verdict
from training.autoencoder import psnr_db, whole_scenes
from training.scenes import Scene, draw, glyph, sample_scene
from training.vocabulary import OBJECTS

SIDE_PX = 128
Size = tuple[int, int]  # width and height, px
NATIVE: Size = (SIDE_PX, SIDE_PX)
# Reported without a bar, because training has fewer images of these sizes.
OTHER_SIZES: list[Size] = [(64, 64), (96, 160), (192, 192), (256, 256)]
OTHER_COUNT = 24
BARS = {"single": 0.98, "pair": 0.93}


@cache
def _judge() -> Judge:
    glyphs = {name: glyph(name, 96) for name in OBJECTS}
    return Judge({name: image.crop(image.getbbox()) for name, image in glyphs.items()})


def judge(image: np.ndarray, scene: Scene) -> Verdict:
    """Judge whether an image, uint8 `[H, W, 3]`, shows a scene."""
    return _judge().verdict(image, [item.name for item in scene.items], scene.background, scene.relation)


def held_out_scenes(kind: str, count: int, seed: int, size_px: Size = NATIVE) -> list[Scene]:
    """Sample `count` scenes with combinations of words that training never has."""
    rng = np.random.default_rng((seed, len(kind)))
    return [sample_scene(rng, *size_px, kind, held_out=True) for _ in range(count)]


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of all images. Image i has the seed `seed + i`."""

    steps: int
    guidance: float
    seed: int


def generate(
    pipeline: StableDiffusion3Pipeline, scenes: list[Scene], sampling: Sampling, batch: int = 20
) -> list[np.ndarray]:
    """Generate one image, uint8 `[H, W, 3]`, for each scene. All scenes have the same size."""
    images: list[np.ndarray] = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(sampling.seed + start + i) for i in range(len(part))]
        output = pipeline(
            [scene.caption for scene in part], width=part[0].width_px, height=part[0].height_px,
            num_inference_steps=sampling.steps, guidance_scale=sampling.guidance, generator=generators,
            output_type="np", max_sequence_length=pipeline.tokenizer_3.model_max_length,
        ).images  # fmt: skip
        images += [np.round(image * 255).astype(np.uint8) for image in output]
    return images


@torch.no_grad()
def encode_and_decode(vae: AutoencoderKL, scenes: list[Scene]) -> list[np.ndarray]:
    """Draw scenes from the font and pass them through the autoencoder: the best images that it can decode."""
    images = []
    for scene in scenes:
        pixels = torch.from_numpy(np.asarray(draw(scene)).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0]
        images.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return images


def table_of_other_sizes(pipeline: StableDiffusion3Pipeline, sampling: Sampling) -> str:
    """Return the number of correct images at each of `OTHER_SIZES`, as a Markdown table."""
    lines = ["| Size, px | single | pair |", "| --- | --- | --- |"]
    for size in OTHER_SIZES:
        counts = []
        for kind in BARS:
            scenes = held_out_scenes(kind, OTHER_COUNT, sampling.seed, size)
            images = generate(pipeline, scenes, sampling)
            correct = sum(judge(image, scene).is_correct for image, scene in zip(images, scenes, strict=True))
            counts.append(f"{correct} of {OTHER_COUNT}")
        lines.append(f"| {size[0]}x{size[1]} | {' | '.join(counts)} |")
    return "\n".join([*lines, ""])


def contact_sheet(images: list[np.ndarray], verdicts: list[Verdict], columns: int = 20) -> Image.Image:
    """Arrange all images in rows. Incorrect images have a red frame."""
    side = SIDE_PX + 8
    sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), (32, 32, 32))
    for index, (image, verdict) in enumerate(zip(images, verdicts, strict=True)):
        x, y = index % columns * side, index // columns * side
        if not verdict.is_correct:
            sheet.paste((255, 0, 0), (x, y, x + side, y + side))
        sheet.paste(Image.fromarray(image), (x + 4, y + 4))
    return sheet


@dataclass(frozen=True)
class Result:
    """The result for one kind of prompt: shares of correct images, and mean correlations with the font's glyphs.

    The fields that end in `_autoencoder` are of scenes from the font that passed through the autoencoder.
    """

    correct: float
    bar: float
    correct_background: float
    correct_autoencoder: float
    correlation: float
    correlation_autoencoder: float

    @property
    def is_met(self) -> bool:
        """Whether the bar is reached."""
        return self.correct >= self.bar


def summarise(verdicts: list[Verdict], limit: list[Verdict], scenes: list[Scene], bar: float) -> Result:
    """Summarise one kind of prompt. Correlations are means over the glyphs of correct images."""
    return Result(
        correct=_share([verdict.is_correct for verdict in verdicts]),
        bar=bar,
        correct_background=_share([v.background == s.background for v, s in zip(verdicts, scenes, strict=True)]),
        correct_autoencoder=_share([verdict.is_correct for verdict in limit]),
        correlation=_mean_correlation(verdicts),
        correlation_autoencoder=_mean_correlation(limit),
    )


def as_table(results: dict[str, Result], psnr: float) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| Prompts | correct | bar | correct background | correlation with the font | limit of the autoencoder |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {kind} | {r.correct:.1%} | {r.bar:.0%} | {r.correct_background:.1%} | {r.correlation:.3f} "
        f"| {r.correlation_autoencoder:.3f}, {r.correct_autoencoder:.1%} correct |"
        for kind, r in results.items()
    ]
    return "\n".join([*lines, "", f"The autoencoder's PSNR on whole scenes: {psnr:.2f} dB.", ""])


def main() -> None:
    """Judge `--count` single objects and as many pairs. Exits with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--card", type=Path, help="a model card in which the table replaces {evaluated}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusion3Pipeline.from_pretrained(options.checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    psnr = psnr_db(pipeline.vae, whole_scenes(np.random.default_rng(999), 64))
    sampling = Sampling(options.steps, options.guidance, options.seed)
    results: dict[str, Result] = {}
    all_images, all_verdicts = [], []
    for kind, bar in BARS.items():
        scenes = held_out_scenes(kind, options.count, options.seed)
        images = generate(pipeline, scenes, sampling)
        verdicts = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
        decoded = encode_and_decode(pipeline.vae, scenes)
        limit = [judge(image, scene) for image, scene in zip(decoded, scenes, strict=True)]
        results[kind] = summarise(verdicts, limit, scenes, bar)
        all_images += images
        all_verdicts += verdicts
        for scene, verdict in zip(scenes, verdicts, strict=True):
            if not verdict.is_correct:
                names = [f"{item.name} {item.correlation:.2f}" for item in verdict.glyphs]
                print(f"incorrect: {scene.caption!r}: found {names} on {verdict.background}")
    contact_sheet(all_images, all_verdicts).save(options.out / "contact-sheet.png")
    table = f"{as_table(results, psnr)}\nAt other sizes:\n\n{table_of_other_sizes(pipeline, sampling)}"
    print(table)
    (options.out / "evaluation.md").write_text(table, encoding="utf-8")
    if options.card:
        card = options.card.read_text(encoding="utf-8")
        options.card.write_text(card.replace("{evaluated}\n", table), encoding="utf-8")
    if not all(result.is_met for result in results.values()):
        raise SystemExit(1)


def _share(flags: list[bool]) -> float:
    return float(np.mean(flags))


def _mean_correlation(verdicts: list[Verdict]) -> float:
    found = [item.correlation for verdict in verdicts if verdict.is_correct for item in verdict.glyphs]
    return float(np.mean(found)) if found else 0.0


if __name__ == "__main__":
    main()
