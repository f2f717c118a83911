"""Compute the memory of one checkpoint in one placement: loaded weights and working memory in each phase.

Also compute the bytes that an image reads from disk or copies between the host and the device.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sd35.backends.options import DeviceKind, Offload
from sd35.backends.spec import BackendSpec
from sd35.checkpoints.network_sizes import NETWORKS, TEXT_ENCODERS, NetworkSizes
from sd35.planning.footprint import (
    Workload,
    decode_values,
    encode_values,
    fp8_values,
    step_values,
    tiles_values,
    weights_bytes,
)

Location: TypeAlias = Literal[
    "resident", "computes on the CPU", "evicted after encoding", "loaded while it computes", "streamed"
]
Phase: TypeAlias = Literal["reading", "encoding", "steps", "decoding"]
"""Reading the weights at the start, encoding prompts, denoising steps, and decoding latents to pixels."""

_WIDENED_BYTES = 4 + 4 + 2  # per FP8 weight while it is multiplied: copies in float32, scaled float32, and BF16


@dataclass(frozen=True)
class NetworkPlacement:
    """The placement of a checkpoint's networks on a kind of device. All sizes are in bytes."""

    network_sizes: NetworkSizes
    spec: BackendSpec
    precision: str
    device: DeviceKind
    offload: Offload
    tiled_decode: bool

    @property
    def locations(self) -> dict[str, Location]:
        """The location of each network, by name."""
        evicted: Location = "evicted after encoding" if self.device == "cpu" else "computes on the CPU"
        encoder, other = {
            "none": ("resident", "resident"),
            "encoders": (evicted, "resident"),
            "model": ("loaded while it computes", "loaded while it computes"),
            "sequential": ("streamed", "streamed"),
        }[self.offload]
        return {name: encoder if name in TEXT_ENCODERS else other for name in NETWORKS}  # type: ignore[misc]

    def loaded_bytes(self, phase: Phase) -> int:
        """Return the size of the weights on the device in a phase."""
        encoders = [self._weights_bytes(name) for name in TEXT_ENCODERS]
        transformer, vae = self._weights_bytes("transformer"), self._weights_bytes("vae")
        match self.offload:
            case "none":
                return sum(encoders) + transformer + vae
            case "encoders":
                return transformer + vae + (max(encoders) if (phase, self.device) == ("encoding", "cpu") else 0)
            case "model":
                return {"reading": 0, "encoding": max(encoders), "steps": transformer, "decoding": vae}[phase]
        # With sequential offload, one layer at a time is on the device.
        value_bytes = self._bytes_per_value
        layers = {name: network.largest_layer * value_bytes for name, network in self.network_sizes.networks.items()}
        encoder = max(layers[name] for name in TEXT_ENCODERS)
        return {"reading": 0, "encoding": encoder, "steps": layers["transformer"], "decoding": layers["vae"]}[phase]

    @property
    def resident_bytes(self) -> int:
        """The maximum size of the weights on the device between two images."""
        match self.offload:
            case "none" | "encoders":
                return self.loaded_bytes("steps")
            case "model":
                return max(self._weights_bytes(name) for name in NETWORKS)
        return 0  # "sequential"

    def working_bytes(self, phase: Phase, work: Workload) -> int:
        """Return the memory that a phase needs in addition to the loaded weights, to compute or to read files."""
        factors = self.spec.devices[self.device].memory
        configs = {name: network.config for name, network in self.network_sizes.networks.items()}
        t5_tokens = self.network_sizes.card.max_sequence_length
        match phase:
            case "reading":
                return self._reading_bytes()
            case "encoding":
                computing = factors.encode * self._bytes_per_value * encode_values(configs, t5_tokens)
                return max(int(computing), self._casting_bytes(TEXT_ENCODERS))
            case "steps":
                computing = factors.step * self._bytes_per_value * step_values(configs, t5_tokens, work)
                computing += self._widened_bytes("transformer")
                return max(int(computing), self._casting_bytes(("transformer",)))
        values = factors.decode * decode_values(configs, work, tiled=self.tiled_decode)
        values += tiles_values(work) if self.tiled_decode else 0
        return max(int(values * self._bytes_per_value), self._casting_bytes(("vae",)))

    @property
    def host_bytes(self) -> int:
        """The host memory that a placement on CUDA needs, because weights are first read into it. 0 on a CPU."""
        return sum(self._weights_bytes(name) for name in NETWORKS) if self.device == "cuda" else 0

    @property
    def moved_bytes(self) -> int:
        """The bytes that an image with a new prompt reads from disk (CPU), or copies to the device and back (CUDA)."""
        networks = self.network_sizes.networks
        match self.offload, self.device:
            case "encoders", "cpu":
                return sum(networks[name].stored_bytes for name in TEXT_ENCODERS)
            case "model", "cpu":
                return sum(network.stored_bytes for network in networks.values())
            case "model", "cuda":
                return 2 * sum(self._weights_bytes(name) for name in NETWORKS)  # Diffusers also copies them back
            case "sequential", _:
                others = sum(self._weights_bytes(name) for name in NETWORKS if name != "transformer")
                return others + self.network_sizes.card.steps * self._weights_bytes("transformer")
        return 0

    @property
    def _bytes_per_value(self) -> int:
        return self.spec.bytes_per_value(self.precision)

    def _weights_bytes(self, name: str) -> int:
        return weights_bytes(self.spec, self.precision, name, self.network_sizes.networks[name])

    def _reading_bytes(self) -> int:
        """Return the memory that reading the networks, one after the other, takes in addition to the loaded weights.

        The file of a network that is cast to another precision stays in memory until the network is loaded.
        """
        if self.offload not in {"none", "encoders"} or self.device == "cuda":
            return 0
        loaded, peak = 0, 0
        for name in NETWORKS:
            if self.offload == "encoders" and name in TEXT_ENCODERS:
                continue
            loaded += self._weights_bytes(name)
            peak = max(peak, loaded + self._file_bytes(name))
        return peak - loaded

    def _casting_bytes(self, names: Iterable[str]) -> int:
        """Return the size of the largest file that is in memory while a network is loaded on demand and cast.

        Return 0 on CUDA, because files are read into the host's memory.
        """
        if self.device != "cpu":
            return 0
        return max(self._file_bytes(name) if self._is_loaded_on_demand(name) else 0 for name in names)

    def _file_bytes(self, name: str) -> int:
        """Return the size of a network's file if the whole file is in memory during loading, otherwise 0."""
        is_copied = self._is_cast(name) and not self.spec.casts_in_place
        return self.network_sizes.networks[name].stored_bytes if is_copied else 0

    def _is_cast(self, name: str) -> bool:
        """Return whether loading converts a network: its files have another precision, or some weights become FP8."""
        stored_as = self.network_sizes.networks[name].stored_as
        return stored_as != self.spec.computed_in(self.precision) or self._has_fp8(name)

    def _has_fp8(self, name: str) -> bool:
        return fp8_values(self.spec, self.precision, name, self.network_sizes.networks[name].config) > 0

    def _widened_bytes(self, name: str) -> int:
        """Return the extra memory for multiplying with FP8 weights: copies of the largest layer in wider formats."""
        is_widened = self.spec.widens_fp8 and self._has_fp8(name)
        return _WIDENED_BYTES * self.network_sizes.networks[name].largest_layer if is_widened else 0

    def _is_loaded_on_demand(self, name: str) -> bool:
        return self.offload == "model" or (self.offload == "encoders" and name in TEXT_ENCODERS)
