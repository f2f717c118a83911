"""A backend's description, which needs no runtime. The registry, the planner, the doctor and `sd35 bench` read it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType

from sd35.backends.options import DeviceKind, Offload, Options
from sd35.checkpoints.network_sizes import Network
from sd35.errors import InvalidSetting

DEVICE_NAMES: Mapping[DeviceKind, str] = MappingProxyType({"cpu": "a CPU", "cuda": "CUDA"})
BYTES_PER_VALUE = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
COMPUTED_WITH_FP8 = "bfloat16"  # the format of activations if weights are in FP8


@dataclass(frozen=True)
class MemoryUse:
    """The memory that a backend takes on a kind of device in addition to weights.

    Attributes:
        library_bytes: What the process (on CUDA, the device) takes before any weights are loaded.
        encode: Tensors of `encode_values` numbers that are alive at once while T5 computes.
        step: Tensors of `step_values` numbers that are alive at once in a denoising step.
        decode: Tensors of `decode_values` numbers that are alive at once while decoding.

    `sd35.planning.footprint` defines the tensors. docs/architecture/12-memory-and-start-up.md says how the factors were
    measured.
    """

    library_bytes: int
    encode: float
    step: float
    decode: float


@dataclass(frozen=True)
class DeviceSpec:
    """What a backend can do on one kind of device, and the memory that it takes there.

    Attributes:
        precisions: The precisions that settings may name.
        offloads: The offloads that it can do, fastest first.
        memory: The memory that it takes in addition to weights.
        default_precision: The precision that `auto` means.
    """

    precisions: tuple[str, ...]
    offloads: tuple[Offload, ...]
    memory: MemoryUse
    default_precision: str = "float32"


@dataclass(frozen=True)
class BackendSpec:
    """A backend's name, how to open it, and what it can do on each kind of device.

    Attributes:
        name: The value of the `backend` setting.
        module: A module with `open_backend(checkpoint, options)` and `memory_of(device)`. It may import `needs`.
        needs: The packages that it imports.
        remedy: How to install them, as a sentence.
        devices: What it can do on each kind of device that it computes on.
        check: Raises BackendUnavailable if it cannot run here although `needs` are installed.
        importing: Returns a context in which `module` is imported. It may raise InvalidSetting.
        needs_graphs: Whether it reads nothing but ONNX graphs.
        can_tile: Whether it can decode large images in tiles.
        can_torch_compile: Whether it honours `torch_compile`.
        casts_in_place: Whether weights are cast to another precision without a copy of their file in memory.
        widens_fp8: Whether multiplying with FP8 weights takes a copy of the largest layer in a wider format.
        loads_as: The format that it converts all weights to and computes in, if the precision does not decide it.
        extra_bytes: Returns the memory that a network (by name) takes in a precision in addition to its weights.
        narrower: Narrower precisions that `sd35 plan` suggests, by precision.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    remedy: str
    devices: Mapping[DeviceKind, DeviceSpec]
    check: Callable[[], None] = lambda: None
    importing: Callable[[], AbstractContextManager[None]] = nullcontext
    needs_graphs: bool = False
    can_tile: bool = False
    can_torch_compile: bool = False
    casts_in_place: bool = False
    widens_fp8: bool = False
    loads_as: str | None = None
    extra_bytes: Callable[[str, Network, str], int] = lambda _name, _network, _precision: 0
    narrower: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The packages in `needs` that are not installed. Imports none of them."""
        return [name for name in self.needs if find_spec(name) is None]

    def has_fp8(self, precision: str) -> bool:
        """Whether it holds FP8 weights in memory in a precision."""
        return precision.startswith("fp8") and self.loads_as is None

    def computed_in(self, precision: str) -> str:
        """The format of activations in a precision, and of the weights that are not in FP8."""
        return self.loads_as or (COMPUTED_WITH_FP8 if self.has_fp8(precision) else precision)

    def bytes_per_value(self, precision: str) -> int:
        """Bytes of one number in that format."""
        return BYTES_PER_VALUE[self.computed_in(precision)]

    def check_options(self, options: Options, kind: DeviceKind) -> None:
        """Raise InvalidSetting if the backend cannot honour one of the options on a kind of device."""
        device = self.devices[kind]
        self._check("device", options.device.partition(":")[0], ("auto", *self.devices))
        where = f"on {DEVICE_NAMES[kind]}, " if len(self.devices) > 1 else ""
        self._check("precision", options.precision, ("auto", *device.precisions), where)
        self._check("offload", options.offload, device.offloads, where)
        for name, is_allowed in (("tiled_decode", self.can_tile), ("torch_compile", self.can_torch_compile)):
            self._check(name, "on" if getattr(options, name) else "off", ("off", "on") if is_allowed else ("off",))

    def _check(self, name: str, value: str, allowed: tuple[str, ...], where: str = "") -> None:
        if value not in allowed:
            raise InvalidSetting(f"{name}: got {value!r}; {where}the {self.name} backend allows: {', '.join(allowed)}")
