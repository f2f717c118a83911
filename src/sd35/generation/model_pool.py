"""Where pictures are made: models, the engine that runs them, and what turns its pixels into a PNG file."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from sd35.checkpoints.image_sizes import drawn_size
from sd35.engine.generation import OnProgress, Painted, Pixels, Task, Ticket
from sd35.engine.local import Engine
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import Limits
from sd35.errors import PictureFailed
from sd35.generation.fallback import Building
from sd35.generation.model import Model
from sd35.generation.params import Wanted, find_model, resolve
from sd35.images.png import enlarge, write_png
from sd35.images.record import Maker, Record, own_version
from sd35.request import SIZE_MULTIPLE_PX, Request


class Finished(NamedTuple):
    """A picture as a PNG file, what it says of itself, and its pixels."""

    png: bytes
    record: Record
    pixels: Pixels

    @property
    def drawn(self) -> tuple[int, int]:
        """The size it was drawn at, (width, height) in pixels."""
        return self.record.maker.drawn_width, self.record.maker.drawn_height

    @property
    def is_enlarged(self) -> bool:
        """Whether it was drawn at another size than the requested one."""
        return self.drawn != (self.record.request.width, self.record.request.height)


class Studio:
    """Serves `models`, the first of which is the default. Its engine's threads run until `drain` or `close`.

    A model may be there in several profiles: new requests are resolved with the one in `models`, and each makes what
    was asked of it. `building` is what will swap some of them, if anything is.
    """

    building: Building | None = None

    def __init__(
        self,
        models: Sequence[Model],
        max_pixels: int,
        limits: Limits,
        embeddings: EmbeddingCache,
        *,
        reproducible: bool = False,
    ) -> None:
        assert models, "a studio needs a model"
        self.models = {model.name: model for model in models}
        self.max_pixels = max_pixels
        self._loaded = {(model.name, model.profile): model for model in models}
        painters = {key: model.painter for key, model in self._loaded.items()}
        self.embeddings = embeddings
        self.engine = Engine(painters, limits, embeddings, reproducible=reproducible)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def resolve(self, wanted: Wanted) -> Request:
        """A request that can be made here. Raises UnknownModel, InvalidRequest."""
        request = resolve(wanted, self.models)
        self._model_of(request).painter.check(self._task(request))
        return request

    def tokens_of(self, request: Request) -> tuple[int, int] | None:
        """What the transformer works on: tokens of the prompt that T5 reads, and the picture's patches as drawn.

        None where what made it is not served any more.
        """
        if (request.model, request.profile) not in self._loaded:
            return None
        task = self._task(request)
        patches = task.width_px * task.height_px // SIZE_MULTIPLE_PX**2
        return self._model_of(request).texts.tokens(request.prompt), patches

    def renewed(self, request: Request) -> Request:
        """The request as it can be made now: of the same revision and profile where these are still there.

        Else of the model's present ones. Raises UnknownModel, InvalidRequest.
        """
        model = self._loaded.get((request.model, request.profile))
        if model is None or model.checkpoint.revision != request.revision:
            model = find_model(self.models, request.model)
            request = replace(request, revision=model.checkpoint.revision, profile=model.profile)
        model.painter.check(self._task(request))
        return request

    def submit(
        self, request: Request, on_progress: OnProgress | None = None, *, client: Hashable = None, priority: int = 0
    ) -> Ticket:
        """Accept a picture. Raises InvalidRequest, Overloaded, NotReady."""
        return self.engine.submit(self._task(request), on_progress, client=client, priority=priority)

    def finish(self, painted: Painted) -> Finished:
        """The PNG file of a picture: enlarged where it was drawn smaller, with its record. Keeps a core busy."""
        request = painted.request
        model = self._model_of(request)
        drawn_height, drawn_width, _ = painted.pixels.shape
        versions = {"sd35": own_version(), **model.backend.versions}
        pixels = painted.pixels
        if (drawn_width, drawn_height) != (request.width, request.height):
            from PIL import __version__ as pillow_version

            versions["pillow"] = pillow_version
            pixels = enlarge(pixels, request.width, request.height)
        prompts = {"prompt": request.prompt}
        if request.guidance_scale > 1:
            prompts["negative_prompt"] = request.negative_prompt
        maker = Maker(
            revision=request.revision,
            backend=model.backend.name,
            precision=model.backend.precision,
            versions=versions,
            drawn_width=drawn_width,
            drawn_height=drawn_height,
            cut_off=[field for field, text in prompts.items() if model.texts.is_cut_off(text)],
        )
        record = Record(request, maker)
        return Finished(write_png(pixels, record.to_text()), record, pixels)

    def draw_first(self) -> None:
        """Draw a smallest picture with each model, so that whatever a runtime builds at first use is built.

        Raises PictureFailed.
        """
        for model in self._loaded.values():
            self._draw_first(model)

    def add(self, model: Model) -> None:
        """Make pictures in this profile too: what is asked of it, and what a narrower one spoils."""
        self._loaded[model.name, model.profile] = model
        self.engine.add(model.name, model.profile, model.painter)

    def swap(self, model: Model) -> None:
        """Answer new requests with a model in place of the one of its name, once it has drawn a first picture.

        Requests that were resolved before stay what they are. Raises PictureFailed, Overloaded, NotReady.
        """
        self.add(model)
        self._draw_first(model)
        self.models = {**self.models, model.name: model}

    def _draw_first(self, model: Model) -> None:
        side_px = model.card.side_px[0]
        wanted = Wanted(" ", width=side_px, height=side_px, steps=1, seed=0)
        painted = self.submit(resolve(wanted, {model.name: model})).future.result()
        if painted.request.profile != model.profile:
            raise PictureFailed(f"the first picture of {model.name} in {model.profile} was spoiled")

    def _model_of(self, request: Request) -> Model:
        return self._loaded[request.model, request.profile]

    def _task(self, request: Request) -> Task:
        card = self._model_of(request).card
        return Task(request, *drawn_size(request.width, request.height, card, self.max_pixels))
