"""The checkpoint the backend suites run on, the backends with it, and the reference_pipeline they are compared with."""

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
    """The embedded one; `TEST_CHECKPOINT=directory` runs the suites on another."""
    return open_checkpoint(os.environ.get("TEST_CHECKPOINT", "sd35-mini"))


@pytest.fixture(scope="session", params=["onnx", "openvino", "diffusers", "tensorrt"])
def backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Backend:
    """Each backend of the table, in float32 on the CPU; TensorRT's with another runtime's networks, see there."""
    if request.param == "tensorrt":
        return TensorRtBackend(checkpoint, "float32", OnnxNetworks(checkpoint), HostMemory(), {})
    if request.param == "openvino":
        pytest.importorskip("openvino")  # not to be had on older Linux on ARM
    return open_backend(request.param, checkpoint, Options(precision="float32", device="cpu"))


@pytest.fixture(scope="session")
def reference_pipeline(checkpoint: Checkpoint) -> StableDiffusion3Pipeline:
    """What all is measured against: Diffusers' own reference_pipeline in float32."""
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    return plain
