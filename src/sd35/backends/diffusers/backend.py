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
from sd35.backends.diffusers.disk_offload import DiskOffload, WorkingMemory, bytes_of, weights_of
from sd35.backends.diffusers.fp8 import COMPUTE_DTYPE, FP8_PRECISIONS, load_in_fp8, resolve_fp8
from sd35.backends.diffusers.loading import Load, load_network, load_pipeline
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

    Raises:
        InvalidSetting: An option, or a combination of options, is not supported.
        BackendUnavailable: The device does not exist, or compiling failed.
        CheckpointError: Weights are missing or cannot be read, or the checkpoint contains ONNX graphs instead.
    """
    if checkpoint.graphs:
        raise CheckpointError(
            f"{checkpoint.graphs.directory} contains ONNX graphs, which the onnx and tensorrt backends read; choose one"
            " of these backends with --backend"
        )
    device = _resolve_device(options.device)
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
    """Return the kind of a device and its memory.

    Raises InvalidSetting if `device` is not a name that the backend supports, BackendUnavailable if the device is
    missing.
    """
    resolved = _resolve_device(device)
    return _kind_of(resolved), CudaMemory(resolved) if resolved.type == "cuda" else HostMemory()


class DiffusersBackend:
    """Implements `sd35.backends.base.Backend`.

    Latents and embeddings are torch tensors on the device, in the backend's precision. With FP8, they are in BF16.
    `open_backend` creates instances, after it has resolved "auto" and "fp8" to a precision and a device.
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
        # On a CPU, there are no streams: with None, torch.cuda.stream does nothing.
        self._decoding_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        vae = checkpoint.config("vae")
        self._scaling, self._shift = float(vae["scaling_factor"]), float(vae["shift_factor"])
        self._text_tokens = checkpoint.card.max_sequence_length
        self._text_device = torch.device("cpu") if options.offload == "encoders" else device
        load: Load = partial(load_in_fp8, precision) if precision in FP8_PRECISIONS else load_network
        if self.is_tiled:
            load = partial(_load_tiled, load)
        self._disk_offload = (
            _create_disk_offload(checkpoint, self._dtype, options, load) if device.type == "cpu" else None
        )
        began_s = time.perf_counter()
        lazy_networks = self._disk_offload.lazy_networks if self._disk_offload else {}
        self._pipeline = load_pipeline(checkpoint, self._dtype, without=lazy_networks, load=load)
        for name, lazy_network in lazy_networks.items():
            setattr(self._pipeline, name, lazy_network)
        read_s = time.perf_counter()
        if not self._disk_offload:
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
                # Free all networks now: the first text encoder would not evict the transformer.
                self._pipeline.maybe_free_model_hooks()
            tokens, _, pooled, _ = self._pipeline.encode_prompt(
                list(prompts),
                None,  # the same prompt for the second text encoder
                None,  # and for the third
                device=self._text_device,
                do_classifier_free_guidance=False,
                max_sequence_length=self._text_tokens,
            )
            if self._disk_offload and self._offload == "encoders":
                self._disk_offload.free()
        tokens, pooled = tokens.to(self._device), pooled.to(self._device)
        # Clones, because an embedding in the cache would otherwise keep the tensors of the whole batch in memory.
        return [
            TextEmbedding(token.clone(), pool.clone(), token.nbytes + pool.nbytes)
            for token, pool in zip(tokens, pooled, strict=True)
        ]

    @torch.no_grad()
    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Float[Tensor, "16 h w"]]:
        """Return one velocity per row, in the backend's precision."""
        latents = {id(row): torch.as_tensor(row.latent).to(self._device, self._dtype) for row in rows}

        def velocities_of(parts: Sequence[TransformerRow], skipped: Layers = ()) -> Sequence[Tensor]:
            """Return one velocity per transformer row, computed without the layers in `skipped`."""
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
            self._pipeline.maybe_free_model_hooks()  # frees the decoder: no network follows that would evict it
            check_finite(float(images.sum(dtype=torch.float32)))
            pixels = ((images / 2 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)
            return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def _on_demand_bytes(self) -> int:
        """Return the size of the weights that are loaded now but not all the time, because of the offload."""
        if self._disk_offload:
            return self._disk_offload.held_bytes
        if self._device.type == "cpu" or self._offload != "model":
            return 0
        networks = [getattr(self._pipeline, name) for name in NETWORKS]
        weights = (weight for network in networks for weight in weights_of(network))
        return bytes_of(weight for weight in weights if weight.device.type == "cuda")


def _resolve_device(name: str) -> torch.device:
    """Return the device for a value of the setting `device`. "auto" is CUDA if available, otherwise the CPU.

    Raises InvalidSetting if the name is not supported, BackendUnavailable if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSetting(f"device: got {name!r}; allowed: auto, cpu, cuda, cuda:1, ...") from error
    if device.type not in {"cpu", "cuda"}:
        raise InvalidSetting(f"device: got {name!r}; the diffusers backend allows: auto, cpu, cuda, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        reason = f"there is no device {name}: the number of CUDA devices that PyTorch sees is {count}"
        raise BackendUnavailable("diffusers", reason, "Choose another --device, such as auto or cpu.")
    return device


def _kind_of(device: torch.device) -> DeviceKind:
    return "cuda" if device.type == "cuda" else "cpu"


def _check_layers(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the card skips layers that do not exist. Diffusers would ignore them silently."""
    if skip_layers := checkpoint.card.skip_layers:
        last, count = max(skip_layers.layers), checkpoint.config("transformer")["num_layers"]
        if last >= count:
            raise CheckpointError(
                f"{checkpoint.name}: skip_layers (sd35.json or registry) contains {last}; allowed: 0 to {count - 1}"
            )


def _create_disk_offload(
    checkpoint: Checkpoint, dtype: torch.dtype, options: Options, load: Load
) -> DiskOffload | None:
    """Return the offload of the text encoders or of all networks on a CPU. None if all networks stay in memory."""
    names = {"none": (), "encoders": TEXT_ENCODERS}.get(options.offload, NETWORKS)
    return DiskOffload(names, lambda name: load(checkpoint, name, dtype), dtype) if names else None


def _load_tiled(load: Load, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> nn.Module:
    """Load a network. If it is the autoencoder, let it decode images larger than `TILE_PX` in tiles.

    Sets the size of the tiles: by default, they are as large as the images that the autoencoder was trained on.
    """
    network: Any = load(checkpoint, name, dtype)
    if name == "vae":
        network.enable_tiling()
        network.tile_sample_min_size, network.tile_latent_min_size = TILE_PX, TILE_PX // LATENT_PX
    return network


def place(pipeline: StableDiffusion3Pipeline, device: torch.device, offload: Offload) -> None:
    """Move the weights to the device, or add hooks that move each network or layer there when it is called.

    With the offload "encoders", the text encoders stay on the CPU.
    """
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif offload == "encoders":
        pipeline.transformer.to(device)
        pipeline.vae.to(device)
    else:
        pipeline.to(device)
