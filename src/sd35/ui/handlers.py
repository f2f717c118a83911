"""Handlers of the page's events."""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from sd35.errors import NotReplayable
from sd35.request import SEED
from sd35.ui import sizes, views
from sd35.ui.client import Client, Model, ServiceError, Visitor
from sd35.ui.controls import MAX_IMAGES, Controls, Session
from sd35.ui.generate import GeneratedImage, ImageBatch, generate
from sd35.ui.read_request import read_request

_MAX_IMAGES_LISTED = 200  # a session keeps its last 200 images
_SETTINGS = ("prompt", "negative_prompt", "model", "width", "height", "steps", "guidance_scale")
_NO_PROMPT = "Enter a prompt first."

Changes = dict[Any, Any]  # new values of controls, or `gr.update(...)` of their properties, by control


class Handlers:
    """The event handlers of a page. Each handler returns or yields the changes of the page."""

    def __init__(self, client: Client, directory: Path, controls: Controls) -> None:
        self._client, self._directory, self._controls = client, directory, controls

    async def load(self, session: Session, key: str, request: gr.Request) -> Changes:
        """Load the models of the service, or show the key field if the service needs a key."""
        controls = self._controls
        try:
            session.models = await self._client.models(_visitor(key, request))
        except ServiceError as error:
            changes: Changes = {controls.key_row: gr.update(visible=True)} if error.is_key_error else {}
            changes[controls.generate] = gr.update(interactive=True)
            # If the user has not typed a key yet, the message is a hint, not an error.
            changes[controls.notice] = views.notice(error.message, "error" if key or not error.is_key_error else "hint")
            return changes
        default = session.models[0]
        warnings = "".join(
            views.substitute_warning(model.id, model.substitute_reason)
            for model in session.models
            if model.substitute_reason
        )
        return {
            controls.notice: "",
            controls.generate: gr.update(interactive=True),
            controls.seed: _random_seed(),
            controls.warning: gr.update(value=warnings, visible=bool(warnings)),
            controls.model: gr.update(choices=[model.id for model in session.models], value=default.id),
            **self._apply_defaults(default),
        }

    def select_model(self, session: Session, name: str) -> Changes:
        """Set sizes, steps and guidance to the defaults of the selected model."""
        model = _find_model(session, name)
        return self._apply_defaults(model) if model else _no_changes()

    def select_preset(self, session: Session, name: str, preset: str) -> Changes:
        """Set width and height to a preset of the model with this name. `CUSTOM` does not change them."""
        model = _find_model(session, name)
        size = sizes.presets(model).get(preset) if model else None
        if size is None:
            return _no_changes()
        width, height = size
        return {self._controls.width: width, self._controls.height: height}

    def update_preset(self, session: Session, name: str, width: float | None, height: float | None) -> Changes:
        """Select the preset that matches a typed size, or `CUSTOM`."""
        model = _find_model(session, name)
        return {self._controls.preset: sizes.preset_of(model, width, height)} if model else _no_changes()

    def randomize_seed(self) -> Changes:
        """Set a new random seed."""
        return {self._controls.seed: _random_seed()}

    async def generate(self, values: Mapping[Any, Any], request: gr.Request) -> AsyncIterator[Changes]:
        """Generate images, and show their progress. `values` are the values of the controls, by control."""
        controls = self._controls
        session: Session = values[controls.session]
        if not (values[controls.prompt] or "").strip():
            yield {controls.notice: views.notice(_NO_PROMPT)}
            return
        if session.batch:  # two buttons were pressed at once
            yield _no_changes()
            return
        is_locked = values[controls.lock] and values[controls.seed] is not None
        seed = values[controls.seed] if is_locked else _random_seed()
        batch = session.batch = ImageBatch(_visitor(values[controls.key], request))
        error: ServiceError | None = None
        try:
            yield {
                **({} if is_locked else {controls.seed: seed}),  # a typed seed may be too long for Gradio to send back
                controls.notice: "",
                controls.generate: gr.update(interactive=False, value="Generating..."),
                controls.cancel: gr.update(visible=True, interactive=True),
                controls.actions: gr.update(visible=False),
                controls.details: gr.update(visible=False),
            }
            async with aclosing(generate(self._client, self._bodies(values, seed), batch, self._save)) as updates:
                async for _ in updates:
                    yield {controls.canvas: views.progress(batch)}
        except ServiceError as caught:
            error = caught
        finally:
            session.batch = None
        _add_images(session, [job.image for job in batch.jobs if job.image])
        yield {
            **self._show_selected(session),
            controls.notice: views.notice(error.message) if error else views.failures(batch),
            controls.generate: gr.update(interactive=True, value="Generate"),
            controls.cancel: gr.update(visible=False),
            **({controls.key_row: gr.update(visible=True)} if error and error.is_key_error else {}),
        }

    async def cancel(self, session: Session) -> Changes:
        """Cancel the batch. The page then shows that its jobs are cancelled."""
        batch = session.batch
        if batch:
            batch.is_cancelled = True
            try:
                await self._client.cancel(batch.active_job_ids, batch.visitor)
            except ServiceError as error:
                return {self._controls.notice: views.notice(error.message)}
        return {self._controls.cancel: gr.update(interactive=False)}

    def select_image(self, session: Session, event: gr.SelectData) -> Changes:
        """Show an image of the gallery."""
        session.selected = int(event.index)
        return self._show_selected(session)

    def fill_selected(self, session: Session) -> Changes:
        """Fill in the settings of the selected image, lock its seed, and set the number of images to 1."""
        return self._fill(session, session.images[session.selected].request, count=1)

    def fill_selected_unlocked(self, session: Session) -> Changes:
        """Fill in the settings of the selected image, but unlock the seed, so that the next image gets a new one."""
        return {**self.fill_selected(session), self._controls.lock: False}

    def load_settings(self, session: Session, path: str | None) -> Changes:
        """Fill in the settings of an uploaded image, and delete the uploaded file at `path`."""
        controls = self._controls
        if path is None:
            return _no_changes()
        file = Path(path)
        try:
            request = read_request(file)
        except NotReplayable as error:
            return {controls.upload: None, controls.notice: views.notice(str(error))}
        finally:
            file.unlink(missing_ok=True)
        message = f"Loaded the settings of {file.name}."
        if not _find_model(session, request.model):
            message += f" Its model, {request.model}, is not served here, so the model was not changed."
        changes = self._fill(session, asdict(request))
        return {**changes, controls.upload: None, controls.notice: views.notice(message, "hint")}

    def _bodies(self, values: Mapping[Any, Any], seed: int) -> list[dict[str, Any]]:
        """Return the request body of each job. The seeds are consecutive."""
        controls = self._controls
        body = {name: values[getattr(controls, name)] for name in _SETTINGS}
        if not values[controls.session].models:  # if no models were loaded, the service's defaults apply
            body = {"prompt": body["prompt"], "negative_prompt": body["negative_prompt"]}
        count = min(max(int(values[controls.count]), 1), MAX_IMAGES)
        # The first seed is sent as it was typed, so that the service refuses a seed outside its range.
        seeds = [seed, *((int(seed) + number) % (SEED[1] + 1) for number in range(1, count))]
        return [{**body, "seed": each_seed} for each_seed in seeds]

    def _save(self, png: bytes, name: str) -> str:
        """Save a PNG file in the page's directory, and return its path."""
        return str(save_bytes_to_cache(png, name, str(self._directory)))

    def _show_selected(self, session: Session) -> Changes:
        """Show the selected image with its settings, and the gallery."""
        controls = self._controls
        if not session.images:
            return {controls.canvas: views.EMPTY}
        image = session.images[session.selected]
        return {
            controls.canvas: views.image(image),
            controls.actions: gr.update(visible=True),
            controls.download: image.path,
            controls.details: gr.update(value=views.details(image), visible=True),
            controls.gallery: gr.update(
                value=[(listed.path, f"Seed {listed.request['seed']}") for listed in session.images],
                visible=len(session.images) > 1,
                selected_index=session.selected,
            ),
        }

    def _apply_defaults(self, model: Model) -> Changes:
        """Set size, steps and guidance to the defaults and ranges of a model."""
        controls, defaults, ranges = self._controls, model.defaults, model.ranges
        return {
            controls.preset: gr.update(
                choices=[*sizes.presets(model), sizes.CUSTOM],
                value=sizes.preset_of(model, defaults.width, defaults.height),
            ),
            controls.width: defaults.width,
            controls.height: defaults.height,
            controls.allowed_sizes: f'<p class="hint-text">{sizes.allowed_sizes(model)}</p>',
            controls.steps: gr.update(minimum=ranges.steps[0], maximum=ranges.steps[1], value=defaults.steps),
            controls.guidance_scale: gr.update(
                minimum=ranges.guidance_scale[0], maximum=ranges.guidance_scale[1], value=defaults.guidance_scale
            ),
        }

    def _fill(self, session: Session, request: Mapping[str, Any], count: int | None = None) -> Changes:
        """Fill in the settings of a request, and lock the seed. Without `count`, the number of images stays.

        If the model of the request is not served, the selected model stays.
        """
        controls = self._controls
        model = _find_model(session, request["model"])
        changes: Changes = {getattr(controls, name): request[name] for name in (*_SETTINGS, "seed")}
        if model:
            changes[controls.preset] = sizes.preset_of(model, request["width"], request["height"])
        else:
            del changes[controls.model]
        if count:
            changes[controls.count] = count
        return {**changes, controls.lock: True}


def _add_images(session: Session, images: list[GeneratedImage]) -> None:
    """Add new images at the front of a session. An image that it already has moves to the front."""
    if images:
        digests = {image.digest for image in images}
        others = [image for image in session.images if image.digest not in digests]
        session.images, session.selected = [*images, *others][:_MAX_IMAGES_LISTED], 0


def _visitor(key: str, request: gr.Request) -> Visitor:
    """Return the visitor who typed `key` and sent a request to the page."""
    return Visitor(key or "", request.client.host if request.client else None)


def _no_changes() -> Changes:
    """Return Gradio's value for no changes. Gradio would take an empty dict as the value of a control."""
    changes: Changes = gr.skip()
    return changes


def _find_model(session: Session, name: str) -> Model | None:
    return next((model for model in session.models if model.id == name), None)


def _random_seed() -> int:
    return secrets.randbelow(SEED[1] + 1)
