"""The `onnx` backend: a checkpoint's ONNX graphs on a CPU, by ONNX Runtime, in float32. Needs no PyTorch.

In FP8 and BF16 it computes in float32 what such a graph rounds: the numbers that a GPU would see, not its speed.
"""

from sd35.backends.graphs.backend import GraphBackend, check_asked, memory_of
from sd35.backends.onnx.sessions import graphs_of
from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS

__all__ = ["memory_of", "open_backend"]


def open_backend(checkpoint: Checkpoint, options: Options) -> GraphBackend:
    """Raises InvalidSetting for what is beyond a CPU in float32, CheckpointError where a graph is missing or broken.

    And BackendUnavailable where NVIDIA's graphs cannot be read for lack of a library.
    """
    check_asked("onnx", checkpoint, options, tuple(GRAPH_PRECISIONS))
    return GraphBackend("onnx", "onnxruntime", graphs_of(checkpoint, options), checkpoint, options)
