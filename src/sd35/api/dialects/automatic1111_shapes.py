"""What AUTOMATIC1111's API takes and gives, field by field. Of bodies, descriptions begin with what is allowed.

Its own fields are all here: honoured, or accepted where they change nothing, or at the values at which they do not.
"""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sd35.api.dialects.automatic1111_fields import (
    ANY_INTEGER,
    AS_INTEGER,
    AS_NUMBER,
    Flag,
    Integer,
    NoScripts,
    NoStyles,
    Nothing,
    Number,
    Off,
    Text,
    Zero,
    schema,
)
from sd35.images.infotext import SAMPLER, SCHEDULE
from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, SIZE_MULTIPLE_PX, STEPS

MAX_IMAGES = 16

_ASide: TypeAlias = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, multiple_of=SIZE_MULTIPLE_PX)]
_ACount: TypeAlias = Annotated[int, Field(ge=1, le=MAX_IMAGES)]
_AStep: TypeAlias = Annotated[int, Field(ge=STEPS[0], le=STEPS[1])]
_AScale: TypeAlias = Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])]
_Side: TypeAlias = Annotated[
    _ASide | None, AS_INTEGER, schema("integer", "string", minimum=SIZE_MULTIPLE_PX, multipleOf=SIZE_MULTIPLE_PX)
]
_Count: TypeAlias = Annotated[_ACount | None, AS_INTEGER, schema("integer", "string", minimum=1, maximum=MAX_IMAGES)]
_Steps: TypeAlias = Annotated[
    _AStep | None, AS_INTEGER, schema("integer", "string", minimum=STEPS[0], maximum=STEPS[1])
]
_Scale: TypeAlias = Annotated[
    _AScale | None, AS_NUMBER, schema("number", "string", minimum=GUIDANCE_SCALE[0], maximum=GUIDANCE_SCALE[1])
]
_Resize: TypeAlias = Annotated[Annotated[int, Field(le=0)] | None, AS_INTEGER, schema("integer", "string", maximum=0)]
_Settings: TypeAlias = Annotated[
    dict[str, Any] | None, BeforeValidator(lambda value: {} if value == [] else value), schema("object", "array")
]

_SIDE = f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range. Left out or null: the model's default."
_COUNT = f"an integer from 1 to {MAX_IMAGES}: how many images; batch_size x n_iter are made, of following seeds."


def _only(allowed: str, why: str) -> Any:  # noqa: ANN401  as pydantic's Field
    return Field(None, description=f"{allowed}: {why}.")


def _idle(kind: str, why: str) -> Any:  # noqa: ANN401  as pydantic's Field
    return Field(None, description=f"{kind}. It is accepted, and changes nothing: {why}.")


_NO_HR, _NO_CHURN, _NOT_SAVED, _FROM_TEXT = (
    "there is no second pass",
    "Euler's s_churn is 0",
    "every image is kept, see /v1/artifacts",
    "images are made from text alone",
)


class Options(BaseModel):
    """Settings that clients read."""

    sd_model_checkpoint: str = Field(description="The title of the checkpoint that holds for the client.")
    sd_checkpoint_hash: str = Field(description="Its revision.")
    sd_vae: str = Field(default="Automatic", description="A checkpoint has its own.")
    CLIP_stop_at_last_layers: int = Field(default=1, description="A checkpoint reads the layers it was trained with.")
    samples_format: str = Field(default="png", description="Answers are PNG files.")
    samples_save: bool = Field(default=False, description="Every image is kept, see /v1/artifacts.")
    grid_save: bool = Field(default=False, description="No grids are made.")
    return_grid: bool = Field(default=False, description="No grids are made.")
    eta_noise_seed_delta: int = Field(default=0, description="Euler adds no noise.")


class NewOptions(BaseModel):
    """Settings that a client sets: any of AUTOMATIC1111's, of which those that would change an image are refused."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: str | None = Field(
        None, description="a title, name or alias of a checkpoint of /sdapi/v1/sd-models. It is set for one client."
    )


class Txt2Img(BaseModel):
    """What to make images of.

    Prompts are read as they are: parentheses, `<lora:...>` and the like have no meaning of their own. Fields that
    AUTOMATIC1111 does not have are ignored, as it does, and named in the header `X-Sd35-Ignored`.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1, max_length=PROMPT_CHARACTERS, description=f"text of 1 to {PROMPT_CHARACTERS} characters."
    )
    negative_prompt: str | None = Field(
        None, max_length=PROMPT_CHARACTERS, description=f"text of at most {PROMPT_CHARACTERS} characters."
    )
    width: _Side = Field(None, description=_SIDE)
    height: _Side = Field(None, description=_SIDE)
    steps: _Steps = Field(
        None, description=f"an integer from {STEPS[0]} to {STEPS[1]}. Left out or null: the model's default."
    )
    cfg_scale: _Scale = Field(
        None,
        description=f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}. Left out: the model's default.",
    )
    seed: Integer = Field(
        None,
        description=f"{ANY_INTEGER}, used modulo 2^32. -1, null, empty or left out: a random one.",
    )
    batch_size: _Count = Field(None, description=_COUNT)
    n_iter: _Count = Field(None, description=_COUNT)
    sampler_name: Text = Field(None, description=f"{SAMPLER}. Others are served by it, unless the service is strict.")
    sampler_index: Text = Field(None, description=f"{SAMPLER}. As sampler_name, where that is not given.")
    scheduler: Text = Field(None, description=f"{SCHEDULE}. Others are served by it, unless the service is strict.")
    override_settings: _Settings = Field(
        None, description="an object of AUTOMATIC1111's settings, as POST /sdapi/v1/options takes, for this call alone."
    )
    send_images: Flag = Field(None, description="true or false: whether the answer holds the images.")
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

    denoising_strength: Number = _idle("a number", _NO_HR)
    firstphase_width: Number = _idle("a number", _NO_HR)
    firstphase_height: Number = _idle("a number", _NO_HR)
    hr_scale: Number = _idle("a number", _NO_HR)
    hr_upscaler: Text = _idle("text", _NO_HR)
    hr_second_pass_steps: Number = _idle("a number", _NO_HR)
    hr_resize_x: Number = _idle("a number", _NO_HR)
    hr_resize_y: Number = _idle("a number", _NO_HR)
    hr_checkpoint_name: Text = _idle("text", _NO_HR)
    hr_sampler_name: Text = _idle("text", _NO_HR)
    hr_scheduler: Text = _idle("text", _NO_HR)
    hr_prompt: Text = _idle("text", _NO_HR)
    hr_negative_prompt: Text = _idle("text", _NO_HR)
    subseed: Integer = _idle(ANY_INTEGER, "there are no variations of a seed")
    refiner_switch_at: Number = _idle("a number", "there is no refiner")
    eta: Number = _idle("a number", "Euler has none")
    s_tmin: Number = _idle("a number", _NO_CHURN)
    s_tmax: Number = _idle("a number", _NO_CHURN)
    s_noise: Number = _idle("a number", _NO_CHURN)
    clip_skip: Number = _idle("a number", "a checkpoint reads the layers it was trained with")
    script_args: Any = Field(None, exclude=True, description="any list. It is accepted, and changes nothing.")
    comments: Any = Field(None, exclude=True, description="any object. It is accepted, and changes nothing.")
    disable_extra_networks: Flag = _idle("true or false", "there are none")
    override_settings_restore_afterwards: Flag = _idle("true or false", "they are restored")
    save_images: Flag = _idle("true or false", _NOT_SAVED)
    do_not_save_samples: Flag = _idle("true or false", _NOT_SAVED)
    do_not_save_grid: Flag = _idle("true or false", "no grids are made")
    url: Any = Field(None, exclude=True, description="any value. SillyTavern sends its own setting, which is not used.")
    auth: Any = Field(
        None, exclude=True, description="any value. SillyTavern sends its own setting, which is not used."
    )


class StrictTxt2Img(Txt2Img):
    """The same where the service is strict: fields that AUTOMATIC1111 does not have are refused."""

    model_config = ConfigDict(extra="forbid")


class Image(BaseModel):
    """An image's file."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="an image in base64, perhaps behind `data:image/png;base64,`. Addresses are not.")


class ImagesResponse(BaseModel):
    """The images of a call."""

    images: list[str] = Field(description="PNG files in base64, each with its `parameters` as text.")
    parameters: dict[str, Any] = Field(description="What was asked for.")
    info: str = Field(description="What was made, as a JSON object.")


class State(BaseModel):
    """Where a call is; `job_count` is 0 where none runs. `job_no` counts its images."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressNow(BaseModel):
    """How far the call is that the client began first of those that run."""

    progress: float = Field(default=0.0, description="From 0 to 1.")
    eta_relative: float = Field(default=0.0, description="Seconds that are left; 0 where that is not known.")
    state: State = State()
    current_image: str | None = Field(default=None, description="What it will be like, a PNG file in base64.")
    textinfo: str | None = None
    current_task: str | None = None


class Checkpoint(BaseModel):
    """A model. `title` names it, and its hash."""

    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: str | None = None


class SamplerItem(BaseModel):
    """The way of sampling."""

    name: str = SAMPLER
    aliases: list[str] = ["k_euler"]
    options: dict[str, str] = {}


class SchedulerItem(BaseModel):
    """The noise schedule: the checkpoint's own, of flow matching."""

    name: str = SCHEDULE.lower()
    label: str = SCHEDULE
    aliases: list[str] | None = None
    default_rho: float = -1
    need_inner_model: bool = False


class Memory(BaseModel):
    """Bytes that this process may have: `free`, `used` by it now, and both together."""

    ram: dict[str, int]
    cuda: dict[str, Any] = Field(description="The same in `system`, or an `error` where models compute on processors.")


class PngInfo(BaseModel):
    """What an image's file says."""

    info: str = Field(description="How it was made, as text; empty where the file does not say.")
    items: dict[str, str] = Field(description="The file's other texts.")
    parameters: dict[str, str] = Field(description="The text's parts.")
    left_out: list[str] = Field(
        description="Names of texts that were not read, at most 5: they are damaged, or the texts are too long."
        " AUTOMATIC1111 has no such field."
    )


class Refusal(BaseModel):
    """An error as that API words it."""

    error: str = Field(description="Its kind.")
    detail: str = Field(description="What went wrong, and what to do.")
    body: str = ""
    errors: str = Field(description="The fields that were wrong, each with what came and what is allowed.")
