"""The memory planner: computes the possible placements of checkpoints on a device, and their peak memory.

A placement says where each network is in memory. The planner reads no files and imports no runtime: callers pass all
sizes. docs/design/memory-planning.md explains which numbers are computed from shapes and which were measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from sd35.backends.options import TILE_PX, DeviceKind, Offload
from sd35.backends.registry import BACKENDS
from sd35.backends.spec import BackendSpec
from sd35.checkpoints.network_sizes import NetworkSizes
from sd35.planning.footprint import Workload, weights_bytes
from sd35.planning.placement import Location, NetworkPlacement, Phase

MARGIN = 0.1  # a prediction may be wrong by this fraction of the peak
PHASES: tuple[Phase, ...] = ("reading", "encoding", "steps", "decoding")


@dataclass(frozen=True)
class AvailableMemory:
    """The available memory of the device and of the host. On a CPU, both are the same memory.

    `host_bytes` is None if it is unknown, because the plan is for another machine.
    """

    device: DeviceKind
    device_bytes: int
    host_bytes: int | None


@dataclass(frozen=True)
class PlacementRequest:
    """The parameters of a plan. If `offload` or `tiled_decode` is None, the planner chooses it."""

    backend: str
    precision: str
    work: Workload
    offload: Offload | None = None
    tiled_decode: bool | None = None

    @property
    def spec(self) -> BackendSpec:
        """The description of the backend."""
        return BACKENDS[self.backend]


@dataclass(frozen=True)
class Placement:
    """A way to place the networks, and the memory that it takes.

    Attributes:
        offload: Which networks are not on the device all the time, see `Options`.
        tiled_decode: Whether large images are decoded in tiles.
        locations: The location of each network, by name.
        peaks: The peak memory of the device in each phase, including libraries.
        weights_bytes: The memory of libraries and weights on the device in the phase with the most.
        host_bytes: The memory of libraries and weights on the host of a CUDA device; 0 on a CPU.
        moved_bytes: The bytes that an image with a new prompt reads from disk; on CUDA, the bytes that it copies to the
            device and back.
    """

    offload: Offload
    tiled_decode: bool
    locations: dict[str, Location]
    peaks: dict[Phase, int]
    weights_bytes: int
    host_bytes: int
    moved_bytes: int

    @property
    def name(self) -> str:
        """The settings of the placement as text, such as "model, tiled"."""
        return self.offload + (", tiled" if self.tiled_decode else "")

    @property
    def peak_bytes(self) -> int:
        """The highest peak of all phases."""
        return max(self.peaks.values())

    @property
    def needed_bytes(self) -> int:
        """The peak plus the margin."""
        return int(self.peak_bytes * (1 + MARGIN))

    def fits(self, available: AvailableMemory) -> bool:
        """Return whether the placement, with the margin, fits in the available memory."""
        host_fits = available.host_bytes is None or self.host_bytes <= available.host_bytes
        return self.needed_bytes <= available.device_bytes and host_fits


@dataclass(frozen=True)
class Plan:
    """A request, and all placements for it, fastest first."""

    checkpoint_sizes: tuple[NetworkSizes, ...]
    request: PlacementRequest
    available: AvailableMemory
    placements: tuple[Placement, ...]

    @property
    def chosen(self) -> Placement | None:
        """The fastest placement that fits, or None."""
        return next((placement for placement in self.placements if placement.fits(self.available)), None)

    def weights_bytes(self, network: str) -> int:
        """Return the size of a network's weights in all checkpoints together."""
        spec, precision = self.request.spec, self.request.precision
        return sum(weights_bytes(spec, precision, network, sizes.networks[network]) for sizes in self.checkpoint_sizes)


def make_plan(checkpoint_sizes: Sequence[NetworkSizes], request: PlacementRequest, available: AvailableMemory) -> Plan:
    """Plan the placements of checkpoints that are served together. All checkpoints have the same placement."""
    placements = tuple(
        _compute_placement(checkpoint_sizes, request, available.device, offload, tiled_decode=tiled_decode)
        for offload, tiled_decode in _choices(request, available.device)
    )
    assert placements, f"no placement for {request}"
    return Plan(tuple(checkpoint_sizes), request, available, placements)


def _choices(request: PlacementRequest, device: DeviceKind) -> Iterator[tuple[Offload, bool]]:
    """Return the combinations of offload and tiling that the request and the backend allow, fastest first."""
    offloads = request.spec.devices[device].offloads if request.offload is None else (request.offload,)
    has_tiles = max(request.work.width_px, request.work.height_px) > TILE_PX
    tilings: tuple[bool, ...] = (False, True) if request.spec.can_tile and has_tiles else (False,)
    if request.tiled_decode is not None:
        tilings = (request.tiled_decode,)
    return product(offloads, tilings)


def _compute_placement(
    checkpoint_sizes: Sequence[NetworkSizes],
    request: PlacementRequest,
    device: DeviceKind,
    offload: Offload,
    *,
    tiled_decode: bool,
) -> Placement:
    """Compute the memory of a placement of all checkpoints.

    The resident weights of all checkpoints add up. Only one checkpoint at a time loads other weights and computes.
    """
    spec, precision = request.spec, request.precision
    placed = [NetworkPlacement(sizes, spec, precision, device, offload, tiled_decode) for sizes in checkpoint_sizes]
    library_bytes = spec.devices[device].memory.library_bytes
    resident_bytes = sum(each.resident_bytes for each in placed)
    # In each phase, the bytes on the device while the first, the second, ... checkpoint works.
    loaded = {
        phase: [library_bytes + resident_bytes - each.resident_bytes + each.loaded_bytes(phase) for each in placed]
        for phase in PHASES
    }
    peaks = {
        phase: max(
            weights + each.working_bytes(phase, request.work)
            for weights, each in zip(loaded[phase], placed, strict=True)
        )
        for phase in PHASES
    }
    return Placement(
        offload=offload,
        tiled_decode=tiled_decode,
        locations=placed[0].locations,
        peaks=peaks,
        weights_bytes=max(map(max, loaded.values())),
        host_bytes=library_bytes + sum(each.host_bytes for each in placed) if device == "cuda" else 0,
        moved_bytes=max(each.moved_bytes for each in placed),
    )
