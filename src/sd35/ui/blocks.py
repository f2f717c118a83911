"""The page as Gradio blocks: its controls, connected to the handlers of their events."""

from pathlib import Path
from typing import Any

import gradio as gr

from sd35.ui.client import Client
from sd35.ui.controls import Controls
from sd35.ui.handlers import Handlers

TITLE = "sd35: text to image"
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
    radius_size="lg",
).set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")
_MAX_QUEUED_EVENTS = 512  # of all open pages
_CLEANUP_INTERVAL_S, _MAX_FILE_AGE_S = 3600, 24 * 3600
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build_blocks(client: Client, directory: Path) -> gr.Blocks:
    """Build the user interface for a service. The page's temporary files are stored in `directory`."""
    blocks = gr.Blocks(
        title=TITLE,
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(_CLEANUP_INTERVAL_S, _MAX_FILE_AGE_S),
    )
    with blocks:
        controls = Controls()
        _connect(blocks, controls, Handlers(client, directory, controls))
    blocks.queue(max_size=_MAX_QUEUED_EVENTS, default_concurrency_limit=None, api_open=False)
    return blocks


def _connect(blocks: gr.Blocks, controls: Controls, handlers: Handlers) -> None:
    """Connect the events of the controls to their handlers.

    A handler gets its values one by one if its inputs are a list, and as a dict by control if they are a set.
    """
    c, session = controls, controls.session
    outputs = set(vars(c).values()) - {session}  # all controls: a handler returns those that it changes
    load = {"fn": handlers.load, "inputs": [session, c.key], "outputs": outputs, **_QUIET}
    blocks.load(**load)
    c.use_key.click(**load)
    c.key.submit(**load)
    c.model.input(handlers.select_model, [session, c.model], outputs, **_QUIET)
    c.preset.input(handlers.select_preset, [session, c.model, c.preset], [c.width, c.height], **_QUIET)
    for side in (c.width, c.height):
        side.input(handlers.update_preset, [session, c.model, c.width, c.height], [c.preset], **_QUIET)
    c.random_seed.click(handlers.randomize_seed, None, [c.seed], **_QUIET)
    request_inputs = {
        *(session, c.key, c.prompt, c.negative_prompt, c.model, c.width, c.height),
        *(c.steps, c.guidance_scale, c.seed, c.lock, c.count),
    }
    c.generate.click(handlers.generate, request_inputs, outputs, **_QUIET)
    for button, fill in ((c.repeat, handlers.fill_selected), (c.vary, handlers.fill_selected_unlocked)):
        filling = button.click(fill, [session], outputs, **_QUIET)
        filling.then(handlers.generate, request_inputs, outputs, **_QUIET)
    c.cancel.click(handlers.cancel, [session], [c.notice, c.cancel], **_QUIET)
    c.gallery.select(handlers.select_image, [session], outputs, **_QUIET)
    c.upload.upload(handlers.load_settings, [session, c.upload], outputs, **_QUIET)
