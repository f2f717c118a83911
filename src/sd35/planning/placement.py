"""One way to place one checkpoint's networks, as arithmetic: what is where in each phase, and what an image moves."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sd35.backends.options import DeviceKind, Offload
from sd35.checkpoints.network_sizes import NETWORKS, TEXT_ENCODERS, NetworkSizes
from sd35.planning.footprint import (
    RUNTIMES,
    Workload,
    beside_bytes,
    bytes_of,
    computed_in,
    decode_values,
    encode_values,
    fp8_values,
    step_values,
    tiles_values,
)

Home: TypeAlias = Literal[
    "resident", "computes on the CPU", "evicted after encoding", "there while it computes", "streamed"
]
Phase: TypeAlias = Literal["reading", "encoding", "steps", "decoding"]

_WIDENED_BYTES = 4 + 4 + 2  # of a weight in FP8 while it is multiplied: itself, scaled, and in BF16


@dataclass(frozen=True)
class NetworkPlacement:
    """A checkpoint's networks in a precision, placed by `offload` on a kind of device. Sizes in bytes."""

    network_sizes: NetworkSizes
    backend: str
    precision: str
    device: DeviceKind
    offload: Offload
    tiled_decode: bool

    @property
    def homes(self) -> dict[str, Home]:
        """Where each network lives."""
        evicted: Home = "evicted after encoding" if self.device == "cpu" else "computes on the CPU"
        encoder, other = {
            "none": ("resident", "resident"),
            "encoders": (evicted, "resident"),
            "model": ("there while it computes", "there while it computes"),
            "sequential": ("streamed", "streamed"),
        }[self.offload]
        return {name: encoder if name in TEXT_ENCODERS else other for name in NETWORKS}  # type: ignore[misc]

    def held_bytes(self, phase: Phase) -> int:
        """Weights on the device in a phase."""
        encoders = [self._weights(name) for name in TEXT_ENCODERS]
        transformer, vae = self._weights("transformer"), self._weights("vae")
        match self.offload:
            case "none":
                return sum(encoders) + transformer + vae
            case "encoders":
                return transformer + vae + (max(encoders) if (phase, self.device) == ("encoding", "cpu") else 0)
            case "model":
                return {"reading": 0, "encoding": max(encoders), "steps": transformer, "decoding": vae}[phase]
        layers = {name: network.largest_layer * self._width for name, network in self.network_sizes.networks.items()}
        of_encoders = max(layers[name] for name in TEXT_ENCODERS)
        return {"reading": 0, "encoding": of_encoders, "steps": layers["transformer"], "decoding": layers["vae"]}[phase]

    @property
    def stays_bytes(self) -> int:
        """Weights on the device that may be there between two images."""
        match self.offload:
            case "none" | "encoders":
                return self.held_bytes("steps")
            case "model":
                return max(self._weights(name) for name in NETWORKS)
        return 0

    def working_bytes(self, phase: Phase, work: Workload) -> int:
        """What a phase takes beside weights."""
        factors = RUNTIMES[self.backend, self.device]
        configs = {name: network.config for name, network in self.network_sizes.networks.items()}
        text_tokens = self.network_sizes.card.max_sequence_length
        match phase:
            case "reading":
                return self._reading_bytes()
            case "encoding":
                computing = factors.encode * self._width * encode_values(configs, text_tokens)
                return max(int(computing), self._cast_bytes(TEXT_ENCODERS))
            case "steps":
                computing = factors.step * self._width * step_values(configs, text_tokens, work)
                computing += self._widened_bytes("transformer")
                return max(int(computing), self._cast_bytes(("transformer",)))
        values = factors.decode * decode_values(configs, work, tiled=self.tiled_decode)
        values += tiles_values(work) if self.tiled_decode else 0
        return max(int(values * self._width), self._cast_bytes(("vae",)))

    @property
    def host_bytes(self) -> int:
        """Beside a CUDA device: all weights pass through the host's memory, or stay in it. On a CPU 0."""
        return sum(self._weights(name) for name in NETWORKS) if self.device == "cuda" else 0

    @property
    def moved_bytes(self) -> int:
        """What an image with new text reads from disk, on CUDA what it brings to the device and back."""
        networks = self.network_sizes.networks
        match self.offload, self.device:
            case "encoders", "cpu":
                return sum(networks[name].stored_bytes for name in TEXT_ENCODERS)
            case "model", "cpu":
                return sum(network.stored_bytes for network in networks.values())
            case "model", "cuda":
                return 2 * sum(self._weights(name) for name in NETWORKS)  # back, too: the library copies them
            case "sequential", _:
                others = sum(self._weights(name) for name in NETWORKS if name != "transformer")
                return others + self.network_sizes.card.steps * self._weights("transformer")
        return 0

    @property
    def _width(self) -> int:
        return bytes_of(self.backend, self.precision)

    def _weights(self, name: str) -> int:
        return weights_bytes(self.network_sizes, name, self.backend, self.precision)

    def _reading_bytes(self) -> int:
        """What reading takes beyond what it leaves: of a network that is cast, its file beside it. In their order."""
        if self.offload not in {"none", "encoders"} or self.device == "cuda":
            return 0
        kept = NETWORKS if self.offload == "none" else tuple(name for name in NETWORKS if name not in TEXT_ENCODERS)
        read, most = 0, 0
        for name in kept:
            read += self._weights(name)
            most = max(most, read + self._cast_bytes((name,), always=True))
        return most - read

    def _cast_bytes(self, names: tuple[str, ...], *, always: bool = False) -> int:
        """The largest file of networks that come anew in another precision than they are stored in."""
        comes = always or (self.device == "cpu" and any(self._comes(name) for name in names))
        if not comes or RUNTIMES[self.backend, self.device].casts_aside:
            return 0
        return max(self.network_sizes.networks[name].stored_bytes if self._is_cast(name) else 0 for name in names)

    def _is_cast(self, name: str) -> bool:
        """Whether it is stored in another precision, or some of it goes into FP8."""
        is_other = self.network_sizes.networks[name].stored_as != computed_in(self.backend, self.precision)
        return is_other or self._fp8_values(name) > 0

    def _fp8_values(self, name: str) -> int:
        return fp8_values(self.backend, self.precision, name, self.network_sizes.networks[name].config)

    def _widened_bytes(self, name: str) -> int:
        """What multiplying with weights in FP8 takes beside them: those of the largest layer, wider."""
        takes = RUNTIMES[self.backend, self.device].widens_fp8 and self._fp8_values(name)
        return _WIDENED_BYTES * self.network_sizes.networks[name].largest_layer if takes else 0

    def _comes(self, name: str) -> bool:
        return self.offload == "model" or (self.offload == "encoders" and name in TEXT_ENCODERS)


def weights_bytes(network_sizes: NetworkSizes, name: str, backend: str, precision: str) -> int:
    """What a network's weights take in memory."""
    network = network_sizes.networks[name]
    in_fp8 = fp8_values(backend, precision, name, network.config)
    size_bytes = (network.values - in_fp8) * bytes_of(backend, precision) + in_fp8
    if (name, precision) == ("text_encoder_3", "float16"):  # Transformers keeps T5's output layers in float32 then
        size_bytes += 2 * network.config["d_ff"] * network.config["d_model"] * network.config["num_layers"]
    return size_bytes + beside_bytes(backend, name, network.values, size_bytes)
