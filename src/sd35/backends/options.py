"""How a backend is to compute. Each backend honours an option or refuses it with InvalidSetting."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sd35.errors import InvalidSetting
from sd35.settings import Precision

DeviceKind: TypeAlias = Literal["cpu", "cuda"]
Offload: TypeAlias = Literal["none", "encoders", "model", "sequential"]

_SMALL_VALUES = 50_000_000
TILE_PX = 512  # side of a tile, where decoding is tiled


@dataclass(frozen=True)
class Options:
    """`auto` is the backend's best; `device` is "auto", "cpu", "cuda", "cuda:1", ...; 0 threads are one per core.

    `offload` says which networks are not there all the time. "encoders": on a CPU, the text encoders are read from disk
    one by one when there is new text, and freed after it; on CUDA, they stay and compute on the CPU. "model": each
    network is there while it computes, read from disk on a CPU, brought from the host's memory on CUDA. "sequential",
    on CUDA only: the same of each layer; of TensorRT's engines, of the weights that have no room. `tiled_decode`: a
    image larger than TILE_PX is decoded in tiles. `torch_compile`: the transformer's blocks are compiled by
    `torch.compile`. What `sd35 compile` built is looked for in `cache_dir`.
    """

    precision: Precision = "auto"
    device: str = "auto"
    offload: Offload = "none"
    threads: int = 0
    tiled_decode: bool = False
    torch_compile: bool = False
    cache_dir: Path | None = None

    def check(self, backend: str, **allowed: tuple[str, ...]) -> None:
        """Raises InvalidSetting where one of the named options is beyond what a backend allows."""
        for name, choices in allowed.items():
            value = getattr(self, name)
            got = value if isinstance(value, str) else "on" if value else "off"
            if got not in choices:
                raise InvalidSetting(f"{name}: got {got!r}; the {backend} backend allows: {', '.join(choices)}")


def has_second(backend: str, network: str, values: int) -> bool:
    """Whether a network is compiled twice: OpenVINO's transformer is, for any shape and for one image's alone.

    Not where it is large: its steps are so long that known shapes save nothing that counts.
    """
    return backend == "openvino" and network == "transformer" and values < _SMALL_VALUES
