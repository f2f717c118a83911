"""The scenes that the embedded model learns from, and the judge of its images."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.bench.quality.judge import find_background
from training.evaluate import as_table, judge, summarise
from training.scenes import Item, Scene, caption_for_training, draw, find_font, sample_scene
from training.text import known_words, make_clip_tokenizer, make_t5_tokenizer
from training.vocabulary import GROUNDS, OBJECTS, held_out_pairs

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
def test_every_scene_lies_inside_its_image(seed: int, width: int, height: int, scattered: bool):  # noqa: FBT001  drawn by hypothesis
    """At every size the model draws, glyphs lie on the grid and inside the image."""
    scene = sample_scene(np.random.default_rng(seed), width, height, scattered=scattered)
    for item in scene.items:
        assert item.x_px % 16 == item.y_px % 16 == item.size_px % 16 == 0
        assert 0 <= item.x_px <= width - item.size_px
        assert 0 <= item.y_px <= height - item.size_px


@given(seed=st.integers(0, 2**32), width=sides, height=sides)
def test_two_glyphs_stand_as_the_relation_says(seed: int, width: int, height: int):
    """The first is wholly to the left of, right of, above or below the second."""
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
def test_a_caption_settles_where_things_stand(seed: int, kind: str):
    """Two scenes of one caption have their glyphs in the same places; only the ground's shade is left to chance."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, 128, 128, kind, held_out=True)
    sizes = {item.size_px for item in scene.items}
    assert sizes == ({64} if kind == "single" else {48})
    places = {(item.x_px, item.y_px) for item in scene.items}
    pairs = [{(0, 32), (80, 32)}, {(32, 0), (32, 80)}]
    assert places == {(32, 32)} if kind == "single" else places in pairs


@given(seed=st.integers(0, 2**32))
def test_training_never_sees_a_held_out_pair_of_words(seed: int):
    """Neither two objects, nor an object on a ground, where the pair is kept for evaluation."""
    scene = sample_scene(np.random.default_rng(seed), 128, 128)
    assert not held_out_pairs(tuple(item.name for item in scene.items), scene.ground)


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["single", "pair"]))
def test_evaluation_asks_for_what_training_never_saw(seed: int, kind: str):
    """Each evaluation prompt combines two words that are held out, and names its ground."""
    scene = sample_scene(np.random.default_rng(seed), 128, 128, kind, held_out=True)
    assert held_out_pairs(tuple(item.name for item in scene.items), scene.ground)
    assert scene.caption.endswith(f"{scene.ground} background")


@given(seed=st.integers(0, 2**32))
def test_a_caption_names_what_is_shown(seed: int):
    """Every object is in the caption; what else is in it are known words."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, 128, 128)
    words = re.findall(r"[a-z]+|[0-9]", scene.caption)
    assert {item.name for item in scene.items} <= set(words)
    assert set(words) <= set(known_words())
    assert isinstance(caption_for_training(scene, rng), str)


def test_a_known_word_is_one_token():
    """So that a caption fits the short text lengths."""
    clip, t5 = make_clip_tokenizer("!"), make_t5_tokenizer()
    assert [word for word in known_words() if len(clip(word).input_ids) != 3 or len(t5(word).input_ids) != 2] == []


@needs_font
def test_the_judge_finds_true_scenes_right():
    """Scenes drawn from the font show what they say; at most one in fifty has a glyph too near to its ground."""
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng, 128, 128, kind, held_out=True) for kind in ("single", "pair") for _ in range(50)]
    assert sum(judge(_image(scene), scene).is_correct for scene in scenes) >= 98


@needs_font
def test_the_judge_finds_every_other_object_wrong():
    """An image of one object is not right for the prompt of another."""
    rng = np.random.default_rng(1)
    scenes: dict[str, Scene] = {}
    while len(scenes) < len(OBJECTS):
        scene = sample_scene(rng, 128, 128, "single")
        scenes[scene.items[0].name] = scene
    drawn = list(scenes.values())
    for shown, asked in zip(drawn, drawn[1:] + drawn[:1], strict=True):
        assert not judge(_image(shown), asked).is_correct


@needs_font
def test_the_judge_finds_a_swapped_relation_wrong():
    """The mirror image of a scene of two is not what was asked."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        scene = sample_scene(rng, 128, 128, "pair", held_out=True)
        flip = np.fliplr if scene.relation in {"left", "right"} else np.flipud
        assert not judge(np.ascontiguousarray(flip(_image(scene))), scene).is_correct


@pytest.mark.parametrize("ground", GROUNDS)
def test_the_judge_names_plain_grounds_and_finds_nothing_on_them(ground: str):
    """An empty image has a ground and no glyph."""
    image = np.full((128, 128, 3), GROUNDS[ground], np.uint8)
    scene = Scene(128, 128, ground, 0, (Item("cat", 0, 0, 64),), None, "")
    verdict = judge(image, scene)
    assert find_background(image)[0] == verdict.background == ground
    assert (verdict.glyphs, verdict.is_correct) == ([], False)


@needs_font
def test_the_table_says_what_was_found():
    """Shares, bars and the autoencoder's limit stand in the table."""
    scenes = [sample_scene(np.random.default_rng(seed), 128, 128, "single", held_out=True) for seed in range(4)]
    verdicts = [judge(_image(scene), scene) for scene in scenes]
    result = summarise(verdicts, verdicts, scenes, 0.98)
    assert result.is_met
    assert "| single | 100.0% | 98% | 100.0% |" in as_table({"single": result}, 31.25)
    assert "31.25 dB" in as_table({}, 31.25)
