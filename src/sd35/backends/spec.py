"""The description of a backend. The registry, the memory planner, `sd35 doctor` and `sd35 bench` read it.

Reading it does not import the backend's runtime, such as PyTorch.
"""

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
        library_bytes: The memory of the process (on CUDA, of the device) before any weights are loaded.
        encode: How many tensors of `encode_values` numbers are in memory at once while T5 computes.
        step: How many tensors of `step_values` numbers are in memory at once during a denoising step.
        decode: How many tensors of `decode_values` numbers are in memory at once during decoding.

    `sd35.planning.footprint` has the functions `encode_values`, `step_values` and `decode_values`.
    docs/benchmarks/history/memory.md says how the factors were measured.
    """

    library_bytes: int
    encode: float
    step: float
    decode: float


@dataclass(frozen=True)
class DeviceSpec:
    """The abilities of a backend on one kind of device, and the memory that the backend takes there.

    Attributes:
        precisions: The supported precisions.
        offloads: The supported offloads, fastest first.
        memory: The memory that the backend takes in addition to weights.
        default_precision: The precision that `auto` selects.
    """

    precisions: tuple[str, ...]
    offloads: tuple[Offload, ...]
    memory: MemoryUse
    default_precision: str = "float32"


@dataclass(frozen=True)
class BackendSpec:
    """The description of a backend: its name, how to open it, and its abilities on each kind of device.

    Attributes:
        name: The value of the `backend` setting.
        module: The module with `open_backend(checkpoint, options)` and `memory_of(device)`. It may import `needs`.
        needs: The packages that the backend imports.
        remedy: How to install the packages in `needs`, as a sentence.
        devices: The abilities of the backend, by kind of device.
        check: Called if the packages in `needs` are installed. Raises BackendUnavailable if the backend cannot run on
            this machine for another reason.
        importing: Returns a context manager for the import of `module`, for example one that silences warnings.
            Entering it may raise InvalidSetting.
        needs_graphs: Whether the backend can only read ONNX graphs.
        can_tile: Whether the backend can decode large images in tiles.
        can_torch_compile: Whether the backend supports the setting `torch_compile`.
        casts_in_place: Whether weights are cast to another precision without their whole file in memory.
        widens_fp8: Whether a layer's FP8 weights are copied to wider formats while the layer multiplies.
        loads_as: The format of all weights and activations, if it is the same for every precision. Otherwise None.
        extra_bytes: Returns the memory that a network takes in addition to its weights, in bytes. The arguments are the
            network's name, the network, and the precision.
        narrower: For each precision, the narrower ones that `sd35 plan` suggests.
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
        """Return whether the backend keeps weights in FP8 in memory if `precision` is selected."""
        return precision.startswith("fp8") and self.loads_as is None

    def computed_in(self, precision: str) -> str:
        """Return the format of activations, and of all weights not in FP8, if `precision` is selected."""
        return self.loads_as or (COMPUTED_WITH_FP8 if self.has_fp8(precision) else precision)

    def bytes_per_value(self, precision: str) -> int:
        """Return the bytes of one number in the format that `computed_in` returns."""
        return BYTES_PER_VALUE[self.computed_in(precision)]

    def check_options(self, options: Options, kind: DeviceKind) -> None:
        """Raise InvalidSetting if the backend does not support one of the options on a kind of device."""
        device = self.devices[kind]
        self._check_option("device", options.device.partition(":")[0], ("auto", *self.devices))
        where = f"on {DEVICE_NAMES[kind]}, " if len(self.devices) > 1 else ""
        self._check_option("precision", options.precision, ("auto", *device.precisions), where)
        self._check_option("offload", options.offload, device.offloads, where)
        for name, is_supported in (("tiled_decode", self.can_tile), ("torch_compile", self.can_torch_compile)):
            value = "on" if getattr(options, name) else "off"
            self._check_option(name, value, ("off", "on") if is_supported else ("off",))

    def _check_option(self, name: str, value: str, allowed: tuple[str, ...], where: str = "") -> None:
        """Raise InvalidSetting if a value is not allowed. `where` limits the message to a kind of device."""
        if value not in allowed:
            raise InvalidSetting(f"{name}: got {value!r}; {where}the {self.name} backend allows: {', '.join(allowed)}")
