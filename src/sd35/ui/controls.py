"""The controls of the page and their layout."""

from dataclasses import dataclass, field

import gradio as gr

from sd35.ui import views
from sd35.ui.client import Model
from sd35.ui.generate import GeneratedImage, ImageBatch
from sd35.ui.sizes import CUSTOM

MAX_IMAGES = 8
_HEADER = """<header><h1>sd35</h1><p>Text to image</p><nav><a href="../docs">API</a></nav></header>"""


@dataclass
class Session:
    """The state of an open page: the served models, its images, and the batch in progress.

    The newest images come first. `selected` is the index of the image that is shown.
    """

    models: list[Model] = field(default_factory=list)
    images: list[GeneratedImage] = field(default_factory=list)
    selected: int = 0
    batch: ImageBatch | None = None


class Controls:
    """The components that events read or change. They are added to the current `gr.Blocks`.

    The page has three parts. The style sheet shows them side by side if the window is wide enough.
    """

    def __init__(self) -> None:
        with gr.Column(elem_id="page"):
            gr.HTML(_HEADER)
            self.warning = gr.HTML(visible=False)
            with gr.Row(elem_id="layout"):
                with gr.Column(elem_id="request", min_width=0):
                    self._add_request()
                with gr.Column(elem_id="result", min_width=0):
                    self._add_result()
                with gr.Column(elem_id="settings", min_width=0):
                    self._add_settings()
        self.session = gr.State(Session())

    def _add_request(self) -> None:
        """Add the API key, the prompts and the main buttons."""
        with gr.Row(visible=False, elem_id="key-row") as self.key_row:
            self.key = gr.Textbox(
                label="API key",
                type="password",
                placeholder="sd35_...",
                info="Sent to the service with each request, and not stored.",
                elem_id="key",
                html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
            )
            self.use_key = gr.Button("Use this key", elem_id="use-key", min_width=0)
        self.prompt = gr.Textbox(
            label="Prompt",
            lines=3,
            max_lines=12,
            placeholder="a cat to the left of a dog on a red background",
            elem_id="prompt",
            autofocus=True,
        )
        self.negative_prompt = gr.Textbox(
            label="Negative prompt", lines=1, max_lines=6, placeholder="what to avoid", elem_id="negative-prompt"
        )
        with gr.Row(elem_id="buttons"):
            self.generate = gr.Button("Generate", variant="primary", interactive=False, elem_id="generate", min_width=0)
            self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel", min_width=0)
        gr.HTML('<p class="hint-text">Ctrl or Cmd + Enter also generates.</p>', elem_id="shortcut")

    def _add_result(self) -> None:
        """Add the selected image, its buttons and settings, and the gallery."""
        self.notice = gr.HTML(elem_id="notice")
        self.canvas = gr.HTML(views.EMPTY, elem_id="canvas")
        with gr.Row(visible=False, elem_id="actions") as self.actions:
            self.download = gr.DownloadButton("Download", size="sm", min_width=0, elem_id="download")
            self.repeat = gr.Button("Repeat", size="sm", min_width=0, elem_id="repeat")
            self.vary = gr.Button("Vary seed", size="sm", min_width=0, elem_id="vary")
        self.gallery = gr.Gallery(
            label="Images of this session",
            visible=False,
            columns=6,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="gallery",
        )
        self.details = gr.HTML(elem_id="details", visible=False)

    def _add_settings(self) -> None:
        """Add the model, size, steps, guidance, seed and number of images, and the upload."""
        self.model = gr.Dropdown([], label="Model", interactive=True, elem_id="model", filterable=False)
        self.preset = gr.Radio([CUSTOM], label="Size", interactive=True, elem_id="preset")
        with gr.Row(elem_id="sides"):
            self.width = gr.Number(label="Width", precision=0, step=16, min_width=0, elem_id="width")
            self.height = gr.Number(label="Height", precision=0, step=16, min_width=0, elem_id="height")
        self.allowed_sizes = gr.HTML(elem_id="allowed-sizes")
        self.steps = gr.Slider(1, 150, 28, step=1, label="Steps", buttons=[], elem_id="steps")
        self.guidance_scale = gr.Slider(0, 30, 4.5, step=0.1, label="Guidance", buttons=[], elem_id="guidance")
        with gr.Row(elem_id="seed-row"):
            self.seed = gr.Number(label="Seed", precision=0, min_width=0, elem_id="seed", placeholder="random")
            self.random_seed = gr.Button("Random", size="sm", min_width=0, elem_id="random-seed")
            self.lock = gr.Checkbox(label="Lock", min_width=0, container=False, elem_id="lock")
        self.count = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Number of images", buttons=[], elem_id="count")
        self.upload = gr.File(
            label="Load settings from an image of this service",
            file_count="single",
            type="filepath",
            height=110,
            elem_id="upload",
        )
