"""The responses of AUTOMATIC1111's routes."""

from typing import Any

from pydantic import BaseModel, Field

from sd35.images.infotext import SAMPLER, SCHEDULE


class Options(BaseModel):
    """The settings that clients read."""

    sd_model_checkpoint: str = Field(description="The title of the client's checkpoint.")
    sd_checkpoint_hash: str = Field(description="Its revision.")
    sd_vae: str = Field(default="Automatic", description="A checkpoint has its own.")
    CLIP_stop_at_last_layers: int = Field(default=1, description="A checkpoint uses the layers it was trained with.")
    samples_format: str = Field(default="png", description="Images are PNG files.")
    samples_save: bool = Field(default=False, description="Every image is stored, see /v1/artifacts.")
    grid_save: bool = Field(default=False, description="No grids are made.")
    return_grid: bool = Field(default=False, description="No grids are made.")
    eta_noise_seed_delta: int = Field(default=0, description="Euler adds no noise.")


class ImagesResponse(BaseModel):
    """The images of a call."""

    images: list[str] = Field(description="PNG files in base64, each with its `parameters` as text.")
    parameters: dict[str, Any] = Field(description="The fields of the call.")
    info: str = Field(description="The settings of the images, as a JSON object.")


class State(BaseModel):
    """The state of a call. `job_count` is its number of images, 0 if no call runs; `job_no` is the current image."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressResponse(BaseModel):
    """The progress of the client's oldest running call."""

    progress: float = Field(default=0.0, description="From 0 to 1.")
    eta_relative: float = Field(default=0.0, description="Seconds left; 0 if unknown.")
    state: State = State()
    current_image: str | None = Field(default=None, description="A preview, a PNG file in base64.")
    textinfo: str | None = None
    current_task: str | None = None


class Checkpoint(BaseModel):
    """A model. `title` holds its name and hash."""

    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: str | None = None


class SamplerItem(BaseModel):
    """The sampler."""

    name: str = SAMPLER
    aliases: list[str] = ["k_euler"]
    options: dict[str, str] = {}


class SchedulerItem(BaseModel):
    """The noise schedule: the checkpoint's own, for flow matching."""

    name: str = SCHEDULE.lower()
    label: str = SCHEDULE
    aliases: list[str] | None = None
    default_rho: float = -1
    need_inner_model: bool = False


class Memory(BaseModel):
    """The bytes of memory that this process may use: `free`, `used`, and their `total`."""

    ram: dict[str, int]
    cuda: dict[str, Any] = Field(description="The device's memory as `system`, or an `error` if models run on a CPU.")


class PngInfo(BaseModel):
    """The metadata of an image file."""

    info: str = Field(description="The generation settings as text; empty if the file has none.")
    items: dict[str, str] = Field(description="The file's other texts, by name.")
    parameters: dict[str, str] = Field(description="The settings in `info`, by name.")
    left_out: list[str] = Field(
        description="The names of at most 5 texts that were not read, because they are damaged or too long."
        " AUTOMATIC1111 has no such field."
    )
