"""Graphs next to a checkpoint's weights, which they refer to. `sd35.compile.onnx_export` writes them."""

from pathlib import Path

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.weights.safetensors_file import weights_layout
from sd35.errors import CheckpointError

WEIGHTS_LAYOUT = "sd35.weights_layout"  # a graph's metadata: the layout of the weight files that it refers to


def has_embedded_graphs(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has graphs next to its weights. Only checks that the transformer's graph exists."""
    return embedded_graph_path(checkpoint, "transformer").is_file()


def embedded_graph_path(checkpoint: Checkpoint, part: str) -> Path:
    """Return the path of a part's graph, which may not exist. The autoencoder's graph is only the decoder."""
    return checkpoint.directory / part / ("decoder.onnx" if part == "vae" else "model.onnx")


def find_embedded_graph(checkpoint: Checkpoint, part: str) -> Path:
    """Return the path of a part's graph. Raises CheckpointError if it does not exist."""
    path = embedded_graph_path(checkpoint, part)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; export the graphs with PyTorch: {_export_command(path)}")
    return path


def check_layout(path: Path, layout: str | None) -> None:
    """Compare `layout`, a graph's metadata, with the weights next to it. Raises CheckpointError if they differ."""
    if layout and layout != weights_layout(path.parent):
        raise CheckpointError(
            f"{path} refers to weights that were rewritten; export the graphs again: {_export_command(path)}"
        )


def _export_command(path: Path) -> str:
    """Return the command that exports the graphs of a checkpoint. `path` is the path of one of them."""
    return f"python -m sd35.compile.onnx_export {path.parent.parent}"
