"""A backend that is registered from outside the package works everywhere without other changes.

This module is the backend: a spec, `open_backend`, `memory_of`, and a class of a few lines.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd35.backends.base import DenoiseRow, Memory, TextEmbedding
from sd35.backends.options import DeviceKind, Options
from sd35.backends.registry import BACKENDS
from sd35.backends.spec import BackendSpec, DeviceSpec, MemoryUse
from sd35.checkpoints.card import SkipLayers
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.doctor import Finding, examine
from sd35.errors import InvalidRequest, InvalidSetting
from sd35.generation.params import GenerationParams
from sd35.host import HostMemory
from sd35.images.png import read_png
from sd35.images.record import from_text
from sd35.planning.fit import plan_for
from sd35.planning.plan import AvailableMemory, Plan
from sd35.planning.report import plan_text
from sd35.settings import load_settings
from sd35.startup import open_model_pool
from sd35.tensors import Array
from tests.cli.test_commands import sd35_here

GIB = 2**30
EXTRA_BYTES = 1_000_000  # of each network
MEMORY = MemoryUse(library_bytes=10_000_000, encode=1, step=1, decode=1)
SPEC = BackendSpec(
    name="toy",
    module=__name__,
    needs=("numpy",),
    remedy="Install NumPy.",
    devices={
        "cpu": DeviceSpec(
            precisions=("float32", "float16"),
            offloads=("none", "encoders"),
            memory=MEMORY,
            default_precision="float16",
        )
    },
    extra_bytes=lambda _name, _network, _precision: EXTRA_BYTES,
    narrower={"float32": ("float16",)},
)


class ToyBackend:
    """Generates stripes with a brightness that depends on the length of the prompt."""

    name = SPEC.name
    precision = "float16"
    build = None
    is_tiled = is_compiled = can_skip_layers = False

    def __init__(self) -> None:
        self.startup_s: dict[str, float] = {}
        self.versions = {"numpy": np.__version__}
        self.memory = HostMemory()

    def encode_text(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """Return the prompts' lengths."""
        return [TextEmbedding(length, length, length.nbytes) for length in (np.array([len(each)]) for each in prompts)]

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """Return one velocity per row."""
        return [self._velocity(row) for row in rows]

    def decode_latents(self, latents: Sequence[Array]) -> list[Array]:
        """Return each latent value as a square of 8x8 pixels."""
        squares = [np.kron(latent[:3], np.ones((1, 8, 8))) for latent in latents]
        return [np.clip(128 + 40 * square, 0, 255).astype(np.uint8).transpose(1, 2, 0) for square in squares]

    def _velocity(self, row: DenoiseRow) -> Array:
        stripes = np.sin(np.arange(row.latent.shape[-1])) * row.positive.tokens
        velocity: Array = (row.latent - stripes).astype(np.float32)
        return velocity


def open_backend(_checkpoint: Checkpoint, _options: Options) -> ToyBackend:
    """Open the toy backend, which reads no weights."""
    return ToyBackend()


def memory_of(_device: str) -> tuple[DeviceKind, Memory]:
    """Return the host's memory."""
    return "cpu", HostMemory()


@pytest.fixture(autouse=True)
def _toy_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, SPEC.name, SPEC)


def plan_of(**settings: Any) -> Plan:
    """Return a plan of the embedded model for the toy backend."""
    sizes = network_sizes_on_disk(open_checkpoint(EMBEDDED))
    return plan_for(load_settings({"backend": "toy", **settings}), [sizes], AvailableMemory("cpu", GIB, GIB))


def test_a_registered_backend_works_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It generates an image. The image's record names the backend, and replaying it gives the same bytes."""
    file = tmp_path / "cat.png"
    options = ("--backend", "toy", "--steps", "2", "--width", "64", "--height", "64")
    assert sd35_here(monkeypatch, "generate", "a cat", "-o", str(file), *options) == 0
    pixels, text = read_png(file.read_bytes())
    record = from_text(text)
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 1
    assert (record.request.profile, record.maker.backend) == ("toy/float16", "toy")
    capsys.readouterr()
    assert sd35_here(monkeypatch, "replay", str(file), "--backend", "toy") == 0
    assert "same bytes" in capsys.readouterr().out


def test_a_registered_backend_can_be_the_fallback() -> None:
    """It is loaded next to another backend."""
    checkpoint = open_checkpoint(EMBEDDED)
    with open_model_pool(load_settings({"fallback": "toy"}), [checkpoint], with_fallback=True) as pool:
        assert [model.profile for model in pool.engine.models] == ["onnx/float32", "toy/float16"]


def test_the_plan_for_a_registered_backend_follows_its_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloads, the default precision, libraries, factors and extra bytes are those of the spec."""
    plan = plan_of()
    assert plan.request.precision == "float16"
    assert [placement.offload for placement in plan.placements] == ["none", "encoders"]
    values = sum(network.values for network in plan.checkpoint_sizes[0].networks.values())
    weights_bytes = 2 * values + 5 * EXTRA_BYTES
    assert plan.placements[0].weights_bytes == MEMORY.library_bytes + weights_bytes
    assert "in float16 with the toy backend on the CPU" in plan_text(plan)
    steps_bytes = plan.placements[0].peaks["steps"] - plan.placements[0].weights_bytes
    device = replace(SPEC.devices["cpu"], memory=replace(MEMORY, step=2))
    monkeypatch.setitem(BACKENDS, "toy", replace(SPEC, devices={"cpu": device}))
    placement = plan_of().placements[0]
    assert placement.peaks["steps"] - placement.weights_bytes == 2 * steps_bytes


def test_sd35_plan_suggests_the_narrower_precisions_of_the_spec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float32, the toy backend's spec suggests float16."""
    assert sd35_here(monkeypatch, "plan", "--backend", "toy", "--precision", "float32", "--ram", "1GiB") == 0
    assert "in float16: fits with offload 'none'" in capsys.readouterr().out


def test_the_doctor_lists_a_registered_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is usable, unless a package is missing."""
    settings = load_settings({"backend": "toy"})
    report = examine(settings)
    assert Finding("toy", is_usable=True, detail="available") in report.backends
    assert report.can_serve
    monkeypatch.setitem(BACKENDS, "toy", replace(SPEC, needs=("no_such_library",)))
    (finding,) = (each for each in examine(settings).backends if each.name == "toy")
    assert not finding.is_usable
    assert "not installed (no_such_library). Install NumPy." in finding.detail


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "precision: got 'fp8'; allowed with toy on a CPU: float32, float16"),
        ({"offload": "model"}, "offload: got 'model'; the toy backend allows: none, encoders"),
        ({"tiled_decode": "on"}, "tiled_decode: got 'on'; the toy backend allows: off"),
        ({"torch_compile": True}, "torch_compile: got 'on'; the toy backend allows: off"),
        ({"device": "cuda"}, "device: got 'cuda'; the toy backend allows: auto, cpu"),
        ({"vram": "8GiB"}, "vram: got 8.0 GiB, but toy computes on a CPU here; set ram instead"),
    ],
    ids=str,
)
def test_options_that_the_spec_does_not_allow_are_refused(settings: dict[str, Any], message: str) -> None:
    """The error has the value and the allowed ones. The backend needs no code for this."""
    with pytest.raises(InvalidSetting) as refusal:
        open_model_pool(load_settings({"backend": "toy", **settings}), [open_checkpoint(EMBEDDED)])
    assert str(refusal.value).startswith(message)


def test_skip_layer_guidance_is_refused_if_the_backend_cannot_skip_layers() -> None:
    """The request is refused although the checkpoint's card has layers to skip."""
    checkpoint = open_checkpoint(EMBEDDED)
    card = replace(checkpoint.card, skip_layers=SkipLayers((1,), 2.8, 0.01, 0.2))
    with open_model_pool(load_settings({"backend": "toy"}), [replace(checkpoint, card=card)]) as pool:
        assert pool.resolve(GenerationParams("a cat")).skip_layer_scale == 0
        with pytest.raises(InvalidRequest, match="the toy backend does not support skip-layer guidance"):
            pool.resolve(GenerationParams("a cat", skip_layer_scale=2))
