"""The common part of the `onnx` and `openvino` backends, which run a checkpoint's five graphs on a CPU.

Needs no PyTorch. The graphs come from `sd35.compile` or from NVIDIA, see `sd35.backends.onnx.backend`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from sd35.backends.base import DenoiseRow, Memory, TextEmbedding, check_finite
from sd35.backends.guidance import guided_velocities, timestep_of, transformer_rows
from sd35.backends.options import DeviceKind, Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import TEXT_ENCODERS
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.errors import CheckpointError, InvalidSetting
from sd35.host import HostMemory, cores
from sd35.tensors import LATENT_PX, Array


def check_weights(name: str, checkpoint: Checkpoint) -> None:
    """Raise InvalidSetting if a checkpoint has separate weight files, which graphs do not read.

    `name` is the name of the backend, for the error. The files come from --weights, or from --checkpoint with a file.
    """
    if checkpoint.files:
        files = ", ".join(map(str, checkpoint.files))
        raise InvalidSetting(
            f"backend: got {name!r}, which reads graphs and not the weight files {files}; use --backend diffusers, or"
            " leave out these files (from --weights or --checkpoint)"
        )


def memory_of(device: str) -> tuple[DeviceKind, Memory]:  # noqa: ARG001  the CPU is the only device
    """Return the kind of device, always "cpu", and the host's memory."""
    return "cpu", HostMemory()


class Graph(Protocol):
    """A graph with its weights loaded."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array], /) -> Sequence[Any]:
        """Compute the named outputs, and return them in that order."""


class Graphs(NamedTuple):
    """The five graphs of a checkpoint. In all runtimes, tensors have the same names and are in float32 or int32.

    Attributes:
        open: Opens a graph. The arguments are the part's name in the Diffusers layout ("vae" is the decoder) and the
            number of threads. Raises CheckpointError if the graph is missing or damaged, or belongs to another part.
        build: See `sd35.backends.base.Backend`.
    """

    open: Callable[[str, int], Graph]
    build: str | None = None


class GraphBackend:
    """Implements `sd35.backends.base.Backend`. Latents and embeddings are float32 NumPy arrays.

    Args:
        name: The name of the backend in the registry.
        library: The package of the runtime, to record its version.
        graphs: Opens the checkpoint's graphs.
        checkpoint: The checkpoint.
        options: The options of the backend.
    """

    can_skip_layers = False
    is_tiled = False
    is_compiled = False

    def __init__(self, name: str, library: str, graphs: Graphs, checkpoint: Checkpoint, options: Options) -> None:
        _check_positions(checkpoint)
        began_s = time.perf_counter()
        self.name = name
        self.precision = "float32" if options.precision == "auto" else options.precision
        self.memory = HostMemory()
        self.build = graphs.build
        self.versions = {each: version(each) for each in ("numpy", library, "tokenizers")}
        self._tokenizers = Tokenizers(checkpoint)
        self._graphs, self._threads = graphs, options.threads or cores()
        # With offload "encoders", a text encoder's graph is opened for each call and freed afterwards.
        resident = () if options.offload == "encoders" else TEXT_ENCODERS
        self._encoders = {part: graphs.open(part, self._threads) for part in resident}
        self._transformer = graphs.open("transformer", self._threads)
        self._decoder = graphs.open("vae", self._threads)
        self.startup_s = {"compile": time.perf_counter() - began_s}  # the runtime reads weights while it compiles
        vae = checkpoint.config("vae")
        self._scaling, self._shift = float(vae["scaling_factor"]), float(vae["shift_factor"])

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return one embedding per prompt, in order."""
        ids = self._tokenizers.encode(prompts)
        # For each CLIP, the projected output of shape [prompts, channels] and the tokens [prompts, tokens, channels].
        clips = [
            self._encoder(part).run(["text_embeddings", "hidden_states"], {"input_ids": part_ids})
            for part, part_ids in (("text_encoder", ids.clip_l), ("text_encoder_2", ids.clip_g))
        ]
        (t5,) = self._encoder("text_encoder_3").run(["text_embeddings"], {"input_ids": ids.t5})
        clip = np.concatenate([hidden for _, hidden in clips], axis=-1)
        # Pad the channels with zeros to T5's width.
        clip = np.pad(clip, ((0, 0), (0, 0), (0, t5.shape[-1] - clip.shape[-1])))
        embeddings = []
        for index in range(len(prompts)):
            tokens = np.concatenate([clip[index], t5[index]])
            pooled = np.concatenate([projected[index] for projected, _ in clips])
            embeddings.append(TextEmbedding(tokens, pooled, tokens.nbytes + pooled.nbytes))
        return embeddings

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float32[Array, "16 h w"]]:
        """Return one velocity per row. Guided and unguided rows share one call of the transformer."""
        assert not any(row.skip for row in rows), "can_skip_layers is False"
        parts = transformer_rows(rows)
        inputs = {
            "hidden_states": np.stack([row.latent for row, _ in parts]),
            "encoder_hidden_states": np.stack([embedding.tokens for _, embedding in parts]),
            "pooled_projections": np.stack([embedding.pooled for _, embedding in parts]),
            "timestep": np.array([timestep_of(row) for row, _ in parts]),
        }
        (velocities,) = self._transformer.run(["latent"], inputs)
        return guided_velocities(rows, velocities)

    def decode_latents(self, latents: Sequence[Float32[Array, "16 h w"]]) -> list[UInt8[Array, "h*8 w*8 3"]]:
        """Return one RGB image per latent."""
        (images,) = self._decoder.run(["images"], {"latent": np.stack(latents) / self._scaling + self._shift})
        with np.errstate(invalid="ignore"):  # inf - inf warns; check_finite reports it
            check_finite(float(images.sum()))
        pixels = (np.clip(images / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)
        return list(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))

    def _encoder(self, part: str) -> Graph:
        """Return a text encoder's graph. With the offload "encoders", it is opened from disk now."""
        return self._encoders[part] if self._encoders else self._graphs.open(part, self._threads)


def _check_positions(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the card allows larger images than the transformer's position table.

    A graph would generate wrong images of these sizes.
    """
    transformer = checkpoint.config("transformer")
    max_px = transformer["pos_embed_max_size"] * transformer["patch_size"] * LATENT_PX
    if checkpoint.card.side_px[1] > max_px:
        raise CheckpointError(
            f"{checkpoint.name}: side_px allows sides up to {checkpoint.card.side_px[1]} px, but the transformer only"
            f" {max_px} px; lower side_px in sd35.json, or in the checkpoint's entry of the registry"
        )
