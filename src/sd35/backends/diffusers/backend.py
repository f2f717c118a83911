"""The `diffusers` backend: PyTorch, with the networks and the text encoding of Diffusers.

On a CPU it is tested against `StableDiffusion3Pipeline`. It has not been run on CUDA.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sd35.backends.base import DenoiseRow, Memory, TextEmbedding, check_finite
from sd35.backends.cuda_memory import CudaMemory
from sd35.backends.diffusers.fp8 import COMPUTE_DTYPE, FP8_PRECISIONS, load_in_fp8, resolve_fp8
from sd35.backends.diffusers.loading import Load, load_network, load_pipeline
from sd35.backends.diffusers.sequential_offload import SequentialOffload, WorkingMemory, bytes_of, weights_of
from sd35.backends.diffusers.spec import SPEC
from sd35.backends.diffusers.torch_compile import compile_blocks
from sd35.backends.guidance import (
    Layers,
    TransformerRow,
    guided_velocities,
    skipping_rows,
    timestep_of,
    transformer_rows,
)
from sd35.backends.options import TILE_PX, DeviceKind, Offload, Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import NETWORKS, TEXT_ENCODERS
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting
from sd35.host import HostMemory
from sd35.tensors import LATENT_PX, Array

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    **dict.fromkeys(FP8_PRECISIONS, COMPUTE_DTYPE),
}


def open_backend(checkpoint: Checkpoint, options: Options) -> "DiffusersBackend":
    """Open the backend and load the checkpoint's weights.

    Raises InvalidSetting for options that it does not support, BackendUnavailable if the device does not exist,
    CheckpointError if weights are missing or cannot be read.
    """
    if checkpoint.graphs:
        raise CheckpointError(
            f"{checkpoint.graphs.directory} holds ONNX graphs, which the onnx and tensorrt backends read"
        )
    device = _device(options.device)
    if options.torch_compile and options.offload in {"model", "sequential"}:
        raise InvalidSetting(
            f"torch_compile: got 'on' with offload {options.offload!r}; turn it off, or set offload to none or encoders"
        )
    if options.threads:
        torch.set_num_threads(options.threads)  # for the whole process: PyTorch has no narrower setting
    precision: str = options.precision
    if precision == "auto":
        precision = SPEC.devices[_kind_of(device)].default_precision
    elif precision.startswith("fp8"):
        precision = resolve_fp8(precision, device)
    return DiffusersBackend(checkpoint, precision, device, options)


def memory_of(device: str) -> tuple[DeviceKind, Memory]:
    """Return the kind of a device and its memory. Raises InvalidSetting, or BackendUnavailable if it does not exist."""
    found = _device(device)
    return _kind_of(found), CudaMemory(found) if found.type == "cuda" else HostMemory()


class DiffusersBackend:
    """Implements `sd35.backends.base.Backend`.

    Latents and embeddings are torch tensors on the device, in the backend's precision. With FP8, they are in BF16.
    """

    name = "diffusers"
    can_skip_layers = True
    build = None

    def __init__(self, checkpoint: Checkpoint, precision: str, device: torch.device, options: Options) -> None:
        _check_layers(checkpoint)
        self.precision = precision
        self.is_tiled, self.is_compiled = options.tiled_decode, options.torch_compile
        self._dtype = _DTYPES[precision]
        self._device, self._offload = device, options.offload
        # With these offloads, loading one network evicts another, so only one may compute at a time.
        is_loaded_per_call = options.offload in {"model", "sequential"}
        self._one_at_a_time: AbstractContextManager[object] = threading.Lock() if is_loaded_per_call else nullcontext()
        self._decoding_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        vae = checkpoint.config("vae")
        self._scaling, self._shift = float(vae["scaling_factor"]), float(vae["shift_factor"])
        self._text_tokens = checkpoint.card.max_sequence_length
        self._text_device = torch.device("cpu") if options.offload == "encoders" else device
        load = partial(load_in_fp8, precision) if precision in FP8_PRECISIONS else load_network
        load = partial(_load_tiled, load) if self.is_tiled else load
        self._cpu_offload = (
            _sequential_offload(checkpoint, self._dtype, options, load) if device.type == "cpu" else None
        )
        began_s = time.perf_counter()
        lazy_networks = self._cpu_offload.lazy_networks if self._cpu_offload else {}
        self._pipeline = load_pipeline(checkpoint, self._dtype, without=lazy_networks, load=load)
        for name, lazy_network in lazy_networks.items():
            setattr(self._pipeline, name, lazy_network)
        read_s = time.perf_counter()
        if not self._cpu_offload:
            place(self._pipeline, device, options.offload)
        placed_s = time.perf_counter()
        self.startup_s = {"read": read_s - began_s, "place": placed_s - read_s}
        if self.is_compiled:
            compile_blocks(self.transformer, checkpoint, device, self._dtype)
            self.startup_s["compile"] = time.perf_counter() - placed_s
        self.memory = WorkingMemory(memory_of(str(device))[1], self._on_demand_bytes)

    @property
    def transformer(self) -> nn.Module:
        """The transformer's module, for calibration."""
        return self._pipeline.transformer

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that affect results, by name."""
        quantising = ("torchao",) if self.precision in {"fp8-dynamic", "fp8-weights"} else ()
        return {name: version(name) for name in ("diffusers", "torch", *quantising, "transformers")}

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return one embedding per prompt, in order."""
        with self._one_at_a_time:
            if self._offload == "model":
                self._pipeline.maybe_free_model_hooks()  # the first encoder does not evict the transformer
            tokens, _, pooled, _ = self._pipeline.encode_prompt(
                list(prompts),
                None,
                None,
                device=self._text_device,
                do_classifier_free_guidance=False,
                max_sequence_length=self._text_tokens,
            )
            if self._cpu_offload and self._offload == "encoders":
                self._cpu_offload.free()
        tokens, pooled = tokens.to(self._device), pooled.to(self._device)
        return [
            TextEmbedding(token.clone(), pool.clone(), token.nbytes + pool.nbytes)
            for token, pool in zip(tokens, pooled, strict=True)
        ]

    @torch.no_grad()
    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float[Tensor, "16 h w"]]:
        """Return one velocity per row, in the backend's precision."""
        latents = {id(row): torch.as_tensor(row.latent).to(self._device, self._dtype) for row in rows}

        def velocities_of(parts: Sequence[TransformerRow], skipped: Layers = ()) -> Sequence[Tensor]:
            return self._pipeline.transformer(
                hidden_states=torch.stack([latents[id(row)] for row, _ in parts]),
                encoder_hidden_states=torch.stack([embedding.tokens for _, embedding in parts]),
                pooled_projections=torch.stack([embedding.pooled for _, embedding in parts]),
                timestep=torch.tensor([float(timestep_of(row)) for row, _ in parts], device=self._device),
                skip_layers=skipped,
                return_dict=False,
            )[0].unbind()

        with self._one_at_a_time:
            velocities = velocities_of(transformer_rows(rows))
            skipping = {layers: velocities_of(parts, layers) for layers, parts in skipping_rows(rows).items()}
        return guided_velocities(rows, velocities, skipping)

    @torch.no_grad()
    def decode_latents(self, latents: Sequence[Float[Tensor, "16 h w"]]) -> list[UInt8[Array, "h*8 w*8 3"]]:
        """Return one RGB image per latent."""
        vae = self._pipeline.vae
        with self._one_at_a_time, torch.cuda.stream(self._decoding_stream):
            stacked = torch.stack([torch.as_tensor(latent).to(self._device, self._dtype) for latent in latents])
            images = vae.decode(stacked / self._scaling + self._shift, return_dict=False)[0]
            self._pipeline.maybe_free_model_hooks()  # no network follows that would evict the decoder
            check_finite(float(images.sum(dtype=torch.float32)))
            pixels = ((images / 2 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)
            return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def _on_demand_bytes(self) -> int:
        """Return the bytes of the weights that were loaded on demand: from disk on a CPU, by hooks on CUDA."""
        if self._cpu_offload or self._device.type == "cpu":
            return self._cpu_offload.held_bytes if self._cpu_offload else 0
        networks = [getattr(self._pipeline, name) for name in NETWORKS] if self._offload == "model" else []
        weights = (weight for network in networks for weight in weights_of(network))
        return bytes_of(weight for weight in weights if weight.device.type == "cuda")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSetting(f"device: got {name!r}; allowed: auto, cpu, cuda, cuda:1, ...") from error
    if device.type not in {"cpu", "cuda"}:
        raise InvalidSetting(f"device: got {name!r}; the diffusers backend allows: auto, cpu, cuda, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise BackendUnavailable(
            "diffusers", f"there is no device {name}: PyTorch sees {found} CUDA devices", "Choose another device."
        )
    return device


def _kind_of(device: torch.device) -> DeviceKind:
    return "cuda" if device.type == "cuda" else "cpu"


def _check_layers(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the card skips layers that do not exist. Diffusers would ignore them."""
    if skip_layers := checkpoint.card.skip_layers:
        last, count = max(skip_layers.layers), checkpoint.config("transformer")["num_layers"]
        if last >= count:
            raise CheckpointError(
                f"{checkpoint.name}: the card skips layer {last}; the transformer has layers 0 to {count - 1}"
            )


def _sequential_offload(
    checkpoint: Checkpoint, dtype: torch.dtype, options: Options, load: Load
) -> SequentialOffload | None:
    """Return the offload of the text encoders, or of all networks, on a CPU; None if all stay in memory."""
    names = {"none": (), "encoders": TEXT_ENCODERS}.get(options.offload, NETWORKS)
    return SequentialOffload(names, lambda name: load(checkpoint, name, dtype), dtype) if names else None


def _load_tiled(load: Load, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> nn.Module:
    """Load a network. If it is the autoencoder, let it decode images larger than `TILE_PX` in tiles.

    By default, tiles in Diffusers are as large as the images that the autoencoder was trained on.
    """
    network: Any = load(checkpoint, name, dtype)
    if name == "vae":
        network.enable_tiling()
        network.tile_sample_min_size, network.tile_latent_min_size = TILE_PX, TILE_PX // LATENT_PX
    return network


def place(pipeline: StableDiffusion3Pipeline, device: torch.device, offload: Offload) -> None:
    """Move the weights to the device, or add hooks that move each network or layer there when it is called."""
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif offload == "encoders":
        pipeline.transformer.to(device)
        pipeline.vae.to(device)
    else:
        pipeline.to(device)
