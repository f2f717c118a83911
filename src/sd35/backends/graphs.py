"""Where the `onnx` backend's graphs are from: this project's own export, what `sd35 compile` wrote, or NVIDIA's.

Opened, they are alike: the same tensors by the same names, float32 and int32. The same is left to the backend, too:
putting the encoders' tokens together, guidance, the autoencoder's scale and shift.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnxruntime

from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint, weights_layout
from sd35.checkpoints.compiled_graphs import OF_PRECISION, compiled_graphs
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting

WEIGHTS_LAYOUT = "sd35.weights_layout"  # of a graph's metadata: of the files it points into, if it does


class Graphs(Protocol):
    """The five graphs of a checkpoint, by their parts' names in the Diffusers layout; "vae" is its decoder."""

    @property
    def build(self) -> str | None:
        """See `sd35.backends.contract.Backend`."""

    def open(self, part: str, threads: int, spin_us: int = 0) -> onnxruntime.InferenceSession:
        """A graph with its weights loaded. Raises CheckpointError where it is missing, broken or another part's.

        `spin_us`: how long a thread spins for more to do before it sleeps, microseconds.
        """


def graphs_of(checkpoint: Checkpoint, options: Options) -> Graphs:
    """The checkpoint's: NVIDIA's, those beside its weights, or those that were compiled.

    Raises BackendUnavailable where reading them takes a library that is not installed, InvalidSetting where NVIDIA's
    are of another precision, NotCompiled, CheckpointError.
    """
    wanted = OF_PRECISION["float32" if options.precision == "auto" else options.precision]
    if checkpoint.graphs is None:
        own = OwnGraphs(checkpoint.directory)
        if wanted == "fp32" and own.are_there:
            return own
        checkpoint = replace(checkpoint, graphs=compiled_graphs(options.cache_dir, checkpoint, wanted))
    elif options.precision not in {"auto", "float32"} and checkpoint.graphs.transformer != wanted:
        found = checkpoint.graphs.transformer
        raise InvalidSetting(f"precision: got {options.precision!r}; {checkpoint.graphs.directory} holds {found}")
    try:
        from sd35.backends.nvidia_graphs import NvidiaGraphs
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install 'sd35-fp8-mirror[graphs]'"
        raise BackendUnavailable("onnx", f"{error.name}, which reads NVIDIA's graphs, not installed", remedy) from error
    return NvidiaGraphs(checkpoint)


@dataclass(frozen=True)
class OwnGraphs:
    """Those that `sd35.compile.onnx_export` wrote beside the weights of a directory in the Diffusers layout."""

    directory: Path
    build: None = None

    @property
    def are_there(self) -> bool:
        """Whether they were written; without a look inside."""
        return (self.directory / "transformer" / "model.onnx").is_file()

    def open(self, part: str, threads: int, spin_us: int = 0) -> onnxruntime.InferenceSession:
        """See `Graphs`."""
        path = self.directory / part / ("decoder.onnx" if part == "vae" else "model.onnx")
        command = f"python -m sd35.compile.onnx_export {self.directory}"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; make the graphs, where PyTorch is installed, with: {command}")
        graph = new_session(path, path, session_options(threads, spin_us))
        layout = graph.get_modelmeta().custom_metadata_map.get(WEIGHTS_LAYOUT)
        if layout and layout != weights_layout(path.parent):
            raise CheckpointError(
                f"{path} points into weights that were written anew; make the graphs again with: {command}"
            )
        return graph


def session_options(threads: int, spin_us: int) -> onnxruntime.SessionOptions:
    """Those that all sessions share."""
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
