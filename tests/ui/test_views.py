"""What the page shows of images and of their making."""

from dataclasses import replace

import pytest

from sd35.ui import views
from sd35.ui.client import Visitor
from sd35.ui.generate import Drawing, FinishedImage, Sheet

REQUEST = {
    "prompt": "<b>a cat</b>",
    "negative_prompt": "",
    "model": "sd35-mini",
    "width": 160,
    "height": 96,
    "steps": 28,
    "guidance_scale": 4.5,
    "seed": 7,
}
MADE = FinishedImage("/cache/a b.png", "00ff", REQUEST, was_kept=False, is_blurred=False, cut_off=())


def test_words_of_others_are_text_and_never_html():
    """A prompt, a checkpoint's name, an error."""
    for shown in (views.details(MADE), views.image(MADE), views.standing_in("<b>", "why"), views.notice("<b>")):
        assert "<b>" not in shown
        assert "&lt;b&gt;" in shown


def test_a_image_tells_what_is_particular_of_it():
    """Blurred, read in part only, there already: each where it holds, and else nothing."""
    assert '<div class="notes"></div>' in views.details(MADE)
    assert "content filter blurred it" in views.details(replace(MADE, is_blurred=True))
    assert "whole: negative prompt." in views.details(replace(MADE, cut_off=["negative_prompt"]))
    assert "there already" in views.details(replace(MADE, was_kept=True))
    assert "Negative prompt" not in views.details(MADE)


@pytest.mark.parametrize(
    ("drawings", "words"),
    [
        ([Drawing("a", place=3)], "Waiting: 3 before it"),
        ([Drawing("a", place=0)], "About to begin"),
        ([Drawing("a", "running", step=2, steps=8)], "Step 2 of 8"),
        ([Drawing("a", "running", step=2, steps=8, seconds_left=0.2)], "Step 2 of 8, about 1 s left"),
        ([Drawing("a", "running", step=2, steps=8, seconds_left=150)], "Step 2 of 8, about 2 min left"),
        (
            [Drawing("a", "succeeded", made=MADE), Drawing("b", "running", step=6, steps=8, seconds_left=3)],
            "1 of 2 done, step 6 of 8, about 3 s left",
        ),
    ],
)
def test_progress_is_said_in_words(drawings: list[Drawing], words: str):
    """Also to who does not see the bar."""
    shown = views.progress(Sheet(Visitor(), drawings))
    assert f'aria-valuetext="{words}"' in shown
    assert f">{words}</p>" in shown


def test_why_images_are_missing_is_said_once():
    """However many of them."""
    failed = Drawing("a", "failed", words="The service is closing.")
    told = views.failures(Sheet(Visitor(), [failed, replace(failed), Drawing("b", "cancelled")]))
    assert told.count("The service is closing.") == 1
    assert "1 of 3 cancelled." in told
    assert views.failures(Sheet(Visitor(), [Drawing("a", "succeeded", made=MADE)])) == ""
