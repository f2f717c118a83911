"""The scenes for the training of the embedded model, and the judge of its images."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.bench.quality.judge import BACKGROUNDS, find_background
from training.evaluate import as_table, judge, summarise
from training.scenes import Item, Scene, caption_for_training, draw, find_font, sample_scene
from training.text import known_words, make_clip_tokenizer, make_t5_tokenizer
from training.vocabulary import OBJECTS, held_out_pairs

try:
    find_font()
    NO_FONT = ""
except FileNotFoundError as error:
    NO_FONT = str(error)

needs_font = pytest.mark.skipif(bool(NO_FONT), reason=NO_FONT)
sides = st.integers(4, 16).map(lambda cells: cells * 16)


def _image(scene: Scene) -> np.ndarray:
    return np.asarray(draw(scene))


@given(seed=st.integers(0, 2**32), width=sides, height=sides, scattered=st.booleans())
def test_every_scene_lies_inside_its_image(seed: int, width: int, height: int, scattered: bool):  # noqa: FBT001  chosen by Hypothesis
    """This holds at all sizes of the model. Glyphs also lie on the grid."""
    scene = sample_scene(np.random.default_rng(seed), width, height, scattered=scattered)
    for item in scene.items:
        assert item.x_px % 16 == item.y_px % 16 == item.size_px % 16 == 0
        assert 0 <= item.x_px <= width - item.size_px
        assert 0 <= item.y_px <= height - item.size_px


@given(seed=st.integers(0, 2**32), width=sides, height=sides)
def test_two_glyphs_are_arranged_as_the_relation_says(seed: int, width: int, height: int):
    """The first is completely left of, right of, above or below the second."""
    scene = sample_scene(np.random.default_rng(seed), width, height, "pair")
    first, second = scene.items
    holds = {
        "left": first.x_px + first.size_px <= second.x_px,
        "right": second.x_px + second.size_px <= first.x_px,
        "above": first.y_px + first.size_px <= second.y_px,
        "below": second.y_px + second.size_px <= first.y_px,
    }
    assert holds[scene.relation or ""]


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["single", "pair"]))
def test_a_caption_fixes_the_places_of_its_glyphs(seed: int, kind: str):
    """Scenes with the same caption differ only in the shade of the background."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, 128, 128, kind, held_out=True)
    sizes = {item.size_px for item in scene.items}
    assert sizes == ({64} if kind == "single" else {48})
    places = {(item.x_px, item.y_px) for item in scene.items}
    pairs = [{(0, 32), (80, 32)}, {(32, 0), (32, 80)}]
    assert places == {(32, 32)} if kind == "single" else places in pairs


@given(seed=st.integers(0, 2**32))
def test_training_scenes_contain_no_held_out_pair_of_words(seed: int):
    """A pair is two objects, or an object and a background."""
    scene = sample_scene(np.random.default_rng(seed), 128, 128)
    assert not held_out_pairs(tuple(item.name for item in scene.items), scene.background)


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["single", "pair"]))
def test_evaluation_scenes_contain_a_held_out_pair_of_words(seed: int, kind: str):
    """Their captions also name the background."""
    scene = sample_scene(np.random.default_rng(seed), 128, 128, kind, held_out=True)
    assert held_out_pairs(tuple(item.name for item in scene.items), scene.background)
    assert scene.caption.endswith(f"{scene.background} background")


@given(seed=st.integers(0, 2**32))
def test_a_caption_names_all_objects(seed: int):
    """All other words of a caption are known words too."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, 128, 128)
    words = re.findall(r"[a-z]+|[0-9]", scene.caption)
    assert {item.name for item in scene.items} <= set(words)
    assert set(words) <= set(known_words())
    assert isinstance(caption_for_training(scene, rng), str)


def test_a_known_word_is_one_token():
    """So captions fit the short text lengths. CLIP adds two tokens to each text, and T5 one."""
    clip, t5 = make_clip_tokenizer("!"), make_t5_tokenizer()
    assert [word for word in known_words() if len(clip(word).input_ids) != 3 or len(t5(word).input_ids) != 2] == []


@needs_font
def test_the_judge_accepts_scenes_from_the_font():
    """It rejects at most two of 100, whose glyph is too similar to the background."""
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng, 128, 128, kind, held_out=True) for kind in ("single", "pair") for _ in range(50)]
    assert sum(judge(_image(scene), scene).is_correct for scene in scenes) >= 98


@needs_font
def test_the_judge_rejects_images_of_another_object():
    """Each object is compared with the prompt of another one."""
    rng = np.random.default_rng(1)
    scenes: dict[str, Scene] = {}
    while len(scenes) < len(OBJECTS):
        scene = sample_scene(rng, 128, 128, "single")
        scenes[scene.items[0].name] = scene
    each = list(scenes.values())
    for scene, other in zip(each, each[1:] + each[:1], strict=True):
        assert not judge(_image(scene), other).is_correct


@needs_font
def test_the_judge_rejects_a_mirrored_relation():
    """The image is mirrored along the axis of the relation."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        scene = sample_scene(rng, 128, 128, "pair", held_out=True)
        flip = np.fliplr if scene.relation in {"left", "right"} else np.flipud
        assert not judge(np.ascontiguousarray(flip(_image(scene))), scene).is_correct


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_judge_finds_no_glyph_on_a_plain_background(background: str):
    """It names the background."""
    image = np.full((128, 128, 3), BACKGROUNDS[background], np.uint8)
    scene = Scene(128, 128, background, 0, (Item("cat", 0, 0, 64),), None, "")
    verdict = judge(image, scene)
    assert find_background(image)[0] == verdict.background == background
    assert (verdict.glyphs, verdict.is_correct) == ([], False)


@needs_font
def test_the_table_has_shares_bars_and_the_autoencoders_psnr():
    """The scenes come from the font, so all are correct."""
    scenes = [sample_scene(np.random.default_rng(seed), 128, 128, "single", held_out=True) for seed in range(4)]
    verdicts = [judge(_image(scene), scene) for scene in scenes]
    result = summarise(verdicts, verdicts, scenes, 0.98)
    assert result.is_met
    assert "| single | 100.0% | 98% | 100.0% |" in as_table({"single": result}, 31.25)
    assert "31.25 dB" in as_table({}, 31.25)
