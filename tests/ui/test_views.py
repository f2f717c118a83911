"""The HTML of images and of their progress."""

from dataclasses import replace

import pytest

from sd35.ui import views
from sd35.ui.client import Visitor
from sd35.ui.generate import GeneratedImage, ImageBatch, ImageJob

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
IMAGE = GeneratedImage("/cache/a b.png", "00ff", REQUEST, was_cached=False, is_blurred=False, truncated=())


def test_text_of_users_is_escaped():
    """In a prompt, the name of a model, and an error."""
    for shown in (
        views.details(IMAGE),
        views.image(IMAGE),
        views.substitute_warning("<b>", "why"),
        views.notice("<b>"),
    ):
        assert "<b>" not in shown
        assert "&lt;b&gt;" in shown


def test_an_image_has_notes_only_if_it_is_blurred_truncated_or_cached():
    """An empty negative prompt is not listed."""
    assert '<div class="notes"></div>' in views.details(IMAGE)
    assert "content filter blurred this image" in views.details(replace(IMAGE, is_blurred=True))
    assert "too long: negative prompt." in views.details(replace(IMAGE, truncated=["negative_prompt"]))
    assert "Cached" in views.details(replace(IMAGE, was_cached=True))
    assert "Negative prompt" not in views.details(IMAGE)


@pytest.mark.parametrize(
    ("jobs", "state"),
    [
        ([ImageJob("a", queue_position=3)], "3 ahead in the queue"),
        ([ImageJob("a", queue_position=0)], "Starting"),
        ([ImageJob("a", "running", step=2, steps=8)], "Step 2 of 8"),
        ([ImageJob("a", "running", step=2, steps=8, seconds_left=0.2)], "Step 2 of 8, about 1 s left"),
        ([ImageJob("a", "running", step=2, steps=8, seconds_left=150)], "Step 2 of 8, about 2 min left"),
        (
            [ImageJob("a", "succeeded", image=IMAGE), ImageJob("b", "running", step=6, steps=8, seconds_left=3)],
            "1 of 2 done, step 6 of 8, about 3 s left",
        ),
    ],
)
def test_progress_is_described_in_words(jobs: list[ImageJob], state: str):
    """Also for screen readers."""
    shown = views.progress(ImageBatch(Visitor(), jobs))
    assert f'aria-valuetext="{state}"' in shown
    assert f">{state}</p>" in shown


def test_each_reason_for_missing_images_is_shown_once():
    failed = ImageJob("a", "failed", error="The service is closing.")
    shown = views.failures(ImageBatch(Visitor(), [failed, replace(failed), ImageJob("b", "cancelled")]))
    assert shown.count("The service is closing.") == 1
    assert "1 of 3 cancelled." in shown
    assert views.failures(ImageBatch(Visitor(), [ImageJob("a", "succeeded", image=IMAGE)])) == ""
