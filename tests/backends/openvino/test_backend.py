"""The `openvino` backend beyond the contract and parity suites: compiled forms of a graph, BF16, refused options."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd35.backends.base import Backend, DenoiseRow
from sd35.backends.graphs.backend import GraphBackend
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.compile.quality_gate import psnr_db
from sd35.engine.base import Pixels
from sd35.errors import CheckpointError, InvalidSetting, NotCompiled
from sd35.request import Request
from sd35.sampling.noise import initial_noise
from tests.support.direct_generation import generate_directly
from tests.support.solving import euler_step

openvino: Any = pytest.importorskip("openvino")
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
IMPORT = (
    "import sys, sd35.backends.openvino.backend; "
    "sys.exit('torch' in sys.modules or bool(sys.modules['openvino_telemetry']))"
)


def without_graphs(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """Copy a checkpoint without its graphs."""
    shutil.copytree(checkpoint.directory, directory, ignore=shutil.ignore_patterns("*.onnx"))
    return replace(checkpoint, directory=directory)


def draw(backend: Backend, checkpoint: Checkpoint) -> Pixels:
    """Generate an image with the card's defaults, but fewer steps."""
    size = checkpoint.card.width, checkpoint.card.height
    request = Request("a cat on a blue background", "", *size, 4, 4.5, 7, "model", "revision", "profile")
    return generate_directly(backend, checkpoint, request)


def test_graphs_for_one_image_and_for_any_shape_agree(checkpoint: Checkpoint) -> None:
    """A row of the default size gives the same result alone, with the fixed shape, and in a batch."""
    backend = open_backend("openvino", checkpoint, Options())
    side = checkpoint.card.width // 8
    cat, nothing = backend.encode_text(["a cat", ""])
    row = DenoiseRow(initial_noise(1, (16, side, side)), cat, nothing, 1.0, 4.5)
    assert isinstance(backend, GraphBackend)
    transformer: Any = backend._transformer  # noqa: SLF001  there is no other way to observe which graph runs
    assert transformer._fixed is not transformer._any  # noqa: SLF001  see above
    (alone,) = euler_step(backend, [row], 0.9)
    in_batch = euler_step(backend, [row, row], 0.9)
    for other in in_batch:
        np.testing.assert_allclose(alone, other, atol=2e-5)


def test_images_are_bit_identical_after_reopening(checkpoint: Checkpoint) -> None:
    """Replaying an image relies on this."""
    one, other = (draw(open_backend("openvino", checkpoint, Options()), checkpoint) for _ in range(2))
    assert (one == other).all()


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no BF16")
def test_images_in_bfloat16_are_close_to_float32(checkpoint: Checkpoint) -> None:
    """They are not equal, which shows that BF16 is used."""
    in_bf16 = open_backend("openvino", checkpoint, Options(precision="bfloat16"))
    assert in_bf16.precision == "bfloat16"
    decibels = psnr_db(draw(in_bf16, checkpoint), draw(open_backend("openvino", checkpoint, Options()), checkpoint))
    assert 40 < decibels < 80, decibels


@pytest.mark.parametrize(
    "options",
    [Options(precision="float16"), Options(precision="fp8"), Options(device="cuda"), Options(offload="model")],
    ids=str,
)
def test_unsupported_options_are_refused(checkpoint: Checkpoint, options: Options) -> None:
    """The error lists the allowed values."""
    with pytest.raises(InvalidSetting, match="the openvino backend allows"):
        open_backend("openvino", checkpoint, options)


def test_unsupported_or_missing_graphs_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The error names the backend that reads NVIDIA's graphs, or the command that builds missing ones."""
    with pytest.raises(CheckpointError, match="NVIDIA's graphs, which the openvino backend does not read"):
        open_backend("openvino", replace(checkpoint, graphs=OfficialGraphs(tmp_path, "bf16")), Options())
    with pytest.raises(NotCompiled, match="--precision fp32 --target onnx"):
        open_backend("openvino", without_graphs(checkpoint, tmp_path / "bare"), Options())


def test_a_graph_that_is_damaged_later_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With offload "encoders", graphs of text encoders are read again for each call."""
    copy = replace(checkpoint, directory=tmp_path / "copy")
    shutil.copytree(checkpoint.directory, copy.directory)
    backend = open_backend("openvino", copy, Options(offload="encoders"))
    (copy.directory / "text_encoder" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match=r"text_encoder/model\.onnx cannot be loaded"):
        backend.encode_text(["a cat"])


def test_memory_does_not_grow_with_each_new_size(checkpoint: Checkpoint) -> None:
    """After the largest size, sixty other sizes add little, because OpenVINO's cache of shapes is limited."""
    backend = open_backend("openvino", checkpoint, Options())
    backend.decode_latents([initial_noise(1, (16, 32, 32))])
    before_bytes = backend.memory.held_bytes()
    for height in range(8, 32, 4):
        for width in range(8, 28, 2):
            backend.decode_latents([initial_noise(1, (16, height, width))])
    assert backend.memory.held_bytes() - before_bytes < 60e6


def test_graphs_of_sd35_compile_give_the_same_image(checkpoint: Checkpoint, compiled: Path, tmp_path: Path) -> None:
    """They are used if there are no graphs next to the weights, and have standard operators for attention."""
    bare = without_graphs(checkpoint, tmp_path / "bare")
    ours = draw(open_backend("openvino", checkpoint, Options()), checkpoint)
    other = draw(open_backend("openvino", bare, Options(cache_dir=compiled)), checkpoint)
    assert abs(ours.astype(int) - other).max() <= 1


def test_it_imports_neither_pytorch_nor_telemetry() -> None:
    """If its telemetry package can be imported, OpenVINO sends an event to Google on each import."""
    ended = subprocess.run([sys.executable, "-c", IMPORT], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
