"""How a backend is to compute. Each backend honours an option or refuses it with InvalidSetting."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
Offload: TypeAlias = Literal["none", "model", "sequential"]


@dataclass(frozen=True)
class Options:
    """`auto` is the backend's best; `device` is "auto", "cpu", "cuda", "cuda:1", ...; 0 threads are one per core."""

    precision: Precision = "auto"
    device: str = "auto"
    offload: Offload = "none"
    threads: int = 0
