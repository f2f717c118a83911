"""The `openvino` backend: OpenVINO on a CPU."""

from sd35.backends.spec import BYTES_PER_VALUE, BackendSpec, DeviceSpec, MemoryUse
from sd35.checkpoints.network_sizes import Network

_MAX_VALUES_COMPILED_TWICE = 50_000_000


def is_compiled_twice(name: str, values: int) -> bool:
    """Return whether a network with `values` parameters is compiled twice: for any shape, and for one image's shape.

    This makes steps of a small transformer faster. Steps of a large one take so long that it would not matter.
    """
    return name == "transformer" and values < _MAX_VALUES_COMPILED_TWICE


def _extra_bytes(name: str, network: Network, precision: str) -> int:
    """Return the bytes that a network takes in addition to its compiled weights.

    OpenVINO keeps the float32 weights in memory too. A second compilation has its own copy of all weights.
    """
    unpacked_bytes = network.values * BYTES_PER_VALUE["float32"]
    if not is_compiled_twice(name, network.values):
        return unpacked_bytes
    return 2 * unpacked_bytes + network.values * BYTES_PER_VALUE[precision]


SPEC = BackendSpec(
    name="openvino",
    module="sd35.backends.openvino.backend",
    needs=("openvino",),
    remedy="Install it with: pip install 'sd35-fp8-mirror[openvino]'",
    devices={
        "cpu": DeviceSpec(
            precisions=("float32", "bfloat16"),
            offloads=("none", "encoders"),
            memory=MemoryUse(library_bytes=286_000_000, encode=8, step=70, decode=5),
        )
    },
    needs_graphs=True,
    extra_bytes=_extra_bytes,
    casts_in_place=True,
)
