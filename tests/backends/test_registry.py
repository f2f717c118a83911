"""Opening a backend through the registry: what is imported, and what is refused."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sd35.backends.options import Options
from sd35.backends.registry import BACKENDS, check_available, open_backend
from sd35.backends.spec import BackendSpec
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting

GENERATE_WITHOUT_TORCH = """
import sys
from sd35.backends.base import DenoiseRow
from sd35.backends.options import Options
from sd35.backends.registry import check_available, open_backend
from sd35.checkpoints.open import open_checkpoint
from sd35.sampling.noise import initial_noise
from sd35.sampling.sigmas import sigma_schedule_of

checkpoint = open_checkpoint(sys.argv[1])
check_available("diffusers")
backend = open_backend("onnx", checkpoint, Options(threads=1))
start, _ = sigma_schedule_of(checkpoint).sigmas(1)
(embedding,) = backend.encode_text(["a cat"])
latents = backend.predict_velocity([DenoiseRow(initial_noise(1, (16, 8, 8)), embedding, None, start, 0.0)])
backend.decode_latents(latents)
print(sorted({"torch", "diffusers", "transformers", "onnx"} & sys.modules.keys()))
"""


def test_the_onnx_backend_generates_images_without_pytorch(checkpoint: Checkpoint) -> None:
    """Neither generating with `onnx`, nor checking whether `diffusers` is installed, imports PyTorch."""
    command = [sys.executable, "-c", GENERATE_WITHOUT_TORCH, str(checkpoint.directory)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    assert ended.stdout.strip() == "[]"


def test_an_unknown_backend_is_refused_with_the_list(checkpoint: Checkpoint) -> None:
    """The error lists all backends."""
    with pytest.raises(InvalidSetting, match="onnx, openvino, diffusers"):
        open_backend("caffe", checkpoint, Options())


def test_a_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    """If a backend's libraries are not installed, the error names them and says how to install them."""
    spec = BackendSpec("far", "nowhere", ("numpy", "no_such_library"), "Install it so.", devices={})
    monkeypatch.setitem(BACKENDS, spec.name, spec)
    for attempt in (lambda: check_available("far"), lambda: open_backend("far", checkpoint, Options())):
        with pytest.raises(BackendUnavailable, match=r"not installed \(no_such_library\)\. Install it so"):
            attempt()


@pytest.mark.parametrize(
    "options",
    [Options(precision="float16"), Options(device="cuda"), Options(offload="model"), Options(tiled_decode=True)],
    ids=str,
)
def test_the_onnx_backend_refuses_unsupported_options(checkpoint: Checkpoint, options: Options) -> None:
    """The error has the allowed values."""
    with pytest.raises(InvalidSetting, match="onnx backend allows"):
        open_backend("onnx", checkpoint, options)


@pytest.mark.parametrize(
    "options", [Options(device="cpu", offload="sequential"), Options(device="mars"), Options(device="mps")], ids=str
)
def test_the_diffusers_backend_refuses_unsupported_options(checkpoint: Checkpoint, options: Options) -> None:
    """Sequential offload on a CPU, and devices that are neither a CPU nor CUDA, are refused."""
    with pytest.raises(InvalidSetting, match=r"offload|device"):
        open_backend("diffusers", checkpoint, options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a CUDA device here")
def test_a_missing_cuda_device_is_named(checkpoint: Checkpoint) -> None:
    """The setting is valid, so the error is BackendUnavailable."""
    with pytest.raises(BackendUnavailable, match="the number of CUDA devices that PyTorch sees is 0"):
        open_backend("diffusers", checkpoint, Options(device="cuda"))


@pytest.mark.parametrize("name", ["onnx", "diffusers"])
def test_an_incomplete_checkpoint_is_refused(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """If weights are missing or graphs are damaged, the error names the directory."""
    broken = replace(checkpoint, directory=tmp_path / "broken")
    shutil.copytree(checkpoint.directory, broken.directory, ignore=shutil.ignore_patterns("*.safetensors"))
    for graph in broken.directory.glob("text_encoder/*.onnx"):
        graph.write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match="broken"):
        open_backend(name, broken, Options(device="cpu"))


def test_a_missing_graph_is_refused_with_the_command_that_builds_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The command has the path of the checkpoint."""
    bare = replace(checkpoint, directory=tmp_path / "bare")
    shutil.copytree(checkpoint.directory, bare.directory, ignore=shutil.ignore_patterns("*.onnx"))
    with pytest.raises(CheckpointError, match=r"sd35 compile --checkpoint .* --precision fp32 --target onnx"):
        open_backend("onnx", bare, Options())


def test_a_card_beyond_the_position_table_is_refused(checkpoint: Checkpoint) -> None:
    """Otherwise a graph would compute wrong images without an error."""
    oversized = replace(checkpoint, card=replace(checkpoint.card, side_px=(64, 100_000)))
    with pytest.raises(CheckpointError, match="100000"):
        open_backend("onnx", oversized, Options())
