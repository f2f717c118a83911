"""The options of a backend: precision, device, offload and others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sd35.settings import Precision

DeviceKind: TypeAlias = Literal["cpu", "cuda"]
Offload: TypeAlias = Literal["none", "encoders", "model", "sequential"]

TILE_PX = 512  # side of a tile in tiled decoding


@dataclass(frozen=True)
class Options:
    """How to open a backend. The registry refuses options that the backend's spec does not allow.

    Attributes:
        precision: The format to compute in; "auto" leaves it to the backend.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        offload: The networks that are not on the device all the time. "encoders": on a CPU, the text encoders are
            read from disk one by one for new text and freed afterwards; on CUDA, they stay on the CPU and compute
            there. "model": each network is on the device only while it computes; it is read from disk on a CPU, and
            copied from the host's memory on CUDA. "sequential", on CUDA only: `diffusers` copies weights layer by
            layer; `tensorrt` streams the weights that do not fit.
        threads: Processor threads; 0 means one per core.
        tiled_decode: Decode images larger than TILE_PX in tiles.
        torch_compile: Compile the transformer's blocks with `torch.compile`.
        cache_dir: The directory in which `sd35 compile` stores graphs and engines.
    """

    precision: Precision = "auto"
    device: str = "auto"
    offload: Offload = "none"
    threads: int = 0
    tiled_decode: bool = False
    torch_compile: bool = False
    cache_dir: Path | None = None
