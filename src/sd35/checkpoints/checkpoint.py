"""A checkpoint on disk, and the identity of its files. A part is one of its folders, such as "vae" or "tokenizer"."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sd35.checkpoints.card import Card
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.layout import CARD_FILE, checkpoint_files
from sd35.checkpoints.network_config import read_config
from sd35.checkpoints.weights.parameters import CLIP, Weight, weights_in, weights_of_file
from sd35.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A directory in the Diffusers layout, or NVIDIA's graphs with such a directory for all other files.

    Attributes:
        name: The model name that requests use.
        directory: The directory in the Diffusers layout. With `graphs` or a single file, this is the base checkpoint's.
        card: The defaults and limits of its images.
        files: Weight files that replace those of the directory: single files and text encoders.
        graphs: NVIDIA's graphs. If set, all weights come from them.
        opened_as: The name or path that was passed to `open_checkpoint`.
    """

    name: str
    directory: Path
    card: Card
    files: tuple[Path, ...] = ()
    graphs: OfficialGraphs | None = None
    opened_as: str = ""

    @cached_property
    def revision(self) -> str:
        """The SHA-256 of the card, and of the names and contents of weights, configurations and tokenizers.

        Graphs that were exported into the directory do not affect it. Raises CheckpointError if a file cannot be read.
        """
        try:
            return self._compute_revision()
        except OSError as error:
            file = error.filename or self.directory
            raise CheckpointError(f"{file} cannot be read: {error.strerror}; check this file") from error

    def _compute_revision(self) -> str:
        """Compute `revision`. Raises OSError if a file cannot be read."""
        # The card's values are hashed instead of its file, because a card may also come from the registry.
        total = hashlib.sha256(json.dumps(asdict(self.card), sort_keys=True).encode())
        paths = (path for path in self.directory.rglob("*") if path.is_file() and _affects_revision(path))
        for name in checkpoint_files(path.relative_to(self.directory).as_posix() for path in paths):
            # Weights that `graphs` or `files` replace are not used, so they do not count.
            if not (".safetensors" in name and (self.graphs or name.split("/")[0] in self.replaced)):
                total.update(f"{name} {_sha256(self.directory / name)}\n".encode())
        for file in self.files:
            total.update(f"{_sha256(file)}\n".encode())
        for name, file in sorted(self.graphs.files().items()) if self.graphs else ():
            total.update(f"{name} {_sha256(file)}\n".encode())
        return total.hexdigest()

    @cached_property
    def replaced(self) -> dict[str, dict[str, Weight]]:
        """The weights in `files`: by part, then by parameter name.

        Raises CheckpointError if a file is damaged, or if two files hold the same part.
        """
        located: dict[str, dict[str, Weight]] = {}
        for file in self.files:
            for part, weights in weights_of_file(file).items():
                name = self._identify_clip(file, weights) if part == CLIP else part
                if name in located:
                    other = next(iter(located[name].values())).stored.file
                    raise CheckpointError(f"weights: {other} and {file} both contain the {name}; leave one of them out")
                located[name] = weights
        return located

    def weights(self, part: str) -> dict[str, Weight]:
        """Return where a part's parameters are, by name. Raises CheckpointError if a file is missing or damaged."""
        if part in self.replaced:
            return self.replaced[part]
        return weights_in(self.directory, part)

    def _identify_clip(self, file: Path, weights: dict[str, Weight]) -> str:
        """Return "text_encoder" or "text_encoder_2": the part with a CLIP of the same width as the weights in a file.

        The two published CLIPs have different widths. If this checkpoint's two CLIPs have the same width, the file name
        decides. Raises CheckpointError if neither width matches.
        """
        width = weights["text_model.embeddings.token_embedding.weight"].stored.shape[-1]
        widths = {part: self.config(part)["hidden_size"] for part in ("text_encoder", "text_encoder_2")}
        fitting = [part for part, expected in widths.items() if expected == width]
        if len(fitting) > 1:
            fitting = ["text_encoder_2" if "clip_g" in file.name else "text_encoder"]
        if not fitting:
            expected = " or ".join(map(str, widths.values()))
            raise CheckpointError(
                f"{file}: expected a CLIP of width {expected} for {self.name}, found {width}; leave the file out"
            )
        return fitting[0]

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """Read a part's configuration file.

        Raises CheckpointError if it cannot be read or is not valid. A lookup of a missing key in the returned dict also
        raises CheckpointError.
        """
        return read_config(self.directory / part / file)


def _affects_revision(path: Path) -> bool:
    """Return whether a file's content is part of the revision. Graphs are derived, and the card is hashed apart."""
    return path.suffix != ".onnx" and path.name != CARD_FILE


def _sha256(path: Path) -> str:
    """Return a file's SHA-256.

    Hugging Face's cache names large files by their SHA-256. For a link to such a file, the name is returned without
    reading the file.
    """
    if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name := path.readlink().name):
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
