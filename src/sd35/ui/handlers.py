"""What happens when something on the page is pressed, chosen or dropped."""

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
from sd35.ui.client import Client, Model, Refusal, Visitor
from sd35.ui.controls import MAX_IMAGES, Parts, Session
from sd35.ui.generate import FinishedImage, Sheet, draw
from sd35.ui.read_request import read_request

_MOST_MADE = 200  # of a session
_SETTINGS = ("prompt", "negative_prompt", "model", "width", "height", "steps", "guidance_scale")
_NO_PROMPT = "Write a prompt first: what the image shows."

Changes = dict[Any, Any]


class Handlers:
    """The events of one page, which speaks to one service. What comes in is by control, and so is what changes."""

    def __init__(self, client: Client, directory: Path, parts: Parts) -> None:
        self._client, self._directory, self._parts = client, directory, parts

    async def opened(self, session: Session, key: str, request: gr.Request) -> Changes:
        """Ask the service what it offers; the key field is there where it wants a key."""
        parts = self._parts
        try:
            session.models = await self._client.models(_visitor(key, request))
        except Refusal as refusal:
            shown: Changes = {parts.key_row: gr.update(visible=True)} if refusal.is_of_key else {}
            shown[parts.generate] = gr.update(interactive=True)
            # Not an error yet: nobody has typed a key.
            return shown | {
                parts.notice: views.notice(refusal.words, "error" if key or not refusal.is_of_key else "hint")
            }
        first = session.models[0]
        warnings = "".join(views.standing_in(each.id, each.standing_in) for each in session.models if each.standing_in)
        return {
            parts.notice: "",
            parts.generate: gr.update(interactive=True),
            parts.seed: _drawn_seed(),
            parts.warning: gr.update(value=warnings, visible=bool(warnings)),
            parts.model: gr.update(choices=[each.id for each in session.models], value=first.id),
            **self._defaults(first),
        }

    def chose_model(self, session: Session, name: str) -> Changes:
        """Another checkpoint has sizes, steps and guidance of its own."""
        model = _model(session, name)
        return self._defaults(model) if model else _nothing()

    def chose_shape(self, session: Session, name: str, shape: str) -> Changes:
        """A preset sets width and height; free leaves them."""
        model = _model(session, name)
        size = sizes.presets(model).get(shape) if model else None
        return dict(zip((self._parts.width, self._parts.height), size, strict=True)) if size else _nothing()

    def typed_side(self, session: Session, name: str, width: float | None, height: float | None) -> Changes:
        """A size that was typed is a preset's, or free."""
        model = _model(session, name)
        return {self._parts.shape: sizes.name_of(model, width, height)} if model else _nothing()

    def rolled(self) -> Changes:
        """The dice: another seed."""
        return {self._parts.seed: _drawn_seed()}

    async def generated(self, given: Mapping[Any, Any], request: gr.Request) -> AsyncIterator[Changes]:
        """Have images made, and show how far they are."""
        parts = self._parts
        session: Session = given[parts.session]
        if not (given[parts.prompt] or "").strip():
            yield {parts.notice: views.notice(_NO_PROMPT)}
            return
        if session.sheet:  # two buttons were pressed at once
            yield _nothing()
            return
        is_locked = given[parts.lock] and given[parts.seed] is not None
        seed = given[parts.seed] if is_locked else _drawn_seed()
        sheet = session.sheet = Sheet(_visitor(given[parts.key], request))
        shown_error = ""
        is_key_wrong = False
        try:
            yield {
                **({} if is_locked else {parts.seed: seed}),  # what was typed may be longer than Gradio can send back
                parts.notice: "",
                parts.generate: gr.update(interactive=False, value="Drawing..."),
                parts.cancel: gr.update(visible=True, interactive=True),
                parts.actions: gr.update(visible=False),
                parts.details: gr.update(visible=False),
            }
            async with aclosing(draw(self._client, self._bodies(given, seed), sheet, self._keep)) as looks:
                async for _ in looks:
                    yield {parts.stage: views.progress(sheet)}
        except Refusal as refusal:
            shown_error, is_key_wrong = views.notice(refusal.words), refusal.is_of_key
        finally:
            session.sheet = None
        self._remember(session, [each.made for each in sheet.drawings if each.made])
        yield {
            **self._chosen(session),
            parts.notice: shown_error or views.failures(sheet),
            parts.generate: gr.update(interactive=True, value="Generate"),
            parts.cancel: gr.update(visible=False),
            **({parts.key_row: gr.update(visible=True)} if is_key_wrong else {}),
        }

    async def cancelled(self, session: Session) -> Changes:
        """Have the service stop; what follows the images then hears that they are cancelled."""
        sheet = session.sheet
        if sheet:
            sheet.is_cancelled = True
            try:
                await self._client.cancel(sheet.jobs, sheet.visitor)
            except Refusal as refusal:
                return {self._parts.notice: views.notice(refusal.words)}
        return {self._parts.cancel: gr.update(interactive=False)}

    def selected(self, session: Session, event: gr.SelectData) -> Changes:
        """Another image of the gallery."""
        session.chosen = int(event.index)
        return self._chosen(session)

    def repeated(self, session: Session) -> Changes:
        """The chosen image's settings, seed and all."""
        return self._filled(session, session.made[session.chosen].request, count=1)

    def varied(self, session: Session) -> Changes:
        """The chosen image's settings, and a seed of their own for each that follows."""
        return {**self.repeated(session), self._parts.lock: False}

    def dropped(self, session: Session, path: str | None) -> Changes:
        """An image made here: its settings. The file is not kept."""
        parts = self._parts
        if path is None:
            return _nothing()
        file = Path(path)
        try:
            found = read_request(file)
        except NotReplayable as error:
            return {parts.drop: None, parts.notice: views.notice(str(error))}
        finally:
            file.unlink(missing_ok=True)
        words = f"The settings of {file.name} are filled in."
        if not _model(session, found.model):
            words += f" It was made by {found.model}, which is not served here: the checkpoint is left as it was."
        return {**self._filled(session, asdict(found)), parts.drop: None, parts.notice: views.notice(words, "hint")}

    def _bodies(self, given: Mapping[Any, Any], seed: int) -> list[dict[str, Any]]:
        """One request for each image; seeds follow each other."""
        parts = self._parts
        body = {name: given[getattr(parts, name)] for name in _SETTINGS}
        if not given[parts.session].models:  # they could not be asked for: the service's own defaults
            body = {"prompt": body["prompt"], "negative_prompt": body["negative_prompt"]}
        count = min(max(int(given[parts.count]), 1), MAX_IMAGES)
        return [{**body, "seed": (int(seed) + number) % (SEED[1] + 1) if number else seed} for number in range(count)]

    def _keep(self, png: bytes, name: str) -> str:
        return str(save_bytes_to_cache(png, name, str(self._directory)))

    @staticmethod
    def _remember(session: Session, made: list[FinishedImage]) -> None:
        """The new ones first; one that was there already moves there."""
        if made:
            digests = {each.digest for each in made}
            session.made = [*made, *(each for each in session.made if each.digest not in digests)][:_MOST_MADE]
            session.chosen = 0

    def _chosen(self, session: Session) -> Changes:
        """The chosen image, large, with its settings; all of them, small."""
        parts = self._parts
        if not session.made:
            return {parts.stage: views.EMPTY}
        made = session.made[session.chosen]
        return {
            parts.stage: views.image(made),
            parts.actions: gr.update(visible=True),
            parts.download: made.path,
            parts.details: gr.update(value=views.details(made), visible=True),
            parts.gallery: gr.update(
                value=[(each.path, f"Seed {each.request['seed']}") for each in session.made],
                visible=len(session.made) > 1,
                selected_index=session.chosen,
            ),
        }

    def _defaults(self, model: Model) -> Changes:
        parts, defaults, ranges = self._parts, model.defaults, model.ranges
        return {
            parts.shape: gr.update(
                choices=[*sizes.presets(model), sizes.FREE],
                value=sizes.name_of(model, defaults.width, defaults.height),
            ),
            parts.width: defaults.width,
            parts.height: defaults.height,
            parts.sides: f'<p class="aside">{sizes.allowed(model)}</p>',
            parts.steps: gr.update(minimum=ranges.steps[0], maximum=ranges.steps[1], value=defaults.steps),
            parts.guidance_scale: gr.update(
                minimum=ranges.guidance_scale[0], maximum=ranges.guidance_scale[1], value=defaults.guidance_scale
            ),
        }

    def _filled(self, session: Session, fields: Mapping[str, Any], count: int | None = None) -> Changes:
        """Settings into the controls, the seed locked."""
        parts = self._parts
        model = _model(session, fields["model"])
        filled: Changes = {getattr(parts, name): fields[name] for name in (*_SETTINGS, "seed")}
        if not model:
            del filled[parts.model]
        else:
            filled[parts.shape] = sizes.name_of(model, fields["width"], fields["height"])
        if count:
            filled[parts.count] = count
        return {**filled, parts.lock: True}


def _visitor(key: str, request: gr.Request) -> Visitor:
    return Visitor(key or "", request.client.host if request.client else None)


def _nothing() -> Changes:
    """Changes none: an empty dict would be a value."""
    changes: Changes = gr.skip()
    return changes


def _model(session: Session, name: str) -> Model | None:
    return next((each for each in session.models if each.id == name), None)


def _drawn_seed() -> int:
    return secrets.randbelow(SEED[1] + 1)
