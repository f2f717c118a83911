"""The Python library: generate images in this process, without a server, a database or jobs."""

import logging
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Self, TypeAlias, TypedDict, Unpack

import PIL.Image
from jaxtyping import UInt8
from pydantic import TypeAdapter, ValidationError

from sd35.engine.base import Handle, Progress
from sd35.errors import InvalidRequest, InvalidSetting
from sd35.generation.params import GenerationParams, series
from sd35.images.encode import encode
from sd35.images.formats import Format
from sd35.images.record import Record
from sd35.request import Request
from sd35.settings import Settings, load_settings
from sd35.startup import open_checkpoints, open_model_pool
from sd35.telemetry.logs import log_by_logging
from sd35.tensors import Array

OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with `(step, steps)`: the number of finished steps, and the total number of steps."""

_FORMAT_BY_SUFFIX = {f".{file_format}": file_format for file_format in Format} | {".jpg": Format.JPEG}
_PARAMS = TypeAdapter(GenerationParams)
# These limits are for a server with many clients. Here, the caller only waits for its own images.
_NO_ADMISSION_LIMITS: dict[str, object] = {"max_in_flight": 10**9, "max_wait_s": float("inf")}


class ImageParams(TypedDict, total=False):
    """The optional parameters of an image. Defaults come from the model's card, the file `sd35.json` of its checkpoint.

    Attributes:
        negative_prompt: Text that describes what to avoid in the image, with at most 10,000 characters. It has no
            effect at a `guidance_scale` of 1 or less. Default: empty.
        width: Pixels, a multiple of 16 in the model's range.
        height: Pixels, a multiple of 16 in the model's range.
        steps: Denoising steps, 1 to 150.
        guidance_scale: Strength of the prompt's influence, 0 to 30. 1 or less turns guidance off and halves the work.
        seed: 0 to 4294967295. The same seed and parameters give the same image. Default: random.
        model: The name of one of the generator's checkpoints. Default: the first.
        skip_layer_scale: Scale of skip-layer guidance, 0 (off) to 10, if the model's card supports it.
    """

    negative_prompt: str
    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    seed: int | None
    model: str | None
    skip_layer_scale: float | None


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A generated image.

    Attributes:
        png: A PNG file. Its text chunks contain `record`, so `sd35 replay` can generate the image again.
        pixels: RGB values from 0 to 255, of shape [height, width, 3].
        record: How the image was generated: its request (`record.request`), the software versions, the size before
            enlarging (`record.maker.drawn_width`), and which of "prompt" and "negative_prompt" were truncated because
            they are too long for the text encoders (`record.maker.cut_off`).
    """

    png: bytes
    pixels: UInt8[Array, "height width 3"]
    record: Record

    def __repr__(self) -> str:
        return f"<sd35.Image {self.width}x{self.height}, seed {self.seed}, model {self.request.model}>"

    @property
    def request(self) -> Request:
        """Every parameter of the image, including defaults."""
        return self.record.request

    @property
    def digest(self) -> str:
        """SHA-256 of the request: 64 hexadecimal digits that identify the image."""
        return self.request.digest

    @property
    def seed(self) -> int:
        """The seed: the given one, or a random one."""
        return self.request.seed

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.request.width

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.request.height

    def save(self, path: str | PathLike[str], *, quality: int | None = None, metadata: bool = True) -> None:
        """Write the image to a file. An existing file is replaced.

        Args:
            path: The suffix sets the format: `.png` (lossless), `.jpeg`, `.jpg`, `.webp` or `.avif`.
            quality: 1 to 100, for all formats except PNG. None uses the default of the format.
            metadata: Whether the file contains the record.

        Raises:
            InvalidRequest: The suffix is unknown, or `quality` is out of range or given for a PNG file.
            OSError: The file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in _FORMAT_BY_SUFFIX:
            raise InvalidRequest("path", str(path), f"a file name that ends in {', '.join(_FORMAT_BY_SUFFIX)}")
        Path(path).write_bytes(encode(self.png, _FORMAT_BY_SUFFIX[suffix], has_metadata=metadata, quality=quality))

    def to_pil(self) -> PIL.Image.Image:
        """Return the image as a Pillow image in mode RGB, without the record."""
        return PIL.Image.fromarray(self.pixels)

    def _repr_png_(self) -> bytes:
        """Return the PNG file. Jupyter calls this method to show the image in a notebook."""
        return self.png


class Generator:
    """Generates images from text with one or more checkpoints, which stay loaded until `close`.

    Use it as a context manager, or call `close`. All methods are thread-safe, and images that several threads request
    at the same time share batches.

        with Generator("sd35-mini") as generator:
            image = generator.generate("a cat on a blue background", seed=7)
            image.save("cat.png")
    """

    def __init__(
        self, checkpoint: str | PathLike[str] | Iterable[str | PathLike[str]] = "sd35-mini", **settings: object
    ) -> None:
        """Load one or more checkpoints. This takes seconds to minutes.

        Args:
            checkpoint: A name that `sd35 models` lists, a directory, a file, or "auto"; or several of these. The first
                checkpoint is the default of `generate`, and the parameter `model` selects another by its name. A named
                checkpoint must be on disk: `sd35 pull` downloads it. Only "auto" may download a checkpoint here, if a
                token for the Hugging Face hub is set.
            **settings: Settings by their names in docs/reference/settings.md, such as `backend="diffusers"`,
                `precision="fp8"`, `device="cuda"` or `max_pixels=1024 * 1024`. Settings that are not given come from
                the environment (`SD35_BACKEND`) and from the file that `SD35_CONFIG` names. Settings of the HTTP
                service, for example `content_filter`, have no effect. The number of waiting images is limited only if
                `max_in_flight` or `max_wait_s` is given here.

        Raises:
            InvalidSetting: A setting is unknown or has a value that is not allowed.
            CheckpointError: A checkpoint is missing or unusable, or must be compiled first (NotCompiled).
            BackendUnavailable: The backend cannot run on this machine.
            DoesNotFit: There is not enough memory.
            GenerationFailed: A checkpoint failed to generate its first image, which is a test.
        """
        known = Settings.model_fields.keys() - {"checkpoints"}  # set by the parameter `checkpoint`
        if unknown := sorted(settings.keys() - known):
            raise InvalidSetting(f"unknown settings: got {str(unknown)[1:-1]}; allowed: {', '.join(sorted(known))}")
        log_by_logging()  # structlog would print to stdout, which belongs to the caller's program
        checkpoints = [checkpoint] if isinstance(checkpoint, str | PathLike) else checkpoint
        given = {**_NO_ADMISSION_LIMITS, **settings, "checkpoints": [str(name) for name in checkpoints]}
        loaded = load_settings(given, argument_name=str)  # errors name `max_pixels`, not the flag `--max-pixels`
        stack = ExitStack()
        self._pool = stack.enter_context(open_model_pool(loaded, open_checkpoints(loaded)))
        self._close = weakref.finalize(self, stack.close)  # also if the generator is deleted without `close`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel unfinished images and free the memory of the models. Further calls do nothing."""
        self._close()

    def generate(self, prompt: str, *, on_progress: OnProgress | None = None, **params: Unpack[ImageParams]) -> Image:
        """Generate an image.

        Args:
            prompt: Text that describes the image, with 1 to 10,000 characters.
            on_progress: Called with `(step, steps)` after each step. It runs on a thread of the engine, so it should
                return quickly. If it raises an exception, `logging` logs it and the image continues.
            **params: `negative_prompt`, `width`, `height`, `steps`, `guidance_scale`, `seed`, `model` and
                `skip_layer_scale`: see `ImageParams`.

        Raises:
            InvalidRequest: A parameter has a value that is not allowed.
            UnknownModel: `model` is not one of the generator's checkpoints.
            GenerationFailed: The backend failed on this image.
            Overloaded: Too many images are waiting, if `max_in_flight` or `max_wait_s` was given.
            RuntimeError: The generator is closed.
        """
        return self.generate_many([prompt], on_progress=on_progress, **params)[0]

    def generate_many(
        self,
        prompts: str | Iterable[str],
        *,
        count: int = 1,
        on_progress: OnProgress | None = None,
        **params: Unpack[ImageParams],
    ) -> list[Image]:
        """Generate `count` images of each prompt, together in shared batches.

        If an image fails, or on Ctrl-C, the other images are cancelled.

        Args:
            prompts: One prompt or several.
            count: Number of images of each prompt. Their seeds are `seed`, `seed + 1`, and so on; 4294967295 is
                followed by 0.
            on_progress: As for `generate`. The numbers are sums over all images.
            **params: As for `generate`. They apply to all images.

        Returns:
            The images in the order of the prompts, and of the seeds for each prompt.

        Raises:
            InvalidRequest: A parameter has a value that is not allowed. No image is started.
            Exception: Any other error that `generate` raises.
        """
        if count < 1:
            raise InvalidRequest("count", count, "1 or more")
        self._check_open()
        texts = [prompts] if isinstance(prompts, str) else prompts
        requests = [request for text in texts for request in self._resolve(_validated(text, params), count)]
        report = _TotalProgress(requests, on_progress) if on_progress else None
        handles: list[Handle] = []
        try:
            for index, request in enumerate(requests):
                handles.append(self._pool.submit(request, partial(report, index) if report else None))
            return [self._wait_for_image(handle) for handle in handles]
        except BaseException as error:
            for handle in handles:
                self._pool.engine.cancel(handle)
            if not isinstance(error, KeyboardInterrupt):
                self._check_open()  # if another thread has closed the generator, that caused the error
            raise

    def _check_open(self) -> None:
        """Raise RuntimeError if the generator is closed."""
        if not self._close.alive:
            raise RuntimeError("the generator is closed; create a new one")

    def _resolve(self, params: GenerationParams, count: int) -> list[Request]:
        """Return `count` requests with consecutive seeds, from the given seed or a random one.

        Raises InvalidRequest for a value that is not allowed, UnknownModel if the model is not loaded.
        """
        first = self._pool.resolve(params)  # checks the seed, because `series` would wrap a seed above the limit
        return [self._pool.resolve(seeded) for seeded in series(replace(params, seed=first.seed), count)]

    def _wait_for_image(self, handle: Handle) -> Image:
        encoded = self._pool.encode(handle.future.result())
        return Image(encoded.png, encoded.pixels, encoded.record)


class _TotalProgress:
    """Calls a listener with the sums of the finished steps and of all steps of several images."""

    def __init__(self, requests: list[Request], listener: OnProgress) -> None:
        self._done = [0] * len(requests)
        self._steps = sum(request.steps for request in requests)
        self._listener = listener

    def __call__(self, index: int, progress: Progress) -> None:
        """Record the progress of the request at `index`, and call the listener with the sums.

        An exception of the listener is only logged.
        """
        self._done[index] = progress.step
        try:
            self._listener(sum(self._done), self._steps)
        except Exception:
            logging.getLogger(__name__).exception("on_progress raised an exception; the image continues")


def _validated(prompt: str, params: ImageParams) -> GenerationParams:
    """Return the parameters with checked types, and NumPy's numbers as Python's.

    Raises InvalidRequest for the first parameter of a wrong type.
    """
    try:
        return _PARAMS.validate_python(asdict(GenerationParams(prompt, **params)))
    except ValidationError as error:
        first = error.errors()[0]
        # Pydantic's messages are such as "Input should be a valid integer, got a number with a fractional part".
        allowed = first["msg"].removeprefix("Input should be ").partition(", ")[0]
        raise InvalidRequest(str(first["loc"][0]), first["input"], allowed) from error
