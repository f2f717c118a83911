"""The responses of AUTOMATIC1111's routes."""

from typing import Any

from pydantic import BaseModel, Field

from sd35.images.infotext import SAMPLER, SCHEDULE


class Options(BaseModel):
    """The settings that clients read."""

    sd_model_checkpoint: str = Field(description="The title of the client's checkpoint.")
    sd_checkpoint_hash: str = Field(description="The SHA-256 over the files of the checkpoint.")
    sd_vae: str = Field(default="Automatic", description="Always `Automatic`: a checkpoint has its own VAE.")
    CLIP_stop_at_last_layers: int = Field(
        default=1, description="Always 1: a checkpoint uses the layers that it was trained with."
    )
    samples_format: str = Field(default="png", description="Always `png`.")
    samples_save: bool = Field(default=False, description="Always false: see /v1/artifacts for stored images.")
    grid_save: bool = Field(default=False, description="Always false: there are no grids.")
    return_grid: bool = Field(default=False, description="Always false: there are no grids.")
    eta_noise_seed_delta: int = Field(default=0, description="Always 0: the sampler adds no noise.")


class ImagesResponse(BaseModel):
    """The images of a call."""

    images: list[str] = Field(description="PNG files in base64, each with its settings in the text `parameters`.")
    parameters: dict[str, Any] = Field(description="The fields of the call.")
    info: str = Field(description="The settings of the images: a JSON object as text.")


class State(BaseModel):
    """The state of a call."""

    skipped: bool = Field(default=False, description="Whether an image of the call was skipped.")
    interrupted: bool = Field(default=False, description="Whether the call was interrupted.")
    stopping_generation: bool = Field(default=False, description="Always false.")
    job: str = Field(default="", description="The name of the call.")
    job_count: int = Field(default=0, description="The number of images of the call; 0 if no call is running.")
    job_timestamp: str = Field(default="0", description="When the call began, in UTC: YYYYMMDDHHMMSS.")
    job_no: int = Field(default=0, description="The index of the current image, from 0.")
    sampling_step: int = Field(default=0, description="The number of steps of the current image that are done.")
    sampling_steps: int = Field(default=0, description="The number of steps of the current image.")


class ProgressResponse(BaseModel):
    """The progress of the client's oldest running call."""

    progress: float = Field(default=0.0, description="The share of the steps that are done, from 0 to 1.")
    eta_relative: float = Field(default=0.0, description="The estimated seconds until the call ends; 0 if unknown.")
    state: State = Field(default=State(), description="The state of the call.")
    current_image: str | None = Field(default=None, description="A preview of the current image: a PNG file in base64.")
    textinfo: str | None = Field(default=None, description="Always null.")
    current_task: str | None = Field(default=None, description="The name of the call; null if no call is running.")


class Checkpoint(BaseModel):
    """A served model."""

    title: str = Field(description="The name and the short hash, as in the setting `sd_model_checkpoint`.")
    model_name: str = Field(description="The name, as in /v1/models.")
    hash: str = Field(description="The first digits of `sha256`.")
    sha256: str = Field(description="The SHA-256 over the files of the checkpoint.")
    filename: str = Field(description="The name as a file name. No such file exists.")
    config: str | None = Field(default=None, description="Always null.")


class SamplerItem(BaseModel):
    """The sampler."""

    name: str = Field(default=SAMPLER, description="The name of the sampler.")
    aliases: list[str] = Field(default=["k_euler"], description="Other names of the sampler.")
    options: dict[str, str] = Field(default={}, description="Always empty.")


class SchedulerItem(BaseModel):
    """The noise schedule: the checkpoint's own."""

    name: str = Field(default=SCHEDULE.lower(), description="The name of the schedule.")
    label: str = Field(default=SCHEDULE, description="The name for people.")
    aliases: list[str] | None = Field(default=None, description="Always null.")
    default_rho: float = Field(default=-1, description="Always -1.")
    need_inner_model: bool = Field(default=False, description="Always false.")


class Memory(BaseModel):
    """The memory in bytes: `free`, `used` by this process, and their sum, `total`."""

    ram: dict[str, int] = Field(description="The memory of the host.")
    cuda: dict[str, Any] = Field(description="The memory of the device as `system`; `error` if models run on a CPU.")


class PngInfo(BaseModel):
    """The metadata of an image file."""

    info: str = Field(description="The generation settings as text; empty if the file has none.")
    items: dict[str, str] = Field(description="The other texts in the file, by name.")
    parameters: dict[str, str] = Field(description="The settings in `info`, by name.")
    left_out: list[str] = Field(
        description="The names of at most 5 texts that were not read because they are damaged or too long."
        " AUTOMATIC1111's API does not have this field."
    )
