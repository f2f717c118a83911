"""The `onnx` backend's graphs, by ONNX Runtime: this project's own export, what `sd35 compile` wrote, or NVIDIA's.

Opened, they are alike: the same tensors by the same names, float32 and int32. The same is left to the backend, too:
putting the encoders' tokens together, guidance, the autoencoder's scale and shift.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime

from sd35.backends.graphs.backend import Graphs
from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS, compiled_graphs
from sd35.checkpoints.graphs.embedded import WEIGHTS_LAYOUT, check_layout, find_embedded_graph, has_embedded_graphs
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting

# How long a thread of the transformer's spins for its next share of a step before it sleeps, microseconds. Of 0, 20,
# 50, 100 and 1000: alone, a step is a sixth faster from about 50 on; beside a decoding, each of them slows both.
_SPIN_US = 50


def graphs_of(checkpoint: Checkpoint, options: Options) -> Graphs:
    """The checkpoint's: NVIDIA's, those beside its weights, or those that were compiled.

    Raises BackendUnavailable where reading them takes a library that is not installed, InvalidSetting where NVIDIA's
    are of another precision, NotCompiled, CheckpointError.
    """
    wanted = GRAPH_PRECISIONS["float32" if options.precision == "auto" else options.precision]
    if checkpoint.graphs is None:
        if wanted == "fp32" and has_embedded_graphs(checkpoint):
            return OwnGraphs(checkpoint)
        checkpoint = replace(checkpoint, graphs=compiled_graphs(options.cache_dir, checkpoint, wanted))
    elif options.precision not in {"auto", "float32"} and checkpoint.graphs.transformer != wanted:
        found = checkpoint.graphs.transformer
        raise InvalidSetting(f"precision: got {options.precision!r}; {checkpoint.graphs.directory} holds {found}")
    try:
        from sd35.backends.onnx.nvidia import NvidiaGraphs
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install 'sd35-fp8-mirror[graphs]'"
        raise BackendUnavailable("onnx", f"{error.name}, which reads NVIDIA's graphs, not installed", remedy) from error
    return NvidiaGraphs(checkpoint)


@dataclass(frozen=True)
class OwnGraphs:
    """Those beside the weights of a directory in the Diffusers layout."""

    checkpoint: Checkpoint
    build: None = None

    def open(self, part: str, threads: int) -> onnxruntime.InferenceSession:
        """See `Graphs`."""
        path = find_embedded_graph(self.checkpoint, part)
        graph = new_session(path, path, session_options(part, threads))
        check_layout(path, graph.get_modelmeta().custom_metadata_map.get(WEIGHTS_LAYOUT))
        return graph


def session_options(part: str, threads: int) -> onnxruntime.SessionOptions:
    """Those that all sessions of a part share."""
    spin_us = _SPIN_US if part == "transformer" else 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # By default threads spin for a second: that made a step slower by half, and loading too, beside other work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return options


def new_session(path: Path, model: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session of a model on the CPU; `path` is what errors name. Raises CheckpointError."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
