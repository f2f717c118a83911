"""The `onnx` backend: runs a checkpoint's ONNX graphs with ONNX Runtime on a CPU, in float32. Needs no PyTorch.

The graphs are embedded (next to the checkpoint's weights), built by `sd35 compile`, or NVIDIA's. Graphs in BF16 and FP8
keep their rounded weights but compute in float32. FP8 graphs also round the inputs of FP8 layers.
"""

from functools import partial
from pathlib import Path

import onnxruntime

from sd35.backends.base import CHECK_FILES
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
# 1000: with 50 or more, a step is a sixth faster if nothing else runs. If an image is decoded during a step, spinning
# makes both slower.
_SPIN_US = 50


def open_backend(checkpoint: Checkpoint, options: Options) -> GraphBackend:
    """Open the checkpoint's graphs.

    Raises InvalidSetting if the checkpoint has separate weight files, CheckpointError if its card does not fit its
    graphs or a graph is damaged, and the errors of `graphs_of`.
    """
    check_weights(SPEC.name, checkpoint)
    return GraphBackend(SPEC.name, "onnxruntime", graphs_of(checkpoint, options), checkpoint, options)


def graphs_of(checkpoint: Checkpoint, options: Options) -> Graphs:
    """Return a checkpoint's graphs: NVIDIA's, those next to its weights, or those of `sd35 compile`.

    Raises:
        InvalidSetting: NVIDIA's graphs have another precision.
        NotCompiled: The graphs are not built.
        CheckpointError: A file of the checkpoint is missing or damaged.
        BackendUnavailable: The graphs must be rewritten, and the package `onnx` is not installed.
    """
    precision = GRAPH_PRECISIONS["float32" if options.precision == "auto" else options.precision]
    graphs = checkpoint.graphs
    if graphs is None:
        if precision == "fp32" and has_embedded_graphs(checkpoint):
            return Graphs(partial(_open_embedded, checkpoint))
        graphs = compiled_graphs(options.cache_dir, checkpoint, precision)
    elif options.precision not in {"auto", "float32"} and graphs.transformer != precision:
        own_precisions = [name for name, stored in GRAPH_PRECISIONS.items() if stored == graphs.transformer]
        raise InvalidSetting(
            f"precision: got {options.precision!r}; allowed with the graphs in {graphs.directory}:"
            f" {', '.join(['auto', 'float32', *own_precisions])}"
        )
    try:
        import onnx  # noqa: F401  needed to open the graphs
    except ModuleNotFoundError as error:
        reason = f"reading these graphs needs the package {error.name}, which is not installed"
        remedy = "Install it with: pip install 'sd35-fp8-mirror[graphs]'"
        raise BackendUnavailable("onnx", reason, remedy) from error
    build = fingerprint_of(graphs.path("transformer").parent) if graphs.transformer == "fp8" else None
    return Graphs(partial(_open_official, checkpoint, graphs), build)


def session_options(part: str, threads: int) -> onnxruntime.SessionOptions:
    """Return ONNX Runtime's options for a part's graph: the number of threads, and how long they spin."""
    spin_us = _SPIN_US if part == "transformer" else 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # By default, idle threads spin for a second. With other work on the machine, this slowed steps and loading by 50 %.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return options


def _open_embedded(checkpoint: Checkpoint, part: str, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph that is next to the checkpoint's weights."""
    path = find_embedded_graph(checkpoint, part)
    session = _open_session(path, path, session_options(part, threads))
    check_layout(path, session.get_modelmeta().custom_metadata_map.get(WEIGHTS_LAYOUT))
    return session


def _open_official(
    checkpoint: Checkpoint, graphs: OfficialGraphs, part: str, threads: int
) -> onnxruntime.InferenceSession:
    """Open a graph in NVIDIA's layout, after rewriting it to compute in float32."""
    # Imported here, because these modules need the package `onnx`, which is optional.
    from sd35.backends.graphs.float32 import to_float32
    from sd35.backends.graphs.interfaces import fitted_graph, interfaces_of

    model, folder = fitted_graph(graphs, part, interfaces_of(checkpoint)[part])
    to_float32(model)
    options = session_options(part, threads)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # otherwise weights are rounded at each call
    return _open_session(graphs.path(part), model.SerializeToString(), options)


def _open_session(path: Path, model: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a graph, from a file or from its bytes, on the CPU. Raises CheckpointError, which names the file `path`."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common base class
        raise CheckpointError(f"{path} cannot be loaded ({error}); {CHECK_FILES}") from error
