"""The `onnx` backend: runs a checkpoint's ONNX graphs with ONNX Runtime on a CPU, in float32. Needs no PyTorch.

The graphs are those next to the checkpoint's weights, those of `sd35 compile`, or NVIDIA's. Graphs in BF16 and FP8 keep
their rounded weights but compute in float32. FP8 graphs also round the inputs of FP8 layers.
"""

from functools import partial
from pathlib import Path

import onnxruntime

from sd35.backends.graphs.backend import GraphBackend, Graphs, check_weights, memory_of
from sd35.backends.onnx.spec import SPEC
from sd35.backends.options import Options
from sd35.checkpoints.build_cache import fingerprint_of
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS, compiled_graphs
from sd35.checkpoints.graphs.embedded import WEIGHTS_LAYOUT, check_layout, find_embedded_graph, has_embedded_graphs
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting

__all__ = ["memory_of", "open_backend"]

# How long an idle thread of the transformer spins before it sleeps, in microseconds. Measured with 0, 20, 50, 100 and
# 1000: from about 50 on, a step alone is a sixth faster. During a decoding, any spinning slows both.
_SPIN_US = 50


def open_backend(checkpoint: Checkpoint, options: Options) -> GraphBackend:
    """Open the checkpoint's graphs. Raises InvalidSetting, CheckpointError and the errors of `graphs_of`."""
    check_weights(SPEC.name, checkpoint)
    return GraphBackend(SPEC.name, "onnxruntime", graphs_of(checkpoint, options), checkpoint, options)


def graphs_of(checkpoint: Checkpoint, options: Options) -> Graphs:
    """Return a checkpoint's graphs: NVIDIA's, those next to its weights, or those of `sd35 compile`.

    Raises BackendUnavailable if `onnx` is needed and not installed, InvalidSetting if NVIDIA's graphs have another
    precision, NotCompiled if the graphs are not built, CheckpointError.
    """
    precision = GRAPH_PRECISIONS["float32" if options.precision == "auto" else options.precision]
    graphs = checkpoint.graphs
    if graphs is None:
        if precision == "fp32" and has_embedded_graphs(checkpoint):
            return Graphs(partial(_open_embedded, checkpoint))
        graphs = compiled_graphs(options.cache_dir, checkpoint, precision)
    elif options.precision not in {"auto", "float32"} and graphs.transformer != precision:
        raise InvalidSetting(f"precision: got {options.precision!r}; {graphs.directory} contains {graphs.transformer}")
    try:
        import onnx  # noqa: F401  needed to open the graphs
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install 'sd35-fp8-mirror[graphs]'"
        raise BackendUnavailable("onnx", f"{error.name}, needed to read its graphs, not installed", remedy) from error
    build = fingerprint_of(graphs.path("transformer").parent) if graphs.transformer == "fp8" else None
    return Graphs(partial(_open_official, checkpoint, graphs), build)


def session_options(part: str, threads: int) -> onnxruntime.SessionOptions:
    """Return the options that all sessions of a part share."""
    spin_us = _SPIN_US if part == "transformer" else 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # By default, threads spin for a second. With other work on the machine, that made steps and loading 50 % slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return options


def _open_embedded(checkpoint: Checkpoint, part: str, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph that is next to the checkpoint's weights."""
    path = find_embedded_graph(checkpoint, part)
    session = _session(path, path, session_options(part, threads))
    check_layout(path, session.get_modelmeta().custom_metadata_map.get(WEIGHTS_LAYOUT))
    return session


def _open_official(
    checkpoint: Checkpoint, graphs: OfficialGraphs, part: str, threads: int
) -> onnxruntime.InferenceSession:
    """Open a graph in NVIDIA's layout, after rewriting it to compute in float32."""
    from sd35.backends.graphs.float32 import to_float32
    from sd35.backends.graphs.interfaces import fitted_graph, interfaces_of

    model, folder = fitted_graph(graphs, part, interfaces_of(checkpoint)[part])
    to_float32(model)
    options = session_options(part, threads)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # otherwise weights are rounded at each call
    return _session(graphs.path(part), model.SerializeToString(), options)


def _session(path: Path, model: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a model on the CPU. `path` is for errors. Raises CheckpointError."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common base class
        raise CheckpointError(
            f"{path} cannot be loaded: {error}; if it is damaged, download or build it again"
        ) from error
