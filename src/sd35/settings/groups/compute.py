"""Settings of the computation: backend, precision, device, memory."""

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ByteSize, Field, field_validator

from sd35.settings.flag import Flag

Precision: TypeAlias = Literal[
    "auto", "float32", "float16", "bfloat16", "fp8", "fp8-dynamic", "fp8-weights", "fp8-storage"
]


class ComputeSettings(BaseModel, title="Compute", defer_build=True):
    """What computes, in which precision, and with how much memory."""

    backend: Annotated[str, Flag("NAME")] = Field(
        "onnx",
        description="Runtime that computes: `onnx` (without PyTorch), `openvino`, `diffusers` or `tensorrt`. See `sd35"
        " doctor`.",
    )
    precision: Annotated[Precision, Flag("FORMAT")] = Field(
        "auto",
        description="Number format of the computation. `auto` is the backend's best for the device. `fp8` uses FP8 in"
        " most of the transformer and `bfloat16` elsewhere. With `diffusers`, `fp8` means `fp8-dynamic`, which"
        " multiplies in FP8, if the GPU can do so, and otherwise `fp8-weights`, which only stores weights in FP8; you"
        " can also name either. `fp8-storage` (`diffusers` only) needs the least memory: T5's weights are in FP8 too.",
    )
    fallback: Annotated[str | None, Flag("BACKEND")] = Field(
        None,
        description="Second backend that `serve` loads, such as `diffusers` or `onnx/float32`. It answers while the"
        " first backend's graphs or engines are built. If its precision is wider, it also repeats images that failed"
        " numerically.",
    )
    device: Annotated[str, Flag("DEVICE")] = Field(
        "auto", description="Device to compute on: `auto`, `cpu`, `cuda`, `cuda:1`, ..."
    )
    offload: Annotated[Literal["auto", "none", "encoders", "model", "sequential"], Flag("HOW")] = Field(
        "auto",
        description="Networks that move to the device only when needed: `none`, the text `encoders`, each network"
        " (`model`), or each layer (`sequential`). `auto` is the fastest that fits: see `sd35 plan`.",
    )
    tiled_decode: Annotated[Literal["auto", "on", "off"], Flag("WHEN")] = Field(
        "auto",
        description="Decode large images in tiles, which needs less memory and changes pixels slightly. `auto` does so"
        " only if memory requires it.",
    )
    torch_compile: bool = Field(
        default=False,
        description="Compile the transformer with `torch.compile`: faster steps, a longer start, and slightly different"
        " pixels. `diffusers` backend only, without `model` or `sequential` offload.",
    )
    vram: Annotated[ByteSize | None, Flag("SIZE", default="what is free")] = Field(
        None, description="Memory of the CUDA device to plan with, such as `12GiB`."
    )
    ram: Annotated[ByteSize | None, Flag("SIZE", default="what is free")] = Field(
        None, description="Memory of the host to plan with, such as `24GiB`."
    )
    threads: Annotated[int, Flag("COUNT")] = Field(
        0, ge=0, description="Processor threads for computing; 0 uses one per core."
    )
    max_batch_rows: Annotated[int, Flag("ROWS")] = Field(
        8,
        ge=1,
        description="Most transformer rows in a step. An image takes one row, or two if its guidance is above 1.",
    )
    reproducible: bool = Field(
        default=False,
        description="Compute each image on its own, so that its bytes do not depend on the load. Slower.",
    )
    memory_mb: Annotated[int, Flag("MB")] = Field(
        0, ge=0, description="Megabytes of working memory for steps and decoding; 0 uses 90 % of what is free."
    )
    embedding_cache_mb: Annotated[int, Flag("MB")] = Field(
        64, ge=0, description="Megabytes of the cache of encoded prompts."
    )

    @field_validator("fallback")
    @classmethod
    def _check_fallback(cls, value: str | None) -> str | None:
        precisions = get_args(Precision)
        backend, slash, precision = (value or "").partition("/")
        if value is not None and (not backend or (slash and precision not in precisions)):
            raise ValueError(f"allowed: BACKEND or BACKEND/PRECISION, of which {', '.join(precisions)}")
        return value
