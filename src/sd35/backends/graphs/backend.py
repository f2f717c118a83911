"""A checkpoint's five graphs on a CPU, whatever runtime computes them. Needs no PyTorch.

The graphs are those of `sd35.compile` or NVIDIA's: see `sd35.backends.onnx.sessions`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

from sd35.backends.base import DenoiseRow, Memory, TextEmbedding, check_finite
from sd35.backends.guidance import guided_velocities, timestep_of, transformer_rows
from sd35.backends.options import DeviceKind, Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.errors import CheckpointError, InvalidSetting
from sd35.host import HostMemory, cores
from sd35.tensors import LATENT_PX, Array


def check_weights(name: str, checkpoint: Checkpoint) -> None:
    """Raise InvalidSetting if a checkpoint has weights in files of their own, which graphs do not read."""
    if checkpoint.files:
        files = ", ".join(map(str, checkpoint.files))
        raise InvalidSetting(
            f"weights: got {files}; the {name} backend reads graphs that point into a checkpoint's own files"
        )


def memory_of(device: str) -> tuple[DeviceKind, Memory]:  # noqa: ARG001  there is but one
    """The host's."""
    return "cpu", HostMemory()


class Graph(Protocol):
    """A graph that computes."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array], /) -> Sequence[Any]:
        """The outputs of those names, in their order."""


class Graphs(Protocol):
    """The five graphs of a checkpoint, by their parts' names in the Diffusers layout; "vae" is its decoder.

    The same tensors by the same names, float32 and int32, wherever they are from.
    """

    @property
    def build(self) -> str | None:
        """See `sd35.backends.base.Backend`."""

    def open(self, part: str, threads: int) -> Graph:
        """A graph with its weights loaded. Raises CheckpointError where it is missing, broken or another part's."""


_Opens: TypeAlias = Callable[[], Graph]


class GraphBackend:
    """See `sd35.backends.base.Backend`. Latents and embeddings are float32 NumPy arrays."""

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
        threads = options.threads or cores()
        parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
        opens = [partial(graphs.open, part, threads) for part in parts]
        # Each gives its encoder's graph: the one that it keeps, or one that is opened anew and freed after its call.
        evicts = options.offload == "encoders"
        encoders: list[_Opens] = [*opens] if evicts else [_kept(open_()) for open_ in opens]
        self._clip_l, self._clip_g, self._t5 = encoders
        self._transformer = graphs.open("transformer", threads)
        self._decoder = graphs.open("vae", threads)
        self.startup_s = {"compile": time.perf_counter() - began_s}  # the runtime reads weights while it compiles
        vae = checkpoint.config("vae")
        self._scaling, self._shift = float(vae["scaling_factor"]), float(vae["shift_factor"])

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """One embedding per prompt, in order."""
        ids = self._tokenizers.encode(prompts)
        clips = [
            graph().run(["text_embeddings", "hidden_states"], {"input_ids": part})
            for graph, part in ((self._clip_l, ids.clip_l), (self._clip_g, ids.clip_g))
        ]
        (t5,) = self._t5().run(["text_embeddings"], {"input_ids": ids.t5})
        clip = np.concatenate([hidden for _, hidden in clips], axis=-1)
        clip = np.pad(clip, ((0, 0), (0, 0), (0, t5.shape[-1] - clip.shape[-1])))
        embeddings = []
        for index in range(len(prompts)):
            tokens = np.concatenate([clip[index], t5[index]])
            pooled = np.concatenate([projected[index] for projected, _ in clips])
            embeddings.append(TextEmbedding(tokens, pooled, tokens.nbytes + pooled.nbytes))
        return embeddings

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float32[Array, "16 h w"]]:
        """Return each row's velocity; guided and unguided rows share one call of the transformer."""
        assert not any(row.skip for row in rows), "see can_skip_layers"
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
        """One RGB image per latent."""
        (images,) = self._decoder.run(["images"], {"latent": np.stack(latents) / self._scaling + self._shift})
        with np.errstate(invalid="ignore"):  # infinities of both signs: what is looked for
            check_finite(float(images.sum()))
        pixels = (np.clip(images / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)
        return list(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))


def _kept(graph: Graph) -> _Opens:
    return lambda: graph


def _check_positions(checkpoint: Checkpoint) -> None:
    """A graph computes nonsense beyond its position table, where Diffusers raises."""
    transformer = checkpoint.config("transformer")
    most_px = transformer["pos_embed_max_size"] * transformer["patch_size"] * LATENT_PX
    if checkpoint.card.side_px[1] > most_px:
        raise CheckpointError(
            f"{checkpoint.name}: its card allows sides of {checkpoint.card.side_px[1]} px, its transformer {most_px}"
        )
