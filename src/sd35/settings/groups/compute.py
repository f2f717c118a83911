"""Settings of the computation: backend, precision, device and memory."""

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ByteSize, Field, field_validator

from sd35.settings.flag import Flag

Precision: TypeAlias = Literal[
    "auto", "float32", "float16", "bfloat16", "fp8", "fp8-dynamic", "fp8-weights", "fp8-storage"
]


class ComputeSettings(BaseModel, title="Compute", defer_build=True):
    """The backend, the device and the precision of the computation, and the memory to use."""

    backend: Annotated[str, Flag("NAME")] = Field(
        "onnx",
        description="Runtime that computes: `onnx` (needs no PyTorch), `openvino`, `diffusers` or `tensorrt`. `sd35"
        " doctor` shows which of these can run.",
    )
    precision: Annotated[Precision, Flag("FORMAT")] = Field(
        "auto",
        description="Number format of the computation: `float32`, `float16`, `bfloat16`, `fp8`, or `auto`, the default"
        " of the backend for the device. `fp8` uses FP8 in most of the transformer and `bfloat16` elsewhere. With"
        " `diffusers`, `fp8` means `fp8-dynamic` (multiplies in FP8) if the GPU can do so, and otherwise `fp8-weights`"
        " (only stores weights in FP8). You can also set `fp8-dynamic`, `fp8-weights` or `fp8-storage`. `fp8-storage`"
        " needs the least memory, because it also stores T5's weights in FP8.",
    )
    fallback: Annotated[str | None, Flag("BACKEND")] = Field(
        None,
        description="Second backend that `serve` loads, such as `diffusers` or `onnx/float32`. It generates images"
        " while the graphs or engines of the first backend are built. If its precision is wider, it also generates an"
        " image again if its generation fails numerically (values that are not finite, or one colour).",
    )
    device: Annotated[str, Flag("DEVICE")] = Field(
        "auto", description="Device to compute on: `cpu`, `cuda`, `cuda:1`, ..., or `auto` (a GPU if possible)."
    )
    offload: Annotated[Literal["auto", "none", "encoders", "model", "sequential"], Flag("NETWORKS")] = Field(
        "auto",
        description="What is in the device's memory only while needed, to save memory: nothing (`none`), the text"
        " encoders (`encoders`), each network (`model`), or each layer (`sequential`). `auto` picks the fastest of"
        " these that fits; `sd35 plan` shows the choice.",
    )
    tiled_decode: Annotated[Literal["auto", "on", "off"], Flag("WHEN")] = Field(
        "auto",
        description="Whether to decode large images in tiles, which needs less memory and changes pixels slightly:"
        " `on`, `off`, or `auto` (on only if memory requires it).",
    )
    torch_compile: bool = Field(
        default=False,
        description="Compile the transformer with `torch.compile`: faster steps, slower start, slightly different"
        " pixels. Only for `diffusers`, and not with `model` or `sequential` offload.",
    )
    vram: Annotated[ByteSize | None, Flag("SIZE", default="the free memory")] = Field(
        None, description="Memory of the CUDA device that the memory plan assumes, such as `12GiB`."
    )
    ram: Annotated[ByteSize | None, Flag("SIZE", default="the free memory")] = Field(
        None, description="Memory of the host that the memory plan assumes, such as `24GiB`."
    )
    threads: Annotated[int, Flag("COUNT")] = Field(
        0, ge=0, description="Number of processor threads that compute; 0 uses one per core."
    )
    max_batch_rows: Annotated[int, Flag("ROWS")] = Field(
        8,
        ge=1,
        description="Largest batch of a denoising step, in transformer rows. An image takes one row, or two if its"
        " guidance scale is above 1.",
    )
    reproducible: bool = Field(
        default=False,
        description="Compute each image on its own, so that its bytes do not depend on the load. Slower under load.",
    )
    memory_mb: Annotated[int, Flag("MB")] = Field(
        0,
        ge=0,
        description="Megabytes of working memory for steps and decoding; 0 uses 90 % of the memory that is free after"
        " the models are loaded.",
    )
    embedding_cache_mb: Annotated[int, Flag("MB")] = Field(
        64, ge=0, description="Size of the cache of encoded prompts, in megabytes; 0 turns it off."
    )

    @field_validator("fallback")
    @classmethod
    def _check_fallback(cls, value: str | None) -> str | None:
        """Return the fallback. Raises ValueError if it is not a backend with an optional precision."""
        precisions = get_args(Precision)
        backend, slash, precision = (value or "").partition("/")
        if value is not None and (not backend or (slash and precision not in precisions)):
            raise ValueError(
                "allowed: BACKEND or BACKEND/PRECISION, where BACKEND is onnx, openvino, diffusers or tensorrt, and"
                f" PRECISION is one of {', '.join(precisions)}"
            )
        return value
