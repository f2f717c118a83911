"""Images against others: PSNR and SSIM by their definitions, and the judge of what is to be seen."""

import base64

import numpy as np
import pytest
from PIL import Image

from sd35.bench.judging import GLYPH_PX, GLYPHS, OBJECTS, right_share
from sd35.bench.quality import WINDOW_PX, compared, mean_square, opened, psnr_db, shown, ssim
from sd35.bench.scenes import judged_scenes, scenes
from tests.training.test_scenes import needs_font
from training.glyphs import sheet
from training.vocabulary import GROUNDS
from training.vocabulary import OBJECTS as KNOWN


def noise(seed: int, side_px: int = 24) -> np.ndarray:
    """An image of no meaning."""
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def ssim_by_definition(one: np.ndarray, other: np.ndarray) -> float:
    """Equations 6, 13 to 16 of the paper, window by window."""
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
def test_ssim_is_that_of_its_definition(amount: int):
    """Of images that are near, less near, and not alike."""
    one = noise(1)
    other = np.clip(one.astype(int) + np.random.default_rng(2).integers(-amount, amount + 1, one.shape), 0, 255)
    other = other.astype(np.uint8)
    assert ssim(one, other) == pytest.approx(ssim_by_definition(one, other), abs=1e-9)
    assert ssim(one, one) == pytest.approx(1)


def test_psnr_is_that_of_its_definition():
    """A difference of 16 levels everywhere is 20 log10(255 / 16) dB; of none, there is no figure."""
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert psnr_db(mean_square(flat, flat + np.uint8(16))) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr_db(mean_square(flat, flat)) is None


def test_images_are_compared_together_and_by_the_worst():
    """And those that are the same are counted."""
    ours = [noise(1), noise(2)]
    theirs = [noise(1), noise(2) ^ np.uint8(1)]
    quality = compared("r", ours, theirs)
    assert (quality.images, quality.identical, quality.why_not) == (2, 1, None)
    assert quality.least_psnr_db == pytest.approx(20 * np.log10(255))
    assert quality.psnr_db == pytest.approx(20 * np.log10(255) + 10 * np.log10(2))
    assert quality.ssim is not None
    assert quality.least_ssim is not None
    assert quality.least_ssim < quality.ssim < 1


def test_images_of_other_sizes_are_not_compared():
    """The reason says which sizes."""
    quality = compared("r", [noise(1, 24)], [noise(1, 32)])
    assert quality.why_not == "the server's images are of 24x24 px, the reference's of 32x32 px"
    assert quality.psnr_db is None


def test_pairs_are_kept_small_for_people():
    """As WebP files of at most 192 px."""
    (pair,) = shown(["a cat"], [noise(1, 400)], [noise(2, 400)])
    assert opened(base64.b64decode(pair.image)).shape == (192, 192, 3)


def generated(objects: tuple[str, ...], ground: str, relation: str | None) -> np.ndarray:
    """A scene made of the sheet's glyphs."""
    image = Image.new("RGB", (128, 128), GROUNDS[ground])
    row = Image.open(GLYPHS)
    order = objects[::-1] if relation in {"right", "below"} else objects
    for place, name in enumerate(order):
        left = OBJECTS.index(name) * GLYPH_PX
        mark = row.crop((left, 0, left + GLYPH_PX, GLYPH_PX))
        at = (
            (40, 40)
            if relation is None
            else (40, 8 + 64 * place)
            if relation in {"above", "below"}
            else (8 + 64 * place, 40)
        )
        image.paste(mark, at, mark)
    return np.asarray(image)


def test_the_judge_knows_what_a_image_shows():
    """Right scenes are right; with their objects changed, or on another's ground, they are not."""
    wanted = judged_scenes(12)
    right = [generated(*scene) for scene in wanted]
    assert right_share(right, wanted) == 1
    assert right_share(right[2:] + right[:2], wanted) == 0
    mirrored = [image[::-1, ::-1] for image in right]  # pairs stand the wrong way, and heads down
    assert right_share(mirrored, wanted) < 0.5


def test_scenes_say_what_they_show():
    """Each once, in words that the embedded model was taught."""
    prompts = [scene.prompt for scene in scenes()]
    assert len(set(prompts)) == len(prompts)
    assert {"a cat on a white background", "a dog to the right of a pizza on a yellow background"} <= set(prompts)
    assert {name for scene in scenes() for name in scene.objects} <= set(KNOWN)
    assert len(set(judged_scenes(100))) == 100


@needs_font
def test_the_sheet_is_what_the_font_draws():
    """`python -m training.glyphs` writes the very same."""
    assert tuple(KNOWN) == OBJECTS
    with Image.open(GLYPHS) as row:
        assert np.array_equal(np.asarray(row.convert("RGBA")), np.asarray(sheet()))
