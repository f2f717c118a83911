"""Fixtures of the backend tests: the checkpoint, the backends, and Diffusers' pipeline to compare them with."""

import os

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from sd35.backends.base import Backend
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.backends.tensorrt.backend import TensorRtBackend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.host import HostMemory
from tests.support.onnx_networks import OnnxNetworks


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The embedded checkpoint, or the one at the path in `TEST_CHECKPOINT`."""
    return open_checkpoint(os.environ.get("TEST_CHECKPOINT", "sd35-mini"))


@pytest.fixture(scope="session", params=["onnx", "openvino", "diffusers", "tensorrt"])
def backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Backend:
    """Each registered backend in float32 on the CPU. `tensorrt` has networks of another runtime, see `OnnxNetworks`."""
    if request.param == "tensorrt":
        return TensorRtBackend(checkpoint, "float32", OnnxNetworks(checkpoint), HostMemory(), {})
    if request.param == "openvino":
        pytest.importorskip("openvino")  # has no package for older Linux on ARM
    return open_backend(request.param, checkpoint, Options(precision="float32", device="cpu"))


@pytest.fixture(scope="session")
def reference_pipeline(checkpoint: Checkpoint) -> StableDiffusion3Pipeline:
    """Diffusers' own pipeline in float32."""
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    return plain
