"""The memory planner: decides where each part of the checkpoints lives, and says the peak that follows.

Pure: it is told all sizes. docs/architecture/12-memory-and-start-up.md says what is formula and what was measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sd35.backends.options import TILE_PX, DeviceKind, Offload
from sd35.checkpoints.network_sizes import NetworkSizes
from sd35.planning.footprint import RUNTIMES, Workload
from sd35.planning.placement import Home, NetworkPlacement, Phase, weights_bytes

MARGIN = 0.1  # of a predicted peak: what the prediction may err by
PHASES: tuple[Phase, ...] = ("reading", "encoding", "steps", "decoding")


@dataclass(frozen=True)
class AvailableMemory:
    """The memory there is: of the device that computes, and of the host, which on a CPU are one.

    `host_bytes` is None for a machine that is not here, and of which only the device is known.
    """

    device: DeviceKind
    device_bytes: int
    host_bytes: int | None


@dataclass(frozen=True)
class PlacementRequest:
    """What a plan is for. `offload` and `tiled_decode` are None where the plan is to choose."""

    backend: str
    precision: str
    work: Workload
    offload: Offload | None = None
    tiled_decode: bool | None = None


@dataclass(frozen=True)
class Placement:
    """A way to place the networks, and what follows from it.

    `homes`: where each network lives. `peaks`: the device's memory in each phase, libraries included. `weights_bytes`:
    the most of it that is libraries and weights. `host_bytes`: the same of the host beside a CUDA device, 0 on a CPU.
    `moved_bytes`: what an image with new text reads from disk, on CUDA what it brings to the device and back.
    """

    offload: Offload
    tiled_decode: bool
    homes: dict[str, Home]
    peaks: dict[Phase, int]
    weights_bytes: int
    host_bytes: int
    moved_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most memory of the device at once."""
        return max(self.peaks.values())

    @property
    def needed_bytes(self) -> int:
        """The peak and the margin."""
        return int(self.peak_bytes * (1 + MARGIN))

    def fits(self, room: AvailableMemory) -> bool:
        """Whether it stays in the memory there is, even where the prediction errs by its margin."""
        has_host = room.host_bytes is None or self.host_bytes <= room.host_bytes
        return self.needed_bytes <= room.device_bytes and has_host


@dataclass(frozen=True)
class Plan:
    """What was asked, and every way to place it, the fastest first."""

    all_network_sizes: tuple[NetworkSizes, ...]
    wanted: PlacementRequest
    room: AvailableMemory
    placements: tuple[Placement, ...]

    @property
    def chosen(self) -> Placement | None:
        """The fastest that fits, or None."""
        return next((placement for placement in self.placements if placement.fits(self.room)), None)

    def weights_bytes(self, network: str) -> int:
        """What a network's weights take in memory, of all checkpoints together."""
        return sum(
            weights_bytes(network_sizes, network, self.wanted.backend, self.wanted.precision)
            for network_sizes in self.all_network_sizes
        )


def make_plan(all_network_sizes: Sequence[NetworkSizes], wanted: PlacementRequest, room: AvailableMemory) -> Plan:
    """The plan for checkpoints that are served together, all placed in the same way."""
    placements = tuple(_placement(all_network_sizes, wanted, room.device, *way) for way in _ways(wanted, room.device))
    assert placements, f"no placement for {wanted}"
    return Plan(tuple(all_network_sizes), wanted, room, placements)


def _ways(wanted: PlacementRequest, device: DeviceKind) -> Iterator[tuple[Offload, bool]]:
    """What the backend can do there, the fastest first."""
    runtime = RUNTIMES[wanted.backend, device]
    is_larger = max(wanted.work.width_px, wanted.work.height_px) > TILE_PX
    both = (False, True) if runtime.tiles and is_larger else (False,)
    for offload in runtime.offloads if wanted.offload is None else (wanted.offload,):
        for tiled in both if wanted.tiled_decode is None else (wanted.tiled_decode,):
            yield offload, tiled


def _placement(
    all_network_sizes: Sequence[NetworkSizes],
    wanted: PlacementRequest,
    device: DeviceKind,
    offload: Offload,
    is_tiled: bool,  # noqa: FBT001
) -> Placement:
    """One way for all checkpoints: what stays of each adds up, and one works at a time."""
    network_placements = [
        NetworkPlacement(each, wanted.backend, wanted.precision, device, offload, is_tiled)
        for each in all_network_sizes
    ]
    libraries = RUNTIMES[wanted.backend, device].library_bytes
    stays = sum(network_placement.stays_bytes for network_placement in network_placements)
    held = {
        phase: [
            libraries + stays - network_placement.stays_bytes + network_placement.held_bytes(phase)
            for network_placement in network_placements
        ]
        for phase in PHASES
    }
    peaks = {
        phase: max(
            weights + network_placement.working_bytes(phase, wanted.work)
            for weights, network_placement in zip(held[phase], network_placements, strict=True)
        )
        for phase in PHASES
    }
    return Placement(
        offload=offload,
        tiled_decode=is_tiled,
        homes=network_placements[0].homes,
        peaks=peaks,
        weights_bytes=max(max(each) for each in held.values()),
        host_bytes=libraries + sum(network_placement.host_bytes for network_placement in network_placements)
        if device == "cuda"
        else 0,
        moved_bytes=max(network_placement.moved_bytes for network_placement in network_placements),
    )
