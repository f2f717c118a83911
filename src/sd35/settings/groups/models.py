"""Settings that choose checkpoints and their files."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from sd35.settings.flag import CommaSeparated, Flag


class ModelSettings(BaseModel, title="Models", defer_build=True):
    """The checkpoints to load, their files, and the names under which clients reach them."""

    checkpoints: Annotated[CommaSeparated[str], Flag("NAME|PATH", name="--checkpoint", is_repeated=True)] = Field(
        ("sd35-mini",),
        min_length=1,
        description="Checkpoints to load: names that `sd35 models` lists, directories in the Diffusers layout or with"
        " NVIDIA's ONNX graphs, Stability's single files, or `auto`. `auto` picks SD3.5 Large, or Medium if Large does"
        " not fit in memory or is not available. A model is available if it is on disk or your token allows the"
        " download. If neither is available, `auto` uses `sd35-mini` and warns. If no available one fits, `auto` fails."
        " Separated by commas (in the file, a list; on the command line, repeat the flag). The first is the default.",
    )
    weights: Annotated[CommaSeparated[Path], Flag("FILE", is_repeated=True)] = Field(
        (),
        description="Safetensors files whose weights replace those of the checkpoint: whole models, or CLIP or T5"
        " encoders, also in plain or scaled FP8. Separated by commas (in the file, a list; on the command line, repeat"
        " `--weights`).",
    )
    registry: Annotated[Path | None, Flag("FILE")] = Field(
        None,
        description="TOML file that registers more checkpoints by name, in the format of"
        " `src/sd35/checkpoints/registry.toml`.",
    )
    base_checkpoint: Annotated[str | None, Flag("NAME|DIRECTORY")] = Field(
        None,
        description="Checkpoint of the same model that provides the tokenizers, configurations and networks that"
        " `--checkpoint` lacks: a name that `sd35 models` lists, or a directory in the Diffusers layout.",
    )
    transformer: Annotated[Literal["auto", "bf16", "fp8"], Flag("FORMAT")] = Field(
        "auto",
        description="Which transformer of NVIDIA's ONNX graphs to load: `bf16`, `fp8`, or `auto` (the one on disk, or"
        " `bf16` if both are).",
    )
    model_aliases: Annotated[CommaSeparated[str], Flag("NAMES")] = Field(
        (
            *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
            *("sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium", "sd3.5-flash", "sd3", "sd3-large", "sd3-medium"),
            "v1-5-pruned-emaonly.safetensors [6ce0161689]",
        ),
        description="Other model names in the OpenAI, AUTOMATIC1111 and Stability APIs: NAME for the default model, or"
        " NAME=CHECKPOINT. Separated by commas (in the file, a list); `none` for no aliases. The name of a served"
        " checkpoint always means that checkpoint.",
    )
    strict_dialects: bool = Field(
        default=False,
        description="Refuse requests to the OpenAI, AUTOMATIC1111 and Stability APIs instead of substituting a model"
        " (by an alias of `model_aliases`) or a sampler.",
    )
    offline: bool = Field(default=False, description="Use only models on disk: no downloads, no requests to the hub.")

    @field_validator("model_aliases")
    @classmethod
    def _expand_none(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return no aliases for the value `none`."""
        return () if value == ("none",) else value
