"""PSNR and SSIM against their definitions, and the judge of scenes."""

import base64

import numpy as np
import pytest
from PIL import Image

from sd35.bench.quality.comparison import (
    WINDOW_PX,
    compare_images,
    decode_image,
    example_pairs,
    mean_squared_error,
    psnr_db,
    ssim,
)
from sd35.bench.quality.correctness import GLYPH_PX, GLYPHS, OBJECTS, correct_share
from sd35.bench.quality.judge import BACKGROUNDS
from sd35.bench.scenes import all_scenes, evaluation_scenes
from tests.training.test_scenes import needs_font
from training.glyphs import sheet
from training.vocabulary import OBJECTS as KNOWN


def noise(seed: int, side_px: int = 24) -> np.ndarray:
    """Make an image of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def ssim_by_definition(one: np.ndarray, other: np.ndarray) -> float:
    """Compute equations 6 and 13 to 16 of the paper, window by window."""
    luma = np.array([0.299, 0.587, 0.114])
    x, y = one @ luma, other @ luma
    offsets = np.arange(WINDOW_PX) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for top in range(x.shape[0] - WINDOW_PX + 1):
        for left in range(x.shape[1] - WINDOW_PX + 1):
            a, b = (z[top : top + WINDOW_PX, left : left + WINDOW_PX] for z in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            found.append(
                (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("amount", [1, 20, 255])
def test_ssim_equals_its_definition(amount: int):
    """The images are similar, less similar, and unrelated."""
    one = noise(1)
    other = np.clip(one.astype(int) + np.random.default_rng(2).integers(-amount, amount + 1, one.shape), 0, 255)
    other = other.astype(np.uint8)
    assert ssim(one, other) == pytest.approx(ssim_by_definition(one, other), abs=1e-9)
    assert ssim(one, one) == pytest.approx(1)


def test_psnr_equals_its_definition():
    """A difference of 16 levels everywhere is 20 log10(255 / 16) dB. Equal images have no PSNR."""
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert psnr_db(mean_squared_error(flat, flat + np.uint8(16))) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr_db(mean_squared_error(flat, flat)) is None


def test_a_comparison_has_figures_of_all_images_and_of_the_worst():
    """Identical images are counted."""
    ours = [noise(1), noise(2)]
    theirs = [noise(1), noise(2) ^ np.uint8(1)]
    quality = compare_images("r", ours, theirs)
    assert (quality.images, quality.identical, quality.skip_reason) == (2, 1, None)
    assert quality.min_psnr_db == pytest.approx(20 * np.log10(255))
    assert quality.psnr_db == pytest.approx(20 * np.log10(255) + 10 * np.log10(2))
    assert quality.ssim is not None
    assert quality.min_ssim is not None
    assert quality.min_ssim < quality.ssim < 1


def test_images_of_other_sizes_are_not_compared():
    """The reason gives both sizes."""
    quality = compare_images("r", [noise(1, 24)], [noise(1, 32)])
    assert quality.skip_reason == "the server's image is 24x24 px, the reference image 32x32 px"
    assert quality.psnr_db is None


def test_examples_are_thumbnails():
    """They are at most 192 px wide and high."""
    (pair,) = example_pairs(["a cat"], [noise(1, 400)], [noise(2, 400)])
    assert decode_image(base64.b64decode(pair.image)).shape == (192, 192, 3)


def draw_scene(objects: tuple[str, ...], background: str, relation: str | None) -> np.ndarray:
    """Draw a scene with the glyphs."""
    image = Image.new("RGB", (128, 128), BACKGROUNDS[background])
    row = Image.open(GLYPHS)
    order = objects[::-1] if relation in {"right", "below"} else objects
    for place, name in enumerate(order):
        left = OBJECTS.index(name) * GLYPH_PX
        glyph = row.crop((left, 0, left + GLYPH_PX, GLYPH_PX))
        position = (
            (40, 40)
            if relation is None
            else (40, 8 + 64 * place)
            if relation in {"above", "below"}
            else (8 + 64 * place, 40)
        )
        image.paste(glyph, position, glyph)
    return np.asarray(image)


def test_the_judge_recognises_the_scene_of_an_image():
    """With other objects, another background or a mirrored relation, an image is not correct."""
    scenes = evaluation_scenes(12)
    correct = [draw_scene(*scene) for scene in scenes]
    assert correct_share(correct, scenes) == 1
    assert correct_share(correct[2:] + correct[:2], scenes) == 0
    mirrored = [image[::-1, ::-1] for image in correct]  # swaps the objects of pairs and turns glyphs upside down
    assert correct_share(mirrored, scenes) < 0.5


def test_scenes_have_unique_prompts_of_known_words():
    """The embedded model was trained on all of their objects."""
    prompts = [scene.prompt for scene in all_scenes()]
    assert len(set(prompts)) == len(prompts)
    assert {"a cat on a white background", "a dog to the right of a pizza on a yellow background"} <= set(prompts)
    assert {name for scene in all_scenes() for name in scene.objects} <= set(KNOWN)
    assert len(set(evaluation_scenes(100))) == 100


@needs_font
def test_the_glyphs_are_those_of_the_font():
    """`python -m training.glyphs` writes the same image."""
    assert tuple(KNOWN) == OBJECTS
    with Image.open(GLYPHS) as row:
        assert np.array_equal(np.asarray(row.convert("RGBA")), np.asarray(sheet()))
