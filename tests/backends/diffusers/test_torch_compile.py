"""`torch.compile` of the transformer: equal images except for the last bits, one compilation for all sizes and rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sd35.backends.base import Backend, DenoiseRow
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.diffusers.loading import load_network
from sd35.backends.diffusers.torch_compile import compile_blocks
from sd35.backends.options import Offload, Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.local.pipeline import Pipeline
from sd35.errors import BackendUnavailable, InvalidSetting
from sd35.sampling.noise import initial_noise
from sd35.tensors import Array
from tests.support.solving import euler_step


def latents(backend: Backend, guidances: list[float], height: int, width: int) -> Array:
    """Make a step with rows of one size."""
    positive, negative = backend.encode_text(["a cat", ""])
    rows = [
        DenoiseRow(
            initial_noise(seed, (16, height, width)), positive, negative if guidance > 1 else None, 1.0, guidance
        )
        for seed, guidance in enumerate(guidances)
    ]
    return np.stack([latent.float().numpy() for latent in euler_step(backend, rows, 0.5)])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch warns about itself
def test_compiled_blocks_give_the_same_results_without_recompiling(checkpoint: Checkpoint) -> None:
    """For each size and number of rows, a step is about as close to float32 as without compilation."""
    options = Options(precision="bfloat16", device="cpu", threads=torch.get_num_threads())
    reference = open_backend("diffusers", checkpoint, replace(options, precision="float32"))
    eager = open_backend("diffusers", checkpoint, options)
    compiled = open_backend("diffusers", checkpoint, replace(options, torch_compile=True))
    assert Pipeline(checkpoint, compiled).info.profile == "diffusers/bfloat16/compiled"
    assert Pipeline(checkpoint, eager).info.profile == "diffusers/bfloat16"
    assert compiled.startup_s["compile"] > 0
    with torch.compiler.set_stance("fail_on_recompile"):
        for guidances, height, width in (([4.5], 16, 16), ([0.0], 8, 8), ([4.5, 0.0, 3.0], 12, 20)):
            found = [latents(each, guidances, height, width) for each in (reference, eager, compiled)]
            eager_error, compiled_error = (float(np.sqrt(np.mean((each - found[0]) ** 2))) for each in found[1:])
            assert 0 < compiled_error < 1.1 * eager_error
    assert isinstance(compiled, DiffusersBackend)
    blocks: Any = compiled.transformer.get_submodule("transformer_blocks")
    assert all(block._compiled_call_impl for block in blocks)  # noqa: SLF001


@pytest.mark.parametrize(("name", "offload"), [("onnx", "none"), ("diffusers", "model")])
def test_torch_compile_is_refused_if_unsupported(checkpoint: Checkpoint, name: str, offload: Offload) -> None:
    """The `onnx` backend does not use PyTorch. An offloaded transformer would be compiled for each image."""
    options = Options(device="cpu", offload=offload, torch_compile=True)
    with pytest.raises(InvalidSetting, match=r"torch_compile: got 'on'.*(turn it off|allows: off)"):
        open_backend(name, checkpoint, options)


def test_a_failed_compilation_is_an_error(checkpoint: Checkpoint) -> None:
    """The error has the compiler's reason. The block does not silently run without compilation."""
    transformer = load_network(checkpoint, "transformer", torch.float32)
    first = transformer.get_submodule("transformer_blocks.0")
    first.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())  # noqa: SLF001
    with pytest.raises(BackendUnavailable, match=r"torch.compile failed: .*graph_break"):
        compile_blocks(transformer, checkpoint, torch.device("cpu"), torch.float32)
