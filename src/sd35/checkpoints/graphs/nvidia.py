"""NVIDIA's ONNX graphs of SD3.5, as they lie in `stabilityai/stable-diffusion-3.5-large-tensorrt` on Hugging Face.

`ONNX/{clip_l,clip_g,t5,vae}` and `ONNX/transformer/{bf16,fp8}` hold a graph each, and beside one of 2 GiB and more the
file of its weights. Tokenizers, scheduler and configurations come from a base checkpoint. What `sd35 compile` writes
has the same layout, in FP32 too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sd35.errors import CheckpointError

Transformer: TypeAlias = Literal["auto", "bf16", "fp8"]
_ROOT = "ONNX"
GRAPH_FILE = "model_optimized.onnx"
_FOLDERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5", "vae": "vae"}
_QUANTISATIONS: tuple[Literal["bf16", "fp8"], ...] = ("bf16", "fp8")


@dataclass(frozen=True)
class OfficialGraphs:
    """Those of one directory, which holds `ONNX`; `transformer` is the one of its transformers that is read.

    `transformer_at`: where that lies, if not in its place, as while it is built.
    """

    directory: Path
    transformer: Literal["fp32", "bf16", "fp8"]
    transformer_at: Path | None = None

    def path(self, part: str) -> Path:
        """The graph of a part, by the part's name in the Diffusers layout."""
        if part == "transformer" and self.transformer_at:
            return self.transformer_at / GRAPH_FILE
        return self.directory / _ROOT / self._folder(part) / GRAPH_FILE

    def files(self) -> dict[str, Path]:
        """Graphs and weights, by their names in the directory."""
        folders = [self.path(part).parent for part in (*_FOLDERS, "transformer")]
        paths = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        return {path.relative_to(self.directory).as_posix(): path for path in paths}

    def _folder(self, part: str) -> str:
        return f"transformer/{self.transformer}" if part == "transformer" else _FOLDERS[part]


def find_graphs(directory: Path, transformer: Transformer) -> OfficialGraphs | None:
    """The directory's graphs, or None where it is of another layout.

    `auto` takes the transformer that is there, in BF16 where both are. Raises CheckpointError where a graph is missing.
    """
    if not (directory / _ROOT).is_dir():
        return None
    asked = _QUANTISATIONS if transformer == "auto" else (transformer,)
    candidates = [OfficialGraphs(directory, each) for each in asked]
    there = next((each for each in candidates if each.path("transformer").is_file()), candidates[0])
    paths = [there.path(part) for part in (*_FOLDERS, "transformer")]
    if lacking := [path.relative_to(directory).as_posix() for path in paths if not path.is_file()]:
        raise CheckpointError(f"{directory} is not whole: {', '.join(lacking)} missing")
    return there
