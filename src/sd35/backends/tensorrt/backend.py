"""The `tensorrt` backend: runs TensorRT engines on a GPU. `sd35 compile` builds them from its own or NVIDIA's graphs.

The code in this module is tested on a CPU, with networks of another runtime. `sd35.backends.tensorrt.runtime`, which
runs the engines, has not been run on a GPU.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sd35.backends.base import DenoiseRow, Memory, TextEmbedding, check_finite
from sd35.backends.cuda_memory import CudaMemory
from sd35.backends.guidance import guided_velocities, timestep_of, transformer_rows
from sd35.backends.options import DeviceKind, Options
from sd35.backends.tensorrt.flavour import find_flavour, known_architectures
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GRAPH_PRECISIONS, Target, compiled_engines
from sd35.checkpoints.network_sizes import TEXT_ENCODERS
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.errors import BackendUnavailable, InvalidSetting
from sd35.tensors import Array

_Item = TypeVar("_Item")


class Networks(Protocol):
    """The five networks of a checkpoint. Tensors are on `device` and have the same names as in NVIDIA's graphs."""

    @property
    def device(self) -> torch.device:
        """The device that the networks compute on."""

    @property
    def graph(self) -> str | None:
        """The fingerprint of the graph that the transformer was built from, see `BuiltEngine`."""

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the libraries that affect results, by name."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Return a context manager in which no other thread computes with the networks."""

    def max_batch(self, part: str) -> int:
        """Return the largest number of rows in a batch of a network."""

    def run(self, part: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run a network and return its outputs. Casts inputs to the network's types. Call it inside `exclusive`."""


def open_backend(checkpoint: Checkpoint, options: Options) -> "TensorRtBackend":
    """Open the checkpoint's engines.

    Raises:
        InvalidSetting: The precision or the device is not supported.
        BackendUnavailable: TensorRT or the GPU is missing, or TensorRT does not support the GPU.
        NotCompiled: An engine is not built.
        CheckpointError: An engine cannot be loaded.
    """
    precision = _precision_of(checkpoint, options.precision)
    device = _resolve_device(options.device)
    flavour = find_flavour()
    gpu = "sm{}{}".format(*torch.cuda.get_device_capability(device))
    if (known := known_architectures(flavour)) and gpu not in known:
        reason = f"{flavour.name} {flavour.version} supports {', '.join(known)}; the GPU is {gpu}"
        remedy = "If standard TensorRT supports it, run `pip install tensorrt`. Otherwise choose another --backend."
        raise BackendUnavailable("tensorrt", reason, remedy)
    target = Target(flavour.name, flavour.version, gpu)
    built = compiled_engines(options.cache_dir, checkpoint, GRAPH_PRECISIONS[precision], target)
    from sd35.backends.tensorrt.runtime import EngineNetworks

    began_s = time.perf_counter()
    memory = CudaMemory(device)
    streams_weights = options.offload == "sequential"
    networks = EngineNetworks(flavour, built, checkpoint.card, device, memory if streams_weights else None)
    return TensorRtBackend(checkpoint, precision, networks, memory, {"read": time.perf_counter() - began_s})


def memory_of(device: str) -> tuple[DeviceKind, Memory]:
    """Return the kind of device, always "cuda", and its memory.

    Raises InvalidSetting if `device` is not a name that the backend supports, BackendUnavailable if the device is
    missing.
    """
    return "cuda", CudaMemory(_resolve_device(device))


class TensorRtBackend:
    """Implements `sd35.backends.base.Backend`.

    Latents and embeddings are torch tensors on the device: float32 if that is the precision, otherwise BF16.
    """

    name = "tensorrt"
    can_skip_layers = False
    is_tiled = False
    is_compiled = False

    def __init__(
        self, checkpoint: Checkpoint, precision: str, networks: Networks, memory: Memory, startup_s: Mapping[str, float]
    ) -> None:
        self.precision, self.memory, self.startup_s = precision, memory, startup_s
        self.build = networks.graph if precision == "fp8" else None
        self._networks, self._device = networks, networks.device
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._tokenizers = Tokenizers(checkpoint)
        vae = checkpoint.config("vae")
        self._scaling, self._shift = float(vae["scaling_factor"]), float(vae["shift_factor"])

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that affect results, by name."""
        return {**{name: version(name) for name in ("tokenizers", "torch")}, **self._networks.versions}

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return one embedding per prompt, in order."""
        with self._networks.exclusive():
            chunks = _chunks(prompts, min(map(self._networks.max_batch, TEXT_ENCODERS)))
            return [embedding for chunk in chunks for embedding in self._encode(chunk)]

    @torch.no_grad()
    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float[Tensor, "16 h w"]]:
        """Return one velocity per row, in the dtype of latents."""
        assert not any(row.skip for row in rows), "can_skip_layers is False"
        with self._networks.exclusive():
            latents = {id(row): self._to_device(torch.as_tensor(row.latent)) for row in rows}
            velocities: list[Tensor] = []
            for parts in _chunks(transformer_rows(rows), self._networks.max_batch("transformer")):
                inputs = {
                    "hidden_states": torch.stack([latents[id(row)] for row, _ in parts]),
                    "encoder_hidden_states": torch.stack([embedding.tokens for _, embedding in parts]),
                    "pooled_projections": torch.stack([embedding.pooled for _, embedding in parts]),
                    "timestep": torch.tensor([float(timestep_of(row)) for row, _ in parts], device=self._device),
                }
                velocities += self._to_device(self._networks.run("transformer", inputs)["latent"]).unbind()
            return guided_velocities(rows, velocities)

    @torch.no_grad()
    def decode_latents(self, latents: Sequence[Float[Tensor, "16 h w"]]) -> list[UInt8[Array, "h*8 w*8 3"]]:
        """Return one RGB image per latent. Converts to 8 bits on the device, to copy less to the host."""
        decoded: list[Array] = []
        with self._networks.exclusive():
            for chunk in _chunks(latents, self._networks.max_batch("vae")):
                stacked = torch.stack([self._to_device(torch.as_tensor(latent)) for latent in chunk])
                inputs = {"latent": stacked / self._scaling + self._shift}
                images = self._to_device(self._networks.run("vae", inputs)["images"])
                check_finite(float(images.sum(dtype=torch.float32)))
                pixels = ((images / 2 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)
                decoded.extend(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        return decoded

    def _encode(self, prompts: Sequence[str]) -> Iterator[TextEmbedding]:
        """Yield one embedding per prompt, composed as in Diffusers' `encode_prompt`; see `TextEmbedding`."""
        ids = self._tokenizers.encode(prompts)
        clip_l = self._run_encoder("text_encoder", ids.clip_l)
        clip_g = self._run_encoder("text_encoder_2", ids.clip_g)
        t5 = self._run_encoder("text_encoder_3", ids.t5)["text_embeddings"]
        clip = torch.cat([clip_l["hidden_states"], clip_g["hidden_states"]], dim=-1)
        clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        tokens = torch.cat([clip, t5], dim=-2)
        pooled = torch.cat([clip_l["text_embeddings"], clip_g["text_embeddings"]], dim=-1)
        # Clones, because an embedding in the cache would otherwise keep the tensors of the whole batch in memory.
        for token, pool in zip(tokens, pooled, strict=True):
            yield TextEmbedding(token.clone(), pool.clone(), token.nbytes + pool.nbytes)

    def _run_encoder(self, part: str, ids: Array) -> dict[str, Tensor]:
        """Run a text encoder on token IDs, and return its outputs by name."""
        inputs = {"input_ids": torch.from_numpy(ids.astype(np.int32)).to(self._device)}
        return {name: self._to_device(output) for name, output in self._networks.run(part, inputs).items()}

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the device and cast it to the dtype of latents and embeddings."""
        return tensor.to(self._device, self._dtype)


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Return chunks of at most `size` items, in order."""
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _precision_of(checkpoint: Checkpoint, requested: str) -> str:
    """Return the precision to compute in, given the setting.

    Raises InvalidSetting if the checkpoint has NVIDIA's graphs, and they are in another precision.
    """
    if checkpoint.graphs is None:
        return "bfloat16" if requested == "auto" else requested
    (own,) = (name for name, of_graphs in GRAPH_PRECISIONS.items() if of_graphs == checkpoint.graphs.transformer)
    if requested not in {"auto", own}:
        directory = checkpoint.graphs.directory
        raise InvalidSetting(f"precision: got {requested!r}; allowed with the graphs in {directory}: auto, {own}")
    return own


def _resolve_device(name: str) -> torch.device:
    """Return the CUDA device for a value of the setting `device`. "auto" is the first device.

    Raises InvalidSetting if the name is not supported, BackendUnavailable if there is no such device.
    """
    kind, _, index = name.partition(":")
    if kind not in {"auto", "cuda"} or (index and not index.isdecimal()):
        raise InvalidSetting(f"device: got {name!r}; the tensorrt backend allows: auto, cuda, cuda:1, ...")
    number = int(index or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        reason = f"there is no device cuda:{number}: the number of devices that PyTorch sees is {count}"
        if not torch.backends.cuda.is_built():
            remedy = "Install a build of PyTorch for CUDA."
        elif not count:
            remedy = "Update NVIDIA's driver to the version that this PyTorch needs, or choose another --backend."
        else:
            remedy = f"Choose one of these with --device: {', '.join(f'cuda:{each}' for each in range(count))}."
        raise BackendUnavailable("tensorrt", reason, remedy)
    return torch.device("cuda", number)
