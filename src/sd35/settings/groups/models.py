"""Settings that choose checkpoints and their files."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from sd35.settings.flag import CommaSeparated, Flag


class ModelSettings(BaseModel, title="Models", defer_build=True):
    """Which checkpoints to load, from which files, and under which names clients reach them."""

    checkpoints: Annotated[CommaSeparated[str], Flag("NAME|PATH", name="--checkpoint", is_repeated=True)] = Field(
        ("sd35-mini",),
        min_length=1,
        description="Checkpoints to serve: names that `sd35 models` lists, directories in the Diffusers layout or with"
        " NVIDIA's ONNX graphs, Stability's single files, or `auto`. `auto` picks the better of SD3.5 Large and Medium"
        " that fits in memory and is on disk or can be downloaded with your token; with neither weights nor a token it"
        " falls back to `sd35-mini` and warns. Separated by commas (in the file, a list; on the command line, repeat"
        " `--checkpoint`). The first is the default.",
    )
    weights: Annotated[CommaSeparated[Path], Flag("FILE", is_repeated=True)] = Field(
        (),
        description="Safetensors files whose weights replace the checkpoint's: single files, CLIP or T5 encoders, also"
        " in FP8, plain or scaled. Separated by commas (in the file, a list; on the command line, repeat `--weights`).",
    )
    registry: Annotated[Path | None, Flag("FILE")] = Field(
        None,
        description="TOML file that registers more checkpoints by name, in the format of `checkpoints/registry.toml`.",
    )
    base_checkpoint: Annotated[str | None, Flag("NAME|DIRECTORY")] = Field(
        None,
        description="Source of tokenizers and configuration for a checkpoint that lacks them: a name that `sd35"
        " models` lists, or a directory in the Diffusers layout, of the same model.",
    )
    transformer: Annotated[Literal["auto", "bf16", "fp8"], Flag("FORMAT")] = Field(
        "auto",
        description="Which transformer of NVIDIA's ONNX graphs to read. `auto` reads the one on disk, and `bf16` if"
        " both are.",
    )
    model_aliases: Annotated[CommaSeparated[str], Flag("NAMES")] = Field(
        (
            *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
            *("sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium", "sd3.5-flash", "sd3", "sd3-large", "sd3-medium"),
            "v1-5-pruned-emaonly.safetensors [6ce0161689]",
        ),
        description="Other names for checkpoints in the OpenAI, AUTOMATIC1111 and Stability APIs: NAME for the first"
        " checkpoint served, or NAME=CHECKPOINT. Separated by commas (in the file, a list); `none` for no aliases. The"
        " name of a served checkpoint always means that checkpoint.",
    )
    strict_dialects: bool = Field(
        default=False,
        description="Refuse requests to the OpenAI, AUTOMATIC1111 and Stability APIs that would be served by a"
        " substitute: an alias of `model_aliases`, or another sampler than the one named.",
    )
    offline: bool = Field(default=False, description="Never use the network: no downloads, no requests to the hub.")

    @field_validator("model_aliases")
    @classmethod
    def _no_aliases(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return () if value == ("none",) else value
