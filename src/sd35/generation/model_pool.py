"""The pool of loaded models: it completes and submits requests, and encodes images as PNG files."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Self

from sd35.checkpoints.image_sizes import generated_size
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.engine.base import Engine, GeneratedImage, Handle, OnProgress, Pixels, Work
from sd35.engine.model_info import ModelInfo
from sd35.errors import GenerationFailed
from sd35.generation.fallback import FallbackBuilder
from sd35.generation.params import GenerationParams, find_model, resolve
from sd35.images.png import write_png
from sd35.images.record import Maker, Record, own_version
from sd35.images.resize import enlarge
from sd35.request import SIZE_MULTIPLE_PX, Request


class EncodedImage(NamedTuple):
    """An image as a PNG file, the record in the file (the request and the versions), and the pixels."""

    png: bytes
    record: Record
    pixels: Pixels

    @property
    def is_enlarged(self) -> bool:
        """Whether the image was generated smaller than requested and then enlarged."""
        request, maker = self.record.request, self.record.maker
        return (maker.drawn_width, maker.drawn_height) != (request.width, request.height)


class ModelPool:
    """The models of an engine by name. The first is the default.

    An engine may have one model in several profiles. A profile is the backend, the precision and whatever else changes
    the pixels. New requests use the profile of the model in `models`. Earlier requests keep theirs.

    Args:
        engine: The engine that generates the images. The pool closes it at the end of its `with` block.
        tokenizers: The tokenizers of each model, by its name.
        max_pixels: The most pixels (width x height) that a request may have.

    Attributes:
        models: The model for new requests, by name.
        fallback_builder: Builds models whose graphs or engines are missing while their fallbacks serve requests. None
            if nothing is missing.
    """

    fallback_builder: FallbackBuilder | None = None

    def __init__(self, engine: Engine, tokenizers: Mapping[str, Tokenizers], max_pixels: int) -> None:
        self.engine, self.tokenizers, self.max_pixels = engine, tokenizers, max_pixels
        self.models: dict[str, ModelInfo] = {}
        for model in engine.models:
            self.models.setdefault(model.name, model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def resolve(self, params: GenerationParams) -> Request:
        """Return the complete request for the parameters of a call, after checking that the model can generate it.

        Raises UnknownModel, or InvalidRequest if the model cannot generate the image.
        """
        request = resolve(params, self.models)
        self._check_request(request, self.models[request.model])
        return request

    def tokens_of(self, request: Request) -> tuple[int, int] | None:
        """Return the number of T5 tokens in a request's prompt, and of image tokens (patches) in its generated size.

        Returns None if the request's model or profile is no longer loaded.
        """
        model = self._find_loaded(request)
        if model is None:
            return None
        width_px, height_px = self._generated_size(request, model)
        return self.tokenizers[request.model].tokens(request.prompt), width_px * height_px // SIZE_MULTIPLE_PX**2

    def renewed(self, request: Request) -> Request:
        """Return an earlier request. If its revision or profile is not loaded, both become those of the served model.

        Raises UnknownModel, or InvalidRequest if the model cannot generate the image.
        """
        model = self._find_loaded(request)
        if model is None or model.revision != request.revision:
            model = find_model(self.models, request.model)
            request = replace(request, revision=model.revision, profile=model.profile)
        self._check_request(request, model)
        return request

    def submit(
        self,
        request: Request,
        on_progress: OnProgress | None = None,
        *,
        client: object = None,
        priority: int = 0,
        previews: bool = False,
    ) -> Handle:
        """Submit a request that `resolve` or `renewed` has returned. See `Engine.submit` for arguments and errors."""
        model = self._find_loaded(request)
        assert model, request.profile
        work = Work(request, *self._generated_size(request, model), client, priority)
        return self.engine.submit(work, on_progress, previews=previews)

    def encode(self, generated: GeneratedImage) -> EncodedImage:
        """Encode an image as a PNG file with its record, after enlarging it to the requested size. CPU-bound."""
        request, pixels = generated.request, generated.pixels
        model = self._find_loaded(request)
        assert model, request.profile
        height, width, _ = pixels.shape
        versions = {"sd35": own_version(), **model.versions}
        if (width, height) != (request.width, request.height):
            from PIL import __version__ as pillow_version

            # Pillow enlarges the image, so its version affects the pixels.
            versions["pillow"] = pillow_version
            pixels = enlarge(pixels, request.width, request.height)
        prompts = {"prompt": request.prompt}
        if request.guidance_scale > 1:
            prompts["negative_prompt"] = request.negative_prompt
        tokenizers = self.tokenizers[request.model]
        maker = Maker(
            revision=request.revision,
            backend=model.backend,
            precision=model.precision,
            versions=versions,
            drawn_width=width,
            drawn_height=height,
            cut_off=[field for field, text in prompts.items() if tokenizers.is_truncated(text)],
        )
        record = Record(request, maker)
        return EncodedImage(write_png(pixels, record.to_text()), record, pixels)

    def warm_up(self) -> None:
        """Generate a small image with each model and profile, because the first call of a runtime is slow.

        Raises GenerationFailed if an image has a numerical failure or another error.
        """
        for model in self.engine.models:
            self._warm_up(model)

    def swap(self, model: ModelInfo) -> None:
        """Generate a first image with a model of the engine, then use the model for new requests.

        Earlier requests keep their profile. Raises GenerationFailed if the first image fails, Overloaded or NotReady if
        the engine does not accept it.
        """
        self._warm_up(model)
        self.models = {**self.models, model.name: model}

    def _warm_up(self, model: ModelInfo) -> None:
        """Generate an image of the smallest size in one step.

        Raises GenerationFailed if the image fails, or if the engine generated it in another profile after a failure.
        """
        side_px = model.card.side_px[0]
        params = GenerationParams(" ", width=side_px, height=side_px, steps=1, seed=0)
        generated = self.submit(resolve(params, {model.name: model})).future.result()
        if generated.request.profile != model.profile:  # the engine retried it in another profile
            raise GenerationFailed(
                f"the first image of {model.name} in {model.profile} had a numerical failure; set a wider `precision`"
            )

    def _find_loaded(self, request: Request) -> ModelInfo | None:
        """Return the engine's model with the name and profile of a request, or None."""
        key = request.model, request.profile
        return next((model for model in self.engine.models if model.key == key), None)

    def _generated_size(self, request: Request, model: ModelInfo) -> tuple[int, int]:
        """Return the size (width, height) to generate at: as requested, or smaller if the image is then enlarged."""
        return generated_size(request.width, request.height, model.card, self.max_pixels)

    def _check_request(self, request: Request, model: ModelInfo) -> None:
        """Raise InvalidRequest if the model cannot generate the image, or if the image exceeds `max_pixels`."""
        model.check(request, *self._generated_size(request, model))
