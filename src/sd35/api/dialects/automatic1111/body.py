"""The bodies of AUTOMATIC1111's routes. The description of each field begins with the allowed values.

All of AUTOMATIC1111's own fields are here: honoured, or accepted if they change nothing, or at the values at which they
change nothing.
"""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from sd35.api import fields
from sd35.api.dialects.automatic1111.fields import (
    ANY_INTEGER,
    LENIENT_INTEGER,
    LENIENT_NUMBER,
    Flag,
    Integer,
    NoScripts,
    NoStyles,
    Nothing,
    Number,
    Off,
    Text,
    Zero,
)
from sd35.errors import InvalidRequest
from sd35.generation.params import GenerationParams, series
from sd35.images.infotext import SAMPLER, SCHEDULE
from sd35.request import SEED

MAX_IMAGES = 16
_SAMPLERS, _SCHEDULES = {"euler", "k_euler"}, {"automatic"}

# Annotated twice: the limits hold for the inner type, and the outer one allows null.
_Side: TypeAlias = Annotated[fields.Side | None, LENIENT_INTEGER]
_Count: TypeAlias = Annotated[Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None, LENIENT_INTEGER]
_Steps: TypeAlias = Annotated[fields.Steps | None, LENIENT_INTEGER]
_Scale: TypeAlias = Annotated[fields.GuidanceScale | None, LENIENT_NUMBER]
_Resize: TypeAlias = Annotated[Annotated[int, Field(le=0)] | None, LENIENT_INTEGER]
_Settings: TypeAlias = Annotated[
    dict[str, Any] | None,
    BeforeValidator(lambda value: {} if value == [] else value),
    WithJsonSchema({"type": ["object", "array", "null"]}),
]

_SIDE = f"{fields.SIDE_ALLOWED}. Omitted or null: the model's default."
_COUNT = f"an integer from 1 to {MAX_IMAGES}: batch_size x n_iter is the number of images, whose seeds are consecutive."


def _only(allowed: str, reason: str) -> Any:  # noqa: ANN401  as pydantic's Field
    return Field(None, description=f"{allowed}: {reason}.")


def _ignored(kind: str, reason: str) -> Any:  # noqa: ANN401  as pydantic's Field
    return Field(None, description=f"{kind}. It is accepted, and changes nothing: {reason}.")


_NO_HR, _NO_CHURN, _NOT_SAVED, _FROM_TEXT = (
    "there is no second pass",
    "Euler's s_churn is 0",
    "every image is stored, see /v1/artifacts",
    "images are generated from text only",
)


class NewOptions(BaseModel, extra="allow"):
    """Settings that a client sets: any of AUTOMATIC1111's. Those that would change an image are refused."""

    sd_model_checkpoint: str | None = Field(
        None,
        description="a title, name or alias of a checkpoint of /sdapi/v1/sd-models. It is set for the calling client.",
    )


class Txt2Img(BaseModel, extra="ignore", allow_inf_nan=False):
    """The body of a call for images.

    Prompts are plain text: parentheses, `<lora:...>` and the like have no special meaning. Fields that AUTOMATIC1111
    does not have are ignored, as it ignores them, and named in the header `X-Sd35-Ignored`.
    """

    prompt: fields.Prompt = Field(description=f"{fields.PROMPT_ALLOWED}.")
    negative_prompt: fields.NegativePrompt | None = Field(None, description=f"{fields.NEGATIVE_PROMPT_ALLOWED}.")
    width: _Side = Field(None, description=_SIDE)
    height: _Side = Field(None, description=_SIDE)
    steps: _Steps = Field(None, description=f"{fields.STEPS_ALLOWED}. Omitted or null: the model's default.")
    cfg_scale: _Scale = Field(None, description=f"{fields.GUIDANCE_SCALE_ALLOWED}. Omitted: the model's default.")
    seed: Integer = Field(
        None, description=f"{ANY_INTEGER}, used modulo 2^32. -1, null, empty or omitted: a random seed."
    )
    batch_size: _Count = Field(None, description=_COUNT)
    n_iter: _Count = Field(None, description=_COUNT)
    sampler_name: Text = Field(
        None, description=f"{SAMPLER}. Used in place of other samplers too, unless the service is strict."
    )
    sampler_index: Text = Field(None, description=f"{SAMPLER}. Used if sampler_name is not set.")
    scheduler: Text = Field(
        None, description=f"{SCHEDULE}. Used in place of other schedules too, unless the service is strict."
    )
    override_settings: _Settings = Field(
        None, description="an object of AUTOMATIC1111's settings, as in POST /sdapi/v1/options, for this call only."
    )
    send_images: Flag = Field(None, description="true or false: whether the response holds the images.")
    force_task_id: Annotated[str, Field(pattern="^[ -~]{0,200}$")] | None = Field(
        None, description="at most 200 characters of ASCII: the call's name in /sdapi/v1/progress."
    )

    enable_hr: Off = _only("false", _NO_HR)
    subseed_strength: Zero = _only("0", "there are no variations of a seed")
    seed_resize_from_h: _Resize = _only("-1 or 0", "seeds are of the image's own size")
    seed_resize_from_w: _Resize = _only("-1 or 0", "seeds are of the image's own size")
    restore_faces: Off = _only("false", "faces are not restored")
    tiling: Off = _only("false", "images do not tile")
    styles: NoStyles = _only("an empty list, or None in it", "there are no styles")
    script_name: Nothing = _only("empty or None", "there are no scripts")
    alwayson_scripts: NoScripts = _only("{}, or scripts that are turned off", "there are no scripts")
    refiner_checkpoint: Nothing = _only("empty or None", "there is no refiner")
    s_churn: Zero = _only("0", "Euler's steps add no noise")
    s_min_uncond: Zero = _only("0", "no step goes without guidance")
    infotext: Nothing = _only("empty", "settings are fields")
    init_images: Nothing = _only("an empty list", _FROM_TEXT)
    firstpass_image: Nothing = _only("empty", _FROM_TEXT)
    mask: Nothing = _only("empty", _FROM_TEXT)
    controlnet_units: Nothing = _only("an empty list", "there is no ControlNet")

    denoising_strength: Number = _ignored("a number", _NO_HR)
    firstphase_width: Number = _ignored("a number", _NO_HR)
    firstphase_height: Number = _ignored("a number", _NO_HR)
    hr_scale: Number = _ignored("a number", _NO_HR)
    hr_upscaler: Text = _ignored("text", _NO_HR)
    hr_second_pass_steps: Number = _ignored("a number", _NO_HR)
    hr_resize_x: Number = _ignored("a number", _NO_HR)
    hr_resize_y: Number = _ignored("a number", _NO_HR)
    hr_checkpoint_name: Text = _ignored("text", _NO_HR)
    hr_sampler_name: Text = _ignored("text", _NO_HR)
    hr_scheduler: Text = _ignored("text", _NO_HR)
    hr_prompt: Text = _ignored("text", _NO_HR)
    hr_negative_prompt: Text = _ignored("text", _NO_HR)
    subseed: Integer = _ignored(ANY_INTEGER, "there are no variations of a seed")
    refiner_switch_at: Number = _ignored("a number", "there is no refiner")
    eta: Number = _ignored("a number", "Euler has none")
    s_tmin: Number = _ignored("a number", _NO_CHURN)
    s_tmax: Number = _ignored("a number", _NO_CHURN)
    s_noise: Number = _ignored("a number", _NO_CHURN)
    clip_skip: Number = _ignored("a number", "a checkpoint uses the layers it was trained with")
    script_args: Any = Field(None, exclude=True, description="any list. It is accepted, and changes nothing.")
    comments: Any = Field(None, exclude=True, description="any object. It is accepted, and changes nothing.")
    disable_extra_networks: Flag = _ignored("true or false", "there are none")
    override_settings_restore_afterwards: Flag = _ignored("true or false", "they are restored")
    save_images: Flag = _ignored("true or false", _NOT_SAVED)
    do_not_save_samples: Flag = _ignored("true or false", _NOT_SAVED)
    do_not_save_grid: Flag = _ignored("true or false", "no grids are made")
    url: Any = Field(None, exclude=True, description="any value. SillyTavern sends its own setting, which is not used.")
    auth: Any = Field(
        None, exclude=True, description="any value. SillyTavern sends its own setting, which is not used."
    )

    def check(self, *, is_strict: bool) -> None:
        """Check fields against each other and, if the service is strict, the sampler. Raises InvalidRequest."""
        size, rounds = self.batch_size or 1, self.n_iter or 1
        if size * rounds > MAX_IMAGES:
            raise InvalidRequest("n_iter", rounds, f"1 to {MAX_IMAGES // size} with a batch_size of {size}")
        if not is_strict:
            return
        sampler, scheduler = self.sampler_name or self.sampler_index or SAMPLER, self.scheduler or SCHEDULE
        if sampler.lower() not in _SAMPLERS:
            raise InvalidRequest("sampler_name" if self.sampler_name else "sampler_index", sampler, SAMPLER)
        if scheduler.lower() not in _SCHEDULES:
            raise InvalidRequest("scheduler", scheduler, SCHEDULE)

    def to_params(self, model: str | None) -> list[GenerationParams]:
        """Return the generation parameters of each image."""
        params = GenerationParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance_scale=self.cfg_scale,
            seed=None if self.seed in {None, -1} else self.seed % (SEED[1] + 1),
            model=model,
        )
        return series(params, (self.batch_size or 1) * (self.n_iter or 1))


class StrictTxt2Img(Txt2Img, extra="forbid"):
    """The body for a strict service, which refuses fields that AUTOMATIC1111 does not have."""


class ImageBody(BaseModel, extra="forbid"):
    """The body of png-info."""

    image: str = Field(
        description="an image in base64, optionally after `data:image/png;base64,`. URLs are not accepted."
    )
