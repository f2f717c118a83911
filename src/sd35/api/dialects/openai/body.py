"""The body of OpenAI's `POST /v1/images/generations`.

Source: OpenAI's API reference.
"""

from typing import Literal

from pydantic import BaseModel, Field

from sd35.api import fields
from sd35.errors import InvalidRequest
from sd35.generation.params import GenerationParams, series
from sd35.images.formats import Format
from sd35.request import STEPS
from sd35.service.service import Service

_MAX_IMAGES, _MAX_PARTIAL_IMAGES = 10, 3
_MAX_QUALITY = 100
_NO_EFFECT = "text. It has no effect."
_PNG_QUALITY = "100 for png files, which are lossless; for other values, set output_format to jpeg, webp or avif"
_URL_QUALITY = "no value, because the response has URLs; set response_format to b64_json to use it"
_LEVELS = {"low": "low", "high": "high", "hd": "high"}  # of `quality`; the level of other values is "medium"


class GenerationBody(BaseModel, extra="forbid", allow_inf_nan=False):
    """The body of a call. Each description begins with the allowed values, which errors repeat."""

    prompt: fields.Prompt = Field(description=f"{fields.PROMPT_ALLOWED}: what the images show.")
    model: str | None = Field(
        None,
        description="a name from /v1/models, or an alias of the setting `model_aliases`: the model to use."
        " Omitted or null: the first of /v1/models.",
    )
    n: int | None = Field(
        None,
        ge=1,
        le=_MAX_IMAGES,
        description=f"an integer from 1 to {_MAX_IMAGES}: the number of images. Their seeds are consecutive."
        " Omitted or null: 1.",
    )
    size: str | None = Field(
        None,
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="auto, or WIDTHxHEIGHT in the model's range: the size in pixels. `auto` is the model's default."
        " Omitted or null: auto.",
    )
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        None,
        description="auto, low, medium, high, standard or hd: the number of steps. `low` is half the model's default,"
        " and `high` and `hd` are one and a half times the default. The others are the default. Omitted or null: auto.",
    )
    style: Literal["vivid", "natural"] | None = Field(
        None, description="vivid or natural: it has no effect, and is refused if the setting `strict_dialects` is on."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="b64_json or url: whether the response contains files or signed links."
        " Omitted or null: url for models named dall-e..., else b64_json.",
    )
    output_format: fields.OutputFormat | None = Field(
        None, description="png, jpeg, webp or avif: the format of the files. Omitted or null: png."
    )
    output_compression: int | None = Field(
        None,
        ge=0,
        le=_MAX_QUALITY,
        description="an integer from 0 to 100: the quality of jpeg, webp and avif files. png allows 100 only."
        " Omitted or null: the default quality of the format.",
    )
    background: Literal["auto", "opaque"] | None = Field(
        None, description="auto or opaque: it has no effect, because all images are opaque."
    )
    moderation: Literal["auto", "low"] | None = Field(
        None, description="auto or low: it has no effect, because the content filter applies to all images."
    )
    user: str | None = Field(None, description=_NO_EFFECT)
    safety_identifier: str | None = Field(None, description=_NO_EFFECT)
    stream: bool | None = Field(
        None, description="true or false: whether to stream events. `n` must then be 1. Omitted or null: false."
    )
    partial_images: int | None = Field(
        None,
        ge=0,
        le=_MAX_PARTIAL_IMAGES,
        description=f"an integer from 0 to {_MAX_PARTIAL_IMAGES}: the number of previews in a stream."
        " Omitted or null: 0.",
    )
    negative_prompt: fields.NegativePrompt | None = Field(
        None,
        description=f"{fields.NEGATIVE_PROMPT_ALLOWED}: what the images should not show. Omitted or null: empty.",
    )
    seed: fields.Seed | None = Field(
        None, description=f"{fields.SEED_ALLOWED}: the seed of the first image. Omitted or null: a random seed."
    )
    num_inference_steps: fields.Steps | None = Field(
        None,
        description=f"{fields.STEPS_ALLOWED}: the number of denoising steps. Omitted or null: by `quality`.",
    )
    guidance_scale: fields.GuidanceScale | None = Field(
        None,
        description=f"{fields.GUIDANCE_SCALE_ALLOWED}: how closely the images follow the prompt."
        " Omitted or null: the model's default.",
    )

    @property
    def format(self) -> Format:
        """The format of the files."""
        return Format(self.output_format or "png")

    @property
    def compression(self) -> int | None:
        """The quality of the files, from 1 to 100. None for the format's default, and for PNG files."""
        if self.output_compression is None or self.format is Format.PNG:
            return None
        return max(1, self.output_compression)  # OpenAI's API allows 0, and the encoders do not

    @property
    def level(self) -> str:
        """The quality as responses name it: `low`, `medium` or `high`."""
        return _LEVELS.get(self.quality or "", "medium")

    @property
    def has_urls(self) -> bool:
        """Whether the response contains URLs instead of files."""
        default = "url" if (self.model or "").startswith("dall-e") else "b64_json"
        return not self.stream and (self.response_format or default) == "url"

    def check(self, idempotency_key: str | None, *, is_strict: bool) -> None:
        """Check the fields that depend on each other, on the idempotency key, or on `strict_dialects` (`is_strict`).

        Raises InvalidRequest for the first field with a value that is not allowed.
        """
        if is_strict and self.style is not None:
            allowed = "no value, because the setting strict_dialects is on; describe the style in the prompt"
            raise InvalidRequest("style", self.style, allowed)
        if self.num_inference_steps is not None and self.level != "medium":
            raise InvalidRequest("quality", self.quality, "auto, medium or standard if num_inference_steps is set")
        if self.format is Format.PNG and self.output_compression not in {None, _MAX_QUALITY}:
            raise InvalidRequest("output_compression", self.output_compression, _PNG_QUALITY)
        if self.has_urls and self.compression is not None:
            raise InvalidRequest("output_compression", self.output_compression, _URL_QUALITY)
        if not self.stream and self.partial_images:
            raise InvalidRequest("partial_images", self.partial_images, "0 if stream is not true")
        if self.stream and (self.n or 1) > 1:
            raise InvalidRequest("n", self.n, "1 if stream is true")
        if self.stream and self.response_format == "url":
            raise InvalidRequest("response_format", "url", "b64_json if stream is true")
        if self.stream and idempotency_key is not None:
            raise InvalidRequest("idempotency-key", idempotency_key, "no key if stream is true")

    def to_params(self, service: Service) -> list[GenerationParams]:
        """Return the generation parameters of each image. Raises UnknownModel if the model is not served."""
        model = service.model(self.model)
        default_steps = model.card.steps
        steps_by_level = {"low": max(1, default_steps // 2), "high": min(default_steps * 3 // 2, STEPS[1])}
        # The level medium has no steps of its own: None is the model's default.
        steps = steps_by_level.get(self.level, self.num_inference_steps)
        width, _, height = (self.size or "auto").partition("x")  # "auto" has no "x", so the height is empty
        params = GenerationParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=int(width) if height else None,
            height=int(height) if height else None,
            steps=steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            model=model.name,
        )
        return series(params, self.n or 1)
