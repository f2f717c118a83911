"""What AUTOMATIC1111's API takes and gives, field by field. Of bodies, descriptions begin with what is allowed.

Fields that clients send by default are all here: honoured, taken where they change nothing, or allowed at the value at
which they change nothing.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, SEED, SIZE_MULTIPLE_PX, STEPS
from sd35.service.infotext import SAMPLER, SCHEDULE

MOST_PICTURES = 16

_Text: TypeAlias = str | None
_Flag: TypeAlias = bool | None
_Number: TypeAlias = int | float | None
_Zero: TypeAlias = Annotated[float, Field(ge=0, le=0)] | None
# Not literals: to pydantic, 0 is the literal False, and true the literal 1.
_Off: TypeAlias = Annotated[bool, Field(le=False), WithJsonSchema({"type": "boolean", "const": False})] | None
_NoName: TypeAlias = Literal["", "None"] | None
_Side: TypeAlias = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, multiple_of=SIZE_MULTIPLE_PX)] | None
_Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST_PICTURES)] | None

_SIDE = f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range. Left out or null: the model's default."
_COUNT = f"an integer from 1 to {MOST_PICTURES}: how many pictures; batch_size x n_iter are made, of following seeds."


def _only(allowed: str, why: str) -> Any:  # noqa: ANN401  as pydantic's Field
    return Field(None, description=f"{allowed}: {why}.")


def _idle(kind: str, why: str) -> Any:  # noqa: ANN401  as pydantic's Field
    return Field(None, description=f"{kind}. It is taken, and changes nothing: {why}.")


_NO_HR, _NO_CHURN, _NOT_SAVED = (
    "there is no second pass",
    "Euler's s_churn is 0",
    "every picture is kept, see /v1/artifacts",
)


class Options(BaseModel):
    """Settings: those that clients ask for, read or set."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    sd_model_checkpoint: _Text = Field(
        None, description="a title, name or alias of a checkpoint of /sdapi/v1/sd-models. Set, it is for one client."
    )
    sd_checkpoint_hash: _Text = _idle("text", "sd_model_checkpoint says it")
    sd_vae: Literal["Automatic", "None", ""] | None = _only("Automatic, None or empty", "a checkpoint has its own")
    CLIP_stop_at_last_layers: Annotated[int, Field(ge=1, le=2)] | None = _only(
        "1 or 2", "a checkpoint reads the layer it was trained with"
    )
    samples_format: Literal["png"] | None = _only("png", "answers are PNG files")
    samples_save: _Flag = _idle("true or false", _NOT_SAVED)
    grid_save: _Flag = _idle("true or false", "no grids are made")
    return_grid: _Off = _only("false", "no grids are made")
    eta_noise_seed_delta: _Zero = _only("0", "seeds are what they are")


class Txt2Img(BaseModel):
    """What to make pictures of.

    Prompts are read as they are: parentheses, `<lora:...>` and the like have no meaning of their own.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1, max_length=PROMPT_CHARACTERS, description=f"text of 1 to {PROMPT_CHARACTERS} characters."
    )
    negative_prompt: str | None = Field(
        None, max_length=PROMPT_CHARACTERS, description=f"text of at most {PROMPT_CHARACTERS} characters."
    )
    width: _Side = Field(None, description=_SIDE)
    height: _Side = Field(None, description=_SIDE)
    steps: Annotated[int, Field(ge=STEPS[0], le=STEPS[1])] | None = Field(
        None, description=f"an integer from {STEPS[0]} to {STEPS[1]}. Left out or null: the model's default."
    )
    cfg_scale: Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])] | None = Field(
        None,
        description=f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}. Left out: the model's default.",
    )
    seed: Annotated[int, Field(ge=-1, le=SEED[1])] | None = Field(
        None, description=f"an integer from -1 to {SEED[1]}. -1, null or left out: a random one."
    )
    batch_size: _Count = Field(None, description=_COUNT)
    n_iter: _Count = Field(None, description=_COUNT)
    sampler_name: _Text = Field(None, description=f"{SAMPLER}. Others are served by it, unless the service is strict.")
    sampler_index: _Text = Field(None, description=f"{SAMPLER}. As sampler_name, where that is not given.")
    scheduler: _Text = Field(None, description=f"{SCHEDULE}. Others are served by it, unless the service is strict.")
    override_settings: dict[str, Any] | None = Field(
        None, description="an object of what POST /sdapi/v1/options takes, for this call alone."
    )
    send_images: _Flag = Field(None, description="true or false: whether the answer holds the pictures.")
    force_task_id: Annotated[str, Field(pattern="^[ -~]{0,200}$")] | None = Field(
        None, description="at most 200 characters of ASCII: the call's name in /sdapi/v1/progress."
    )

    enable_hr: _Off = _only("false", _NO_HR)
    subseed_strength: _Zero = _only("0", "there are no variations of a seed")
    seed_resize_from_h: Annotated[int, Field(le=0)] | None = _only("-1 or 0", "seeds are of the picture's own size")
    seed_resize_from_w: Annotated[int, Field(le=0)] | None = _only("-1 or 0", "seeds are of the picture's own size")
    restore_faces: _Off = _only("false", "faces are not restored")
    tiling: _Off = _only("false", "pictures do not tile")
    styles: Annotated[list[str], Field(max_length=0)] | None = _only("an empty list", "there are no styles")
    script_name: _NoName = _only("empty", "there are no scripts")
    script_args: Annotated[list[Any], Field(max_length=0)] | None = _only("an empty list", "there are no scripts")
    alwayson_scripts: Annotated[dict[str, Any], Field(max_length=0)] | None = _only("{}", "there are no scripts")
    refiner_checkpoint: _NoName = _only("empty", "there is no refiner")
    s_churn: _Zero = _only("0", "Euler's steps add no noise")
    s_min_uncond: _Zero = _only("0", "no step goes without guidance")
    comments: Annotated[dict[str, Any], Field(max_length=0)] | None = _only("{}", "comments go nowhere")
    infotext: Literal[""] | None = _only("empty", "settings are fields")
    clip_skip: Annotated[int, Field(ge=0, le=2)] | None = _only(
        "0, 1 or 2", "a checkpoint reads the layer it was trained with"
    )

    denoising_strength: _Number = _idle("a number", _NO_HR)
    firstphase_width: _Number = _idle("a number", _NO_HR)
    firstphase_height: _Number = _idle("a number", _NO_HR)
    hr_scale: _Number = _idle("a number", _NO_HR)
    hr_upscaler: _Text = _idle("text", _NO_HR)
    hr_second_pass_steps: _Number = _idle("a number", _NO_HR)
    hr_resize_x: _Number = _idle("a number", _NO_HR)
    hr_resize_y: _Number = _idle("a number", _NO_HR)
    hr_checkpoint_name: _Text = _idle("text", _NO_HR)
    hr_sampler_name: _Text = _idle("text", _NO_HR)
    hr_scheduler: _Text = _idle("text", _NO_HR)
    hr_prompt: _Text = _idle("text", _NO_HR)
    hr_negative_prompt: _Text = _idle("text", _NO_HR)
    subseed: _Number = _idle("a number", "there are no variations of a seed")
    refiner_switch_at: _Number = _idle("a number", "there is no refiner")
    eta: _Number = _idle("a number", "Euler has none")
    s_tmin: _Number = _idle("a number", _NO_CHURN)
    s_tmax: _Number = _idle("a number", _NO_CHURN)
    s_noise: _Number = _idle("a number", _NO_CHURN)
    disable_extra_networks: _Flag = _idle("true or false", "there are none")
    override_settings_restore_afterwards: _Flag = _idle("true or false", "they are restored")
    save_images: _Flag = _idle("true or false", _NOT_SAVED)
    do_not_save_samples: _Flag = _idle("true or false", _NOT_SAVED)
    do_not_save_grid: _Flag = _idle("true or false", "no grids are made")
    url: _Text = Field(None, exclude=True, description="text. SillyTavern sends its own setting, which is not used.")
    auth: _Text = Field(None, exclude=True, description="text. SillyTavern sends its own setting, which is not used.")


class Image(BaseModel):
    """A picture's file."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="a picture in base64, perhaps behind `data:image/png;base64,`. Addresses are not.")


class Pictures(BaseModel):
    """The pictures of a call."""

    images: list[str] = Field(description="PNG files in base64, each with its `parameters` as text.")
    parameters: dict[str, Any] = Field(description="What was asked for.")
    info: str = Field(description="What was made, as a JSON object.")


class State(BaseModel):
    """Where a call is; `job_count` is 0 where none runs. `job_no` counts its pictures."""

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
    """What a picture's file says."""

    info: str = Field(description="How it was made, as text; empty where the file does not say.")
    items: dict[str, str] = Field(description="The file's other texts.")
    parameters: dict[str, str] = Field(description="The text's parts.")


class Refusal(BaseModel):
    """An error as that API words it."""

    error: str = Field(description="Its kind.")
    detail: str = Field(description="What went wrong, and what to do.")
    body: str = ""
    errors: str = Field(description="The fields that were wrong, each with what came and what is allowed.")
