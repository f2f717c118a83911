"""The graphs that `sd35.compile.onnx_export` wrote beside a checkpoint's weights, and that point into them."""

from pathlib import Path

from sd35.checkpoints.checkpoint import Checkpoint, weights_layout
from sd35.errors import CheckpointError

WEIGHTS_LAYOUT = "sd35.weights_layout"  # of a graph's metadata: of the files it points into, if it does


def are_there(checkpoint: Checkpoint) -> bool:
    """Whether they were written; without a look inside."""
    return place_of_graph(checkpoint, "transformer").is_file()


def place_of_graph(checkpoint: Checkpoint, part: str) -> Path:
    """Where a part's graph lies, written or not; the autoencoder's is of its decoder alone."""
    return checkpoint.directory / part / ("decoder.onnx" if part == "vae" else "model.onnx")


def own_graph(checkpoint: Checkpoint, part: str) -> Path:
    """The file of a part's graph. Raises CheckpointError where there is none."""
    path = place_of_graph(checkpoint, part)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; make the graphs, where PyTorch is installed, with: {_command(path)}")
    return path


def check_layout(path: Path, layout: str | None) -> None:
    """Raises CheckpointError where a graph's metadata names another layout than that of the weights beside it."""
    if layout and layout != weights_layout(path.parent):
        raise CheckpointError(
            f"{path} points into weights that were written anew; make the graphs again with: {_command(path)}"
        )


def _command(path: Path) -> str:
    return f"python -m sd35.compile.onnx_export {path.parent.parent}"
