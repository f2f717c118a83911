"""The page as Gradio's blocks: which control leads to what."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from sd35.ui.client import Client
from sd35.ui.controls import Parts, build
from sd35.ui.handlers import Handlers

TITLE = "sd35: images from text"
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
    radius_size="lg",
).set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")
_MOST_WAITING = 512  # events, of all who have the page open
_EVERY_S, _KEPT_S = 3600, 24 * 3600  # files that are older are removed, looked for as often
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def style() -> str:
    """The style sheet."""
    return (files("sd35.ui") / "style.css").read_text(encoding="utf-8")


def head() -> str:
    """What Gradio has no own way for: Ctrl or Cmd + Enter in a prompt."""
    return f"<script>{(files('sd35.ui') / 'keys.js').read_text(encoding='utf-8')}</script>"


def build_blocks(client: Client, directory: Path) -> gr.Blocks:
    """The page of a service; files are kept in `directory`."""
    blocks = gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(_EVERY_S, _KEPT_S))
    with blocks:
        parts = build()
        _wire(blocks, parts, Handlers(client, directory, parts))
    blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=None, api_open=False)
    return blocks


def _wire(blocks: gr.Blocks, parts: Parts, on: Handlers) -> None:
    every = {getattr(parts, name) for name in parts.__dataclass_fields__}
    outputs = every - {parts.session}
    opening = {"inputs": [parts.session, parts.key], "outputs": outputs, **_QUIET}
    blocks.load(on.opened, **opening)
    parts.unlock.click(on.opened, **opening)
    parts.key.submit(on.opened, **opening)
    parts.model.input(on.chose_model, [parts.session, parts.model], outputs, **_QUIET)
    parts.shape.input(on.chose_shape, [parts.session, parts.model, parts.shape], [parts.width, parts.height], **_QUIET)
    for side in (parts.width, parts.height):
        side.input(on.typed_side, [parts.session, parts.model, parts.width, parts.height], [parts.shape], **_QUIET)
    parts.dice.click(on.rolled, None, [parts.seed], **_QUIET)
    asked = {
        *(parts.session, parts.key, parts.prompt, parts.negative_prompt, parts.model, parts.width, parts.height),
        *(parts.steps, parts.guidance_scale, parts.seed, parts.lock, parts.count),
    }
    parts.generate.click(on.generated, asked, outputs, **_QUIET)
    for button, fill in ((parts.again, on.repeated), (parts.vary, on.varied)):
        button.click(fill, [parts.session], outputs, **_QUIET).then(on.generated, asked, outputs, **_QUIET)
    parts.cancel.click(on.cancelled, [parts.session], [parts.notice, parts.cancel], **_QUIET)
    parts.gallery.select(on.selected, [parts.session], outputs, **_QUIET)
    parts.drop.upload(on.dropped, [parts.session, parts.drop], outputs, **_QUIET)
