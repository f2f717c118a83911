"""Offload and tiled decoding give the same images with less memory."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sd35.backends.base import Backend, DenoiseRow
from sd35.backends.diffusers import backend as diffusers_backend
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.diffusers.disk_offload import WorkingMemory
from sd35.backends.options import Offload, Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.engine.local.pipeline import Pipeline
from sd35.sampling.noise import initial_noise
from sd35.tensors import Array
from tests.support.solving import euler_step


def image(backend: Backend, prompt: str) -> Array:
    """Generate a guided image in one step."""
    positive, negative = backend.encode_text([prompt, ""])
    row = DenoiseRow(initial_noise(7, (16, 8, 8)), positive, negative, 1.0, 4.5)
    return backend.decode_latents(euler_step(backend, [row], 0.5))[0]


@pytest.mark.parametrize(("name", "offload"), [("onnx", "encoders"), ("diffusers", "encoders"), ("diffusers", "model")])
def test_offload_gives_the_same_images(checkpoint: Checkpoint, name: str, offload: Offload) -> None:
    """This holds for several images, although networks are read and freed for each."""
    plain, offloaded = (
        open_backend(name, checkpoint, Options(device="cpu", offload=each)) for each in ("none", offload)
    )
    for prompt in ("a cat", "a red dog"):
        assert (image(offloaded, prompt) == image(plain, prompt)).all()


def test_at_most_one_network_is_in_memory(checkpoint: Checkpoint) -> None:
    """It is the last one that was called. With offload "encoders", no text encoder stays in memory after encoding."""
    one_by_one = DiffusersBackend(checkpoint, "float32", torch.device("cpu"), Options(offload="model"))
    offload = one_by_one._disk_offload  # noqa: SLF001
    assert offload is not None
    assert offload.held_bytes == 0
    for part in ("vae", "transformer"):
        network = offload.load(part)
        assert offload.held_bytes == sum(weight.nbytes for weight in [*network.parameters(), *network.buffers()])
        assert offload.held_bytes >= 4 * network_sizes_on_disk(checkpoint).networks[part].values
    evicting = DiffusersBackend(checkpoint, "float32", torch.device("cpu"), Options(offload="encoders"))
    evicting.encode_text(["a cat"])
    assert evicting._disk_offload is not None  # noqa: SLF001
    assert evicting._disk_offload.held_bytes == 0  # noqa: SLF001


def test_loaded_weights_do_not_count_as_working_memory() -> None:
    """Otherwise the measured memory of a step would include the transformer, and no other image would be admitted."""

    class Fixed:
        is_host = True

        def free_bytes(self) -> int:
            return 7

        def held_bytes(self) -> int:
            return 5

        def watch(self) -> None:
            weights.append(0)

        def peak_bytes(self) -> int:
            return 1_000

    weights: list[int] = []
    memory = WorkingMemory(Fixed(), lambda: sum(weights))
    memory.watch()
    weights.append(900)
    assert (memory.free_bytes(), memory.held_bytes(), memory.peak_bytes()) == (7, 5, 100)


def test_tiled_decoding_matches_diffusers(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only images larger than a tile are decoded in tiles. The profile says so."""
    monkeypatch.setattr(diffusers_backend, "TILE_PX", 128)
    backends = (
        open_backend("diffusers", checkpoint, Options(device="cpu", tiled_decode=each)) for each in (True, False)
    )
    tiled, whole = backends
    small, large = (initial_noise(7, (16, side, side)) for side in (16, 32))
    assert (tiled.decode_latents([small])[0] == whole.decode_latents([small])[0]).all()
    vae = AutoencoderKL.from_pretrained(checkpoint.directory, subfolder="vae", torch_dtype=torch.float32)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 16
    latent = torch.from_numpy(large)[None] / vae.config.scaling_factor + vae.config.shift_factor
    with torch.no_grad():
        image = vae.decode(latent).sample[0].permute(1, 2, 0)
    theirs = ((image / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.int16)
    assert abs(tiled.decode_latents([large])[0] - theirs).max() <= 1
    assert abs(whole.decode_latents([large])[0] - theirs).max() > 1
    profiles = [Pipeline(checkpoint, each).info.profile for each in (tiled, whole)]
    assert profiles == ["diffusers/float32/tiled", "diffusers/float32"]
