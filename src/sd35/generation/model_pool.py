"""Where images are made: models, the engine that runs them, and what turns its pixels into a PNG file."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from sd35.checkpoints.image_sizes import drawn_size
from sd35.engine.generation import GeneratedImage, Handle, OnProgress, Pixels, Task
from sd35.engine.local import Engine
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import DeviceLimits
from sd35.errors import GenerationFailed
from sd35.generation.fallback import FallbackBuilder
from sd35.generation.model import Model
from sd35.generation.params import GenerationParams, find_model, resolve
from sd35.images.png import write_png
from sd35.images.record import Maker, Record, own_version
from sd35.images.resize import enlarge
from sd35.request import SIZE_MULTIPLE_PX, Request


class EncodedImage(NamedTuple):
    """An image as a PNG file, what it says of itself, and its pixels."""

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


class ModelPool:
    """Serves `models`, the first of which is the default. Its engine's threads run until `drain` or `close`.

    A model may be there in several profiles: new requests are resolved with the one in `models`, and each makes what
    was asked of it. `building` is what will swap some of them, if anything is.
    """

    fallback_builder: FallbackBuilder | None = None

    def __init__(
        self,
        models: Sequence[Model],
        max_pixels: int,
        limits: DeviceLimits,
        embeddings: EmbeddingCache,
        *,
        reproducible: bool = False,
    ) -> None:
        assert models, "a model pool needs a model"
        self.models = {model.name: model for model in models}
        self.max_pixels = max_pixels
        self._loaded = {(model.name, model.profile): model for model in models}
        pipelines = {key: model.pipeline for key, model in self._loaded.items()}
        self.embeddings = embeddings
        self.engine = Engine(pipelines, limits, embeddings, reproducible=reproducible)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def resolve(self, wanted: GenerationParams) -> Request:
        """A request that can be made here. Raises UnknownModel, InvalidRequest."""
        request = resolve(wanted, self.models)
        self._model_of(request).pipeline.check(self._task(request))
        return request

    def tokens_of(self, request: Request) -> tuple[int, int] | None:
        """What the transformer works on: tokens of the prompt that T5 reads, and the image's patches as drawn.

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
        model.pipeline.check(self._task(request))
        return request

    def submit(
        self, request: Request, on_progress: OnProgress | None = None, *, client: Hashable = None, priority: int = 0
    ) -> Handle:
        """Accept an image. Raises InvalidRequest, Overloaded, NotReady."""
        return self.engine.submit(self._task(request), on_progress, client=client, priority=priority)

    def finish(self, generated: GeneratedImage) -> EncodedImage:
        """The PNG file of an image: enlarged where it was drawn smaller, with its record. Keeps a core busy."""
        request = generated.request
        model = self._model_of(request)
        drawn_height, drawn_width, _ = generated.pixels.shape
        versions = {"sd35": own_version(), **model.backend.versions}
        pixels = generated.pixels
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
            cut_off=[field for field, text in prompts.items() if model.texts.is_truncated(text)],
        )
        record = Record(request, maker)
        return EncodedImage(write_png(pixels, record.to_text()), record, pixels)

    def draw_first(self) -> None:
        """Draw a smallest image with each model, so that whatever a runtime builds at first use is built.

        Raises GenerationFailed.
        """
        for model in self._loaded.values():
            self._draw_first(model)

    def add(self, model: Model) -> None:
        """Make images in this profile too: what is asked of it, and what a narrower one spoils."""
        self._loaded[model.name, model.profile] = model
        self.engine.add(model.name, model.profile, model.pipeline)

    def swap(self, model: Model) -> None:
        """Answer new requests with a model in place of the one of its name, once it has drawn a first image.

        Requests that were resolved before stay what they are. Raises GenerationFailed, Overloaded, NotReady.
        """
        self.add(model)
        self._draw_first(model)
        self.models = {**self.models, model.name: model}

    def _draw_first(self, model: Model) -> None:
        side_px = model.card.side_px[0]
        wanted = GenerationParams(" ", width=side_px, height=side_px, steps=1, seed=0)
        generated = self.submit(resolve(wanted, {model.name: model})).future.result()
        if generated.request.profile != model.profile:
            raise GenerationFailed(f"the first image of {model.name} in {model.profile} was spoiled")

    def _model_of(self, request: Request) -> Model:
        return self._loaded[request.model, request.profile]

    def _task(self, request: Request) -> Task:
        card = self._model_of(request).card
        return Task(request, *drawn_size(request.width, request.height, card, self.max_pixels))
