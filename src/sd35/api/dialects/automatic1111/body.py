"""The bodies of AUTOMATIC1111's routes. The description of each field begins with the allowed values.

The bodies have all fields of AUTOMATIC1111. Some have the same effect as in AUTOMATIC1111. Fields that cannot change an
image of this server are accepted at any value (`_ignored`). Fields that would change an image are accepted only at
values that turn them off (`_only`).
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

# Annotated twice: the inner type has the limits, and the outer one allows null.
_Side: TypeAlias = Annotated[fields.Side | None, LENIENT_INTEGER]
_Count: TypeAlias = Annotated[Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None, LENIENT_INTEGER]
_Steps: TypeAlias = Annotated[fields.Steps | None, LENIENT_INTEGER]
_Scale: TypeAlias = Annotated[fields.GuidanceScale | None, LENIENT_NUMBER]
_Resize: TypeAlias = Annotated[Annotated[int, Field(le=0)] | None, LENIENT_INTEGER]
# Some clients send an empty list for an empty object.
_Settings: TypeAlias = Annotated[
    dict[str, Any] | None,
    BeforeValidator(lambda value: {} if value == [] else value),
    WithJsonSchema({"type": ["object", "array", "null"]}),
]

_MODEL_DEFAULT = "Omitted or null: the model's default."
_COUNT = (
    f"an integer from 1 to {MAX_IMAGES}: the number of images is `batch_size` x `n_iter`, at most {MAX_IMAGES}. Their"
    " seeds are consecutive. Omitted or null: 1."
)


def _only(allowed: str, reason: str) -> Any:  # noqa: ANN401  as pydantic's Field
    """Describe a field that would change the image. It is accepted only at the values `allowed`, which turn it off."""
    return Field(None, description=f"{allowed}: {reason}.")


def _ignored(kind: str, reason: str) -> Any:  # noqa: ANN401  as pydantic's Field
    """Describe a field that has no effect on this server. It is accepted at any value of its kind, such as a number."""
    return Field(None, description=f"{kind}. It has no effect: {reason}.")


_NO_HR = "there is no second pass"
_NO_CHURN = "s_churn is 0"
_NOT_SAVED = "the server stores every image, see /v1/artifacts"
_FROM_TEXT = "images are generated from text only"


class NewOptions(BaseModel, extra="allow"):
    """Any settings of AUTOMATIC1111. Values that would change an image are refused."""

    sd_model_checkpoint: str | None = Field(
        None,
        description="the title, name or alias of a checkpoint in /sdapi/v1/sd-models: the checkpoint for later calls of"
        " this client. Omitted, null or empty: unchanged.",
    )


class Txt2Img(BaseModel, extra="ignore", allow_inf_nan=False):
    """The body of `POST /sdapi/v1/txt2img`.

    Prompts are plain text: parentheses, `<lora:...>` and the like have no special meaning. Fields that AUTOMATIC1111
    does not have are ignored, as in AUTOMATIC1111, and the header `X-Sd35-Ignored` names them.
    """

    prompt: fields.Prompt = Field(description=f"{fields.PROMPT_ALLOWED}: what the images show.")
    negative_prompt: fields.NegativePrompt | None = Field(
        None,
        description=f"{fields.NEGATIVE_PROMPT_ALLOWED}: what the images should not show. Omitted or null: empty.",
    )
    width: _Side = Field(None, description=f"{fields.SIDE_ALLOWED}: the width in pixels. {_MODEL_DEFAULT}")
    height: _Side = Field(None, description=f"{fields.SIDE_ALLOWED}: the height in pixels. {_MODEL_DEFAULT}")
    steps: _Steps = Field(None, description=f"{fields.STEPS_ALLOWED}: the number of denoising steps. {_MODEL_DEFAULT}")
    cfg_scale: _Scale = Field(
        None,
        description=f"{fields.GUIDANCE_SCALE_ALLOWED}: how closely the images follow the prompt. {_MODEL_DEFAULT}",
    )
    seed: Integer = Field(
        None,
        description=f"{ANY_INTEGER}: the seed of the first image, used modulo 2^32."
        " Omitted, null, empty or -1: a random seed.",
    )
    batch_size: _Count = Field(None, description=_COUNT)
    n_iter: _Count = Field(None, description=_COUNT)
    sampler_name: Text = Field(
        None,
        description=f"{SAMPLER}: the sampler. Other samplers are replaced by {SAMPLER}, or refused if the setting"
        " `strict_dialects` is on.",
    )
    sampler_index: Text = Field(None, description=f"{SAMPLER}: the sampler, if `sampler_name` is not set.")
    scheduler: Text = Field(
        None,
        description=f"{SCHEDULE}: the noise schedule. Other schedules are replaced by the checkpoint's own, or refused"
        " if the setting `strict_dialects` is on.",
    )
    override_settings: _Settings = Field(
        None, description="an object of AUTOMATIC1111's settings: as in POST /sdapi/v1/options, but for this call only."
    )
    send_images: Flag = Field(
        None, description="true or false: whether the response contains the images. Omitted or null: true."
    )
    force_task_id: Annotated[str, Field(pattern="^[ -~]{0,200}$")] | None = Field(
        None, description="at most 200 ASCII characters: the name of the call in /sdapi/v1/progress."
    )

    enable_hr: Off = _only("false", _NO_HR)
    subseed_strength: Zero = _only("0", "variations of a seed are not supported")
    seed_resize_from_h: _Resize = _only("-1 or 0", "the noise has the image's own size")
    seed_resize_from_w: _Resize = _only("-1 or 0", "the noise has the image's own size")
    restore_faces: Off = _only("false", "restoring faces is not supported")
    tiling: Off = _only("false", "tileable images are not supported")
    styles: NoStyles = _only('an empty list, or a list of "None"', "there are no styles")
    script_name: Nothing = _only('empty or "None"', "there are no scripts")
    alwayson_scripts: NoScripts = _only("an empty object, or scripts that are turned off", "there are no scripts")
    refiner_checkpoint: Nothing = _only('empty or "None"', "there is no refiner")
    s_churn: Zero = _only("0", "the sampler adds no noise")
    s_min_uncond: Zero = _only("0", "guidance cannot be skipped in some steps")
    infotext: Nothing = _only("empty", "each setting has its own field")
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
    subseed: Integer = _ignored(ANY_INTEGER, "variations of a seed are not supported")
    refiner_switch_at: Number = _ignored("a number", "there is no refiner")
    eta: Number = _ignored("a number", "the sampler has no eta")
    s_tmin: Number = _ignored("a number", _NO_CHURN)
    s_tmax: Number = _ignored("a number", _NO_CHURN)
    s_noise: Number = _ignored("a number", _NO_CHURN)
    clip_skip: Number = _ignored("a number", "a checkpoint uses the layers that it was trained with")
    script_args: Any = Field(None, exclude=True, description="any list. It has no effect.")
    comments: Any = Field(None, exclude=True, description="any object. It has no effect.")
    disable_extra_networks: Flag = _ignored("true or false", "there are no extra networks")
    override_settings_restore_afterwards: Flag = _ignored("true or false", "the settings apply to one call only")
    save_images: Flag = _ignored("true or false", _NOT_SAVED)
    do_not_save_samples: Flag = _ignored("true or false", _NOT_SAVED)
    do_not_save_grid: Flag = _ignored("true or false", "there are no grids")
    url: Any = Field(None, exclude=True, description="any value. It has no effect: it is a setting of SillyTavern.")
    auth: Any = Field(None, exclude=True, description="any value. It has no effect: it is a setting of SillyTavern.")

    def check(self, *, is_strict: bool) -> None:
        """Raise InvalidRequest if the call has more than `MAX_IMAGES` images, or an unknown sampler or schedule.

        Unknown samplers and schedules are refused only if `is_strict`, the setting `strict_dialects`.
        """
        size, rounds = self.batch_size or 1, self.n_iter or 1
        if size * rounds > MAX_IMAGES:
            reason = f"because batch_size is {size} and a call has at most {MAX_IMAGES} images"
            raise InvalidRequest("n_iter", rounds, f"1 to {MAX_IMAGES // size}, {reason}")
        if not is_strict:
            return
        sampler, scheduler = self.sampler_name or self.sampler_index or SAMPLER, self.scheduler or SCHEDULE
        if sampler.lower() not in _SAMPLERS:
            raise InvalidRequest("sampler_name" if self.sampler_name else "sampler_index", sampler, SAMPLER)
        if scheduler.lower() not in _SCHEDULES:
            raise InvalidRequest("scheduler", scheduler, SCHEDULE)

    def to_params(self, model: str | None) -> list[GenerationParams]:
        """Return the generation parameters of each image. `model` is the model's name, or None for the default."""
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
    """The body if the setting `strict_dialects` is on. Fields that AUTOMATIC1111 does not have are refused."""


class ImageBody(BaseModel, extra="forbid"):
    """The body of `POST /sdapi/v1/png-info`."""

    image: str = Field(
        description="an image file in base64: the file to read. `data:image/png;base64,` may come before it."
        " URLs of files are not accepted."
    )
