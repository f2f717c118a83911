"""The `onnx` backend: a checkpoint's ONNX graphs on a CPU, by ONNX Runtime, in float32. Needs no PyTorch.

In FP8 and BF16 it computes in float32 what such a graph rounds: the numbers that a GPU would see, not its speed.
"""

from sd35.backends.contract import Memory
from sd35.backends.footprint import DeviceKind
from sd35.backends.graph_backend import OF_ALL, GraphBackend
from sd35.backends.graphs import graphs_of
from sd35.backends.host import HostMemory
from sd35.backends.options import Options
from sd35.backends.own_graphs import refuse_files
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.compiled_graphs import OF_PRECISION


def open_backend(checkpoint: Checkpoint, options: Options) -> GraphBackend:
    """Raises InvalidSetting for what is beyond a CPU in float32, CheckpointError where a graph is missing or broken.

    And BackendUnavailable where NVIDIA's graphs cannot be read for lack of a library.
    """
    refuse_files(checkpoint, "onnx")
    options.check("onnx", precision=("auto", *OF_PRECISION), **OF_ALL)
    return GraphBackend("onnx", "onnxruntime", graphs_of(checkpoint, options), checkpoint, options)


def memory_of(device: str) -> tuple[DeviceKind, Memory]:  # noqa: ARG001  there is but one
    """The host's."""
    return "cpu", HostMemory()
