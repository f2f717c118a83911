"""NVIDIA's ONNX graphs of SD3.5, as in `stabilityai/stable-diffusion-3.5-large-tensorrt` on Hugging Face.

`ONNX/{clip_l,clip_g,t5,vae}` and `ONNX/transformer/{bf16,fp8}` contain one graph each. A graph of 2 GiB or more has its
weights in a separate file. Tokenizers, scheduler and configurations come from a base checkpoint. `sd35 compile` writes
the same layout, also in FP32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sd35.errors import CheckpointError

TransformerPrecision: TypeAlias = Literal["auto", "bf16", "fp8"]
_ROOT = "ONNX"
GRAPH_FILE = "model_optimized.onnx"
FOLDERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5", "vae": "vae"}
_PRECISIONS: tuple[Literal["bf16", "fp8"], ...] = ("bf16", "fp8")


@dataclass(frozen=True)
class OfficialGraphs:
    """Graphs in NVIDIA's layout.

    Attributes:
        directory: The directory that contains `ONNX`.
        transformer: The precision of the transformer's graph.
        transformer_at: The folder of the transformer's graph while it is built, instead of the one in `directory`.
    """

    directory: Path
    transformer: Literal["fp32", "bf16", "fp8"]
    transformer_at: Path | None = None

    def path(self, part: str) -> Path:
        """Return the path of a part's graph. `part` is a name in the Diffusers layout."""
        if part == "transformer" and self.transformer_at:
            return self.transformer_at / GRAPH_FILE
        folder = f"transformer/{self.transformer}" if part == "transformer" else FOLDERS[part]
        return self.directory / _ROOT / folder / GRAPH_FILE

    def files(self) -> dict[str, Path]:
        """Return the files of all graphs, by their paths relative to the directory."""
        folders = [self.path(part).parent for part in (*FOLDERS, "transformer")]
        paths = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        return {path.relative_to(self.directory).as_posix(): path for path in paths}


def find_graphs(directory: Path, transformer: TransformerPrecision) -> OfficialGraphs | None:
    """Return the graphs in a directory, or None if it does not have NVIDIA's layout.

    With "auto", an existing transformer is selected: BF16 if BF16 and FP8 exist. Raises CheckpointError if a graph is
    missing.
    """
    if not (directory / _ROOT).is_dir():
        return None
    precisions = _PRECISIONS if transformer == "auto" else (transformer,)
    candidates = [OfficialGraphs(directory, precision) for precision in precisions]
    graphs = next((each for each in candidates if each.path("transformer").is_file()), candidates[0])
    paths = [graphs.path(part) for part in (*FOLDERS, "transformer")]
    if missing := [path.relative_to(directory).as_posix() for path in paths if not path.is_file()]:
        raise CheckpointError(f"{directory} is incomplete: {', '.join(missing)} missing; download or copy them")
    return graphs
