"""The openvino backend, beyond what contract and parity suites ask of all: two forms of a graph, BF16, refusals."""

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
    """A copy with nothing but weights, configurations and tokenizers."""
    shutil.copytree(checkpoint.directory, directory, ignore=shutil.ignore_patterns("*.onnx"))
    return replace(checkpoint, directory=directory)


def draw(backend: Backend, checkpoint: Checkpoint) -> Pixels:
    """An image as the checkpoint's card has it, in fewer steps."""
    size = checkpoint.card.width, checkpoint.card.height
    request = Request("a cat on a blue background", "", *size, 4, 4.5, 7, "model", "revision", "profile")
    return generate_directly(backend, checkpoint, request)


def test_the_graph_for_one_image_and_the_one_for_any_shape_agree(checkpoint: Checkpoint) -> None:
    """A row of the card's own size gets alone what it gets beside another, by another compilation."""
    backend = open_backend("openvino", checkpoint, Options())
    side = checkpoint.card.width // 8
    cat, nothing = backend.encode_text(["a cat", ""])
    row = DenoiseRow(initial_noise(1, (16, side, side)), cat, nothing, 1.0, 4.5)
    assert isinstance(backend, GraphBackend)
    transformer: Any = backend._transformer  # noqa: SLF001  which of the two computes shows nowhere else
    assert transformer._one is not transformer._any  # noqa: SLF001  see above
    (alone,) = euler_step(backend, [row], 0.9)
    beside = euler_step(backend, [row, row], 0.9)
    for other in beside:
        np.testing.assert_allclose(alone, other, atol=2e-5)


def test_the_same_row_gets_the_same_bits_in_every_process(checkpoint: Checkpoint) -> None:
    """Opened twice, it draws one image, bit for bit: what makes a replay the same file."""
    one, other = (draw(open_backend("openvino", checkpoint, Options()), checkpoint) for _ in range(2))
    assert (one == other).all()


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no BF16")
def test_bfloat16_draws_what_float32_draws_but_for_its_rounding(checkpoint: Checkpoint) -> None:
    """The images are near, and not the same: it does compute in BF16."""
    in_bf16 = open_backend("openvino", checkpoint, Options(precision="bfloat16"))
    assert in_bf16.precision == "bfloat16"
    decibels = psnr_db(draw(in_bf16, checkpoint), draw(open_backend("openvino", checkpoint, Options()), checkpoint))
    assert 40 < decibels < 80, decibels


@pytest.mark.parametrize(
    "options",
    [Options(precision="float16"), Options(precision="fp8"), Options(device="cuda"), Options(offload="model")],
    ids=str,
)
def test_what_it_cannot_honour_is_refused(checkpoint: Checkpoint, options: Options) -> None:
    """It computes in float32 and BF16 on a CPU, and says so where something else is asked of it."""
    with pytest.raises(InvalidSetting, match="the openvino backend allows"):
        open_backend("openvino", checkpoint, options)


def test_graphs_it_cannot_read_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """NVIDIA's, and none at all: with what reads them, and with the command that makes them."""
    with pytest.raises(CheckpointError, match="NVIDIA's graphs, which the onnx backend reads"):
        open_backend("openvino", replace(checkpoint, graphs=OfficialGraphs(tmp_path, "bf16")), Options())
    with pytest.raises(NotCompiled, match="--precision fp32 --target onnx"):
        open_backend("openvino", without_graphs(checkpoint, tmp_path / "bare"), Options())


def test_a_graph_that_breaks_later_is_the_checkpoints_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With its text encoders read anew for each text, it names the file that cannot be read any more."""
    copy = replace(checkpoint, directory=tmp_path / "copy")
    shutil.copytree(checkpoint.directory, copy.directory)
    backend = open_backend("openvino", copy, Options(offload="encoders"))
    (copy.directory / "text_encoder" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match=r"text_encoder/model\.onnx cannot be loaded"):
        backend.encode_text(["a cat"])


def test_memory_does_not_grow_with_each_new_size(checkpoint: Checkpoint) -> None:
    """After the largest, sixty other sizes add next to nothing: what OpenVINO keeps of each is bounded."""
    backend = open_backend("openvino", checkpoint, Options())
    backend.decode_latents([initial_noise(1, (16, 32, 32))])
    before_bytes = backend.memory.held_bytes()
    for height in range(8, 32, 4):
        for width in range(8, 28, 2):
            backend.decode_latents([initial_noise(1, (16, height, width))])
    assert backend.memory.held_bytes() - before_bytes < 60e6


def test_compiled_graphs_draw_what_the_checkpoints_own_draw(
    checkpoint: Checkpoint, compiled: Path, tmp_path: Path
) -> None:
    """Where none lie beside the weights, those of `sd35 compile --precision fp32` are read, with ONNX's attention."""
    bare = without_graphs(checkpoint, tmp_path / "bare")
    ours = draw(open_backend("openvino", checkpoint, Options()), checkpoint)
    other = draw(open_backend("openvino", bare, Options(cache_dir=compiled)), checkpoint)
    assert abs(ours.astype(int) - other).max() <= 1


def test_it_imports_neither_pytorch_nor_what_would_call_home() -> None:
    """OpenVINO sends an event to Google at every import, where its telemetry can be imported."""
    ended = subprocess.run([sys.executable, "-c", IMPORT], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
