"""The page's controls, and where each stands."""

from dataclasses import dataclass, field, fields

import gradio as gr

from sd35.ui import views
from sd35.ui.client import Model
from sd35.ui.generate import FinishedImage, Sheet
from sd35.ui.sizes import FREE

MAX_IMAGES = 8
_HEADER = """<header><h1>sd35</h1><p>Images from text, made here.</p><nav><a href="../docs">API</a></nav></header>"""


@dataclass
class Session:
    """What is kept of one open page: what the service offers, what was made, newest first, and what is on its way."""

    models: list[Model] = field(default_factory=list)
    made: list[FinishedImage] = field(default_factory=list)
    chosen: int = 0
    sheet: Sheet | None = None


@dataclass(frozen=True)
class Parts:
    """Every control that an event reads or changes."""

    warning: gr.HTML
    key_row: gr.Row
    key: gr.Textbox
    unlock: gr.Button
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    generate: gr.Button
    cancel: gr.Button
    notice: gr.HTML
    stage: gr.HTML
    details: gr.HTML
    actions: gr.Row
    download: gr.DownloadButton
    again: gr.Button
    vary: gr.Button
    gallery: gr.Gallery
    model: gr.Dropdown
    shape: gr.Radio
    width: gr.Number
    height: gr.Number
    sides: gr.HTML
    steps: gr.Slider
    guidance_scale: gr.Slider
    seed: gr.Number
    dice: gr.Button
    lock: gr.Checkbox
    count: gr.Slider
    drop: gr.File
    session: gr.State


def build() -> Parts:
    """The page, in three blocks that the style sheet puts side by side where there is room."""
    with gr.Column(elem_id="page"):
        gr.HTML(_HEADER)
        warning = gr.HTML(visible=False)
        with gr.Row(elem_id="generation service"):
            with gr.Column(elem_id="ask", min_width=0):
                asked = _ask()
            with gr.Column(elem_id="stage", min_width=0):
                staged = _stage()
            with gr.Column(elem_id="settings", min_width=0):
                chosen = _settings()
    found = {**asked, **staged, **chosen, "warning": warning, "session": gr.State(Session())}
    assert found.keys() == {each.name for each in fields(Parts)}
    return Parts(**found)


def _ask() -> dict[str, object]:
    with gr.Row(visible=False, elem_id="key-row") as key_row:
        key = gr.Textbox(
            label="API key",
            type="password",
            placeholder="sd35_...",
            info="It is sent to the service with what you ask for, and kept nowhere.",
            elem_id="key",
            html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
        )
        unlock = gr.Button("Use this key", elem_id="unlock", min_width=0)
    prompt = gr.Textbox(
        label="Prompt",
        lines=3,
        max_lines=12,
        placeholder="a cat to the left of a dog on a red background",
        elem_id="prompt",
        autofocus=True,
    )
    negative_prompt = gr.Textbox(
        label="Negative prompt", lines=1, max_lines=6, placeholder="what to keep out of it", elem_id="negative-prompt"
    )
    with gr.Row(elem_id="go"):
        generate = gr.Button("Generate", registered="primary", interactive=False, elem_id="generate", min_width=0)
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel", min_width=0)
    gr.HTML('<p class="aside">Ctrl or Cmd + Enter in the prompt generates, too.</p>', elem_id="shortcut")
    return {
        "key_row": key_row,
        "key": key,
        "unlock": unlock,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "generate": generate,
        "cancel": cancel,
    }


def _stage() -> dict[str, object]:
    notice = gr.HTML(elem_id="notice")
    stage = gr.HTML(views.EMPTY, elem_id="canvas")
    with gr.Row(visible=False, elem_id="actions") as actions:
        download = gr.DownloadButton("Download", size="sm", min_width=0, elem_id="download")
        again = gr.Button("Same again", size="sm", min_width=0, elem_id="again")
        vary = gr.Button("Vary seed", size="sm", min_width=0, elem_id="vary")
    gallery = gr.Gallery(
        label="Made in this session",
        visible=False,
        columns=6,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="gallery",
    )
    details = gr.HTML(elem_id="details", visible=False)
    return {
        "notice": notice,
        "stage": stage,
        "actions": actions,
        "download": download,
        "again": again,
        "vary": vary,
        "gallery": gallery,
        "details": details,
    }


def _settings() -> dict[str, object]:
    model = gr.Dropdown([], label="Checkpoint", interactive=True, elem_id="model", filterable=False)
    shape = gr.Radio([FREE], label="Size", interactive=True, elem_id="shape")
    with gr.Row(elem_id="sides"):
        width = gr.Number(label="Width", precision=0, step=16, min_width=0, elem_id="width")
        height = gr.Number(label="Height", precision=0, step=16, min_width=0, elem_id="height")
    sides = gr.HTML(elem_id="sides-words")
    steps = gr.Slider(1, 150, 28, step=1, label="Steps", buttons=[], elem_id="steps")
    guidance_scale = gr.Slider(0, 30, 4.5, step=0.1, label="Guidance", buttons=[], elem_id="guidance")
    with gr.Row(elem_id="seed-row"):
        seed = gr.Number(label="Seed", precision=0, min_width=0, elem_id="seed", placeholder="random")
        dice = gr.Button("Dice", size="sm", min_width=0, elem_id="dice")
        lock = gr.Checkbox(label="Lock", min_width=0, container=False, elem_id="lock")
    count = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Number of images", buttons=[], elem_id="count")
    drop = gr.File(
        label="Settings from an image: drop a file made here",
        file_count="single",
        type="filepath",
        height=110,
        elem_id="drop",
    )
    return {
        "model": model,
        "shape": shape,
        "width": width,
        "height": height,
        "sides": sides,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "dice": dice,
        "lock": lock,
        "count": count,
        "drop": drop,
    }
