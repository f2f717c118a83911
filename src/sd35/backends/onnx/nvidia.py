"""Opens graphs in NVIDIA's layout, which are in BF16 or FP8 and made for TensorRT, for ONNX Runtime on a CPU.

Needs `onnx`.
"""

import onnxruntime

from sd35.backends.graphs.float32 import to_float32
from sd35.backends.graphs.interfaces import fitted_graph, interfaces_of
from sd35.backends.onnx.sessions import new_session, session_options
from sd35.checkpoints.build_cache import fingerprint_of
from sd35.checkpoints.checkpoint import Checkpoint


class NvidiaGraphs:
    """See `sd35.backends.graphs.backend.Graphs`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.graphs is not None
        self._graphs = checkpoint.graphs
        self._interfaces = interfaces_of(checkpoint)
        is_calibrated = self._graphs.transformer == "fp8"
        self.build = fingerprint_of(self._graphs.path("transformer").parent) if is_calibrated else None

    def open(self, part: str, threads: int) -> onnxruntime.InferenceSession:
        """See `Graphs`."""
        model, folder = fitted_graph(self._graphs, part, self._interfaces[part])
        to_float32(model)
        options = session_options(part, threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # else weights are rounded at each call
        return new_session(self._graphs.path(part), model.SerializeToString(), options)
