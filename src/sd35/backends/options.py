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
    """How to open a backend. `registry.open_backend` refuses options that the backend does not support.

    Attributes:
        precision: The number format to compute in. "auto" is the backend's default for the device.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        offload: The networks that are not on the device all the time.
            "encoders": On a CPU, the text encoders are read from disk one by one for new text and freed afterwards. On
            CUDA, they stay in the host's memory and compute on the CPU.
            "model": Each network is on the device only while it computes. On a CPU, it is read from disk. On CUDA, it
            is copied from the host's memory.
            "sequential", on CUDA only: `diffusers` copies weights to the device layer by layer. `tensorrt` streams the
            weights that do not fit.
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
