"""FP8: the selection of layers, their scales, rounding as in PyTorch, and the quality gate."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from torch import nn

from sd35.backends.base import DenoiseRow
from sd35.backends.diffusers.backend import DiffusersBackend
from sd35.backends.fp8_layers import Treatment, treatment_of
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.graphs.compiled import compiled_graph_paths, compiled_graphs
from sd35.checkpoints.graphs.nvidia import GRAPH_FILE
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.compile import calibration
from sd35.compile.calibration import Calibration, calibrate, fp8_layers, rank
from sd35.compile.calibration_run import CalibrationRequest
from sd35.compile.fp8 import REPORT, build_fp8
from sd35.compile.graphs import build_graphs, save
from sd35.compile.quantise import quantise, scale_of
from sd35.compile.reference_sampling import recipe_of, rows_of
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed, NotCompiled
from sd35.tensors import Array

CHECKPOINT = open_checkpoint(EMBEDDED)
SHORT = replace(recipe_of(CHECKPOINT), steps=4)
QUIET = Stages(lambda *_: None)


@pytest.fixture(scope="module")
def diffusers() -> DiffusersBackend:
    """The backend for calibration, in float32."""
    backend = open_backend("diffusers", CHECKPOINT, Options(precision="float32", device="cpu"))
    assert isinstance(backend, DiffusersBackend)
    return backend


@pytest.fixture(scope="module")
def row(diffusers: DiffusersBackend) -> DenoiseRow:
    """The row of a step in the middle of an image."""
    positive, negative = diffusers.encode_text(["a cat on a blue background", ""])
    return [*rows_of(diffusers, SHORT, (positive, negative), seed=3)][2]


@given(st.floats(1e-6, 1e6))
def test_a_scale_is_a_bf16_number_that_covers_the_largest_input(largest: float) -> None:
    """Rounding to BF16 increases the scale, by at most 2**-7 of its value."""
    scale = scale_of(largest)
    assert float(ml_dtypes.bfloat16(scale)) == scale
    assert largest / 448 * (1 - 1e-6) <= scale <= largest / 448 * (1 + 2**-7)


def test_the_rule_excludes_sensitive_layers() -> None:
    """Attention and feed-forward layers are in FP8. Modulations only have FP8 weights. Other layers have no FP8."""
    expected = {
        "transformer_blocks.0.attn.to_q": Treatment.FP8,
        "transformer_blocks.12.attn2.to_out.0": Treatment.FP8,
        "transformer_blocks.3.attn.add_k_proj": Treatment.FP8,
        "transformer_blocks.3.ff_context.net.2": Treatment.FP8,
        "transformer_blocks.3.norm1.linear": Treatment.WEIGHTS,
        "transformer_blocks.3.norm1_context.linear": Treatment.WEIGHTS,
        "time_text_embed.timestep_embedder.linear_1": Treatment.UNCHANGED,
        "context_embedder": Treatment.UNCHANGED,
        "norm_out.linear": Treatment.UNCHANGED,
        "proj_out": Treatment.UNCHANGED,
    }
    assert {layer: treatment_of(layer) for layer in expected} == expected
    assert treatment_of("transformer_blocks.3.attn.to_q", exempt_blocks=(0, 3)) is Treatment.UNCHANGED


def test_fp8_layers_of_the_graph_follow_the_rule(compiled: Path) -> None:
    """Each layer of the graph has the treatment of the rule, and no other weights are in FP8."""
    model = onnx.load(compiled_graphs(compiled, CHECKPOINT, "fp8").path("transformer"), load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    stored = {each.name: each for each in model.graph.initializer}
    treatments = {}
    for node in (node for node in model.graph.node if node.op_type == "Gemm"):
        weight = producers.get(node.input[1])
        if weight is None:
            treatments[node.input[1].removesuffix(".weight")] = Treatment.UNCHANGED
            continue
        assert weight.op_type == "DequantizeLinear"
        assert stored[weight.input[0]].data_type == TensorProto.FLOAT8E4M3FN
        rounded = producers[node.input[0]]
        is_rounded = rounded.op_type == "DequantizeLinear" and producers[rounded.input[0]].op_type == "QuantizeLinear"
        layer = weight.input[0].removesuffix(".weight in FP8")
        treatments[layer] = Treatment.FP8 if is_rounded else Treatment.WEIGHTS
    assert treatments == {layer: treatment_of(layer) for layer in treatments}
    assert len(treatments) == 88
    in_fp8 = {each.name for each in stored.values() if each.data_type == TensorProto.FLOAT8E4M3FN}
    assert len(in_fp8) == sum(each is not Treatment.UNCHANGED for each in treatments.values())


@pytest.mark.parametrize("block", [0, 3, 5])
def test_a_quantised_graph_matches_pytorchs_fp8(
    compiled: Path, tmp_path: Path, diffusers: DiffusersBackend, row: DenoiseRow, block: int
) -> None:
    """The transformer gives the same velocity if PyTorch's own conversion rounds the layers of a block.

    Only one block is rounded at a time. A last-bit difference can round a value to the other neighbour in FP8, and
    further blocks would amplify this.
    """
    found = calibrate(diffusers, SHORT, [(row.positive, row.positive)], lambda: None)
    model = ir.load(compiled_graphs(compiled, CHECKPOINT, "fp32").path("transformer"))
    quantise(model, found.largest_inputs, exempt_blocks=set(range(6)) - {block})
    save(model, tmp_path)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    graph = onnxruntime.InferenceSession(tmp_path / GRAPH_FILE, options, providers=["CPUExecutionProvider"])
    inputs = {
        "hidden_states": torch.as_tensor(row.latent)[None],
        "encoder_hidden_states": row.positive.tokens[None],
        "pooled_projections": row.positive.pooled[None],
        "timestep": torch.tensor([500.0]),
    }
    (got,) = graph.run(["latent"], {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.inference_mode():
        (plain,) = diffusers.transformer(**inputs, return_dict=False)
        with _rounded(diffusers.transformer, found.largest_inputs, block):
            (expected,) = diffusers.transformer(**inputs, return_dict=False)
    assert _rms(got - expected.numpy()) < 0.05 * _rms((expected - plain).numpy())


def test_images_in_fp8_match_those_in_float32(compiled: Path) -> None:
    """At least 90 % of the attention and feed-forward weights are in FP8, and images reach 35 dB after 28 steps.

    The quality gate requires 25 dB. 45 dB were measured with eight prompts.
    """
    report = json.loads((compiled_graphs(compiled, CHECKPOINT, "fp8").path("transformer").parent / REPORT).read_text())
    assert report["sizes"]["products_fp8_share"] >= 0.9
    assert report["quality"]["mean_db"] >= 35
    assert report["sizes"]["layers_bytes"] <= 0.55 * report["sizes"]["layers_bf16_bytes"]
    assert report["sizes"]["total_bytes"] <= 0.55 * report["sizes"]["total_bf16_bytes"]


def test_calibration_finds_the_largest_input_of_every_layer(diffusers: DiffusersBackend) -> None:
    """With two images, it is the larger of their values."""
    texts = [*zip(diffusers.encode_text(["a cat on a red background", "a bus above a key"]),
                  diffusers.encode_text(["", ""]), strict=True)]  # fmt: skip
    both = calibrate(diffusers, SHORT, texts, lambda: None)
    first = calibrate(diffusers, SHORT, texts[:1], lambda: None)
    assert both.largest_inputs.keys() == fp8_layers(diffusers.transformer).keys()
    assert all(both.largest_inputs[layer] >= largest for layer, largest in first.largest_inputs.items())
    assert any(both.largest_inputs[layer] > largest for layer, largest in first.largest_inputs.items())
    assert len(first.rows) == 3


def test_the_most_sensitive_layer_ranks_first(diffusers: DiffusersBackend, row: DenoiseRow) -> None:
    """A layer with a scale that is a hundred times too small saturates, and ranks first."""
    found = calibrate(diffusers, SHORT, [(row.positive, row.negative or row.positive)], lambda: None)
    sensitive = "transformer_blocks.2.ff.net.2"
    found.largest_inputs[sensitive] /= 100
    ranked = rank(diffusers, found, lambda: None)
    assert ranked[0].layer == sensitive
    assert [each.error for each in ranked] == sorted((each.error for each in ranked), reverse=True)
    assert len(ranked) == len(found.largest_inputs)


def test_a_build_that_fails_the_quality_gate_stores_nothing(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the difference to the minimum in dB."""
    graphs = compiled_graph_paths(compiled, CHECKPOINT, "fp8")
    graphs = replace(graphs, transformer_at=tmp_path / "fp8")
    calibrate_well = calibration.calibrate

    def calibrate_badly(*arguments: object) -> Calibration:
        found = calibrate_well(*arguments)  # type: ignore[arg-type]
        return Calibration({layer: largest / 200 for layer, largest in found.largest_inputs.items()}, found.rows)

    monkeypatch.setattr("sd35.compile.calibration_run.calibrate", calibrate_badly)
    request = CalibrationRequest(SHORT, ["a cat"], ["a dog on a red background"], with_sensitivity=False)
    with pytest.raises(BuildFailed, match=r"too much .* PSNR is -?\d+\.\d dB, \d+\.\d dB below the minimum of 25"):
        build_fp8(CHECKPOINT, graphs, request, QUIET)
    assert not graphs.path("transformer").exists()
    assert not list(tmp_path.glob("*/*"))


def test_an_interrupted_build_resumes_after_its_calibration(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration is not repeated, and the quality gate has the same result."""
    graphs = replace(compiled_graph_paths(compiled, CHECKPOINT, "fp8"), transformer_at=tmp_path / "fp8")
    request = CalibrationRequest(SHORT, ["a fish"], ["a dog on a red background"], with_sensitivity=False)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sd35.compile.fp8.compare", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_fp8(CHECKPOINT, graphs, request, QUIET)
    assert not graphs.path("transformer").exists()
    monkeypatch.setattr("sd35.compile.calibration_run.calibrate", lambda *_: pytest.fail("calibrated again"))
    build_fp8(CHECKPOINT, graphs, request, QUIET)
    report = json.loads((tmp_path / "fp8" / REPORT).read_text())
    assert report["quality"]["mean_db"] >= 25


def test_compiled_graphs_belong_to_one_revision_and_precision(compiled: Path) -> None:
    """They are not rebuilt for the same revision, and not found for another one."""
    checkpoint = open_checkpoint(EMBEDDED)
    before = compiled_graphs(compiled, checkpoint, "bf16").path("vae").stat().st_mtime_ns
    build_graphs(checkpoint, "bf16", compiled, QUIET)
    assert compiled_graphs(compiled, checkpoint, "bf16").path("vae").stat().st_mtime_ns == before
    other = replace(checkpoint, card=replace(checkpoint.card, steps=9))
    with pytest.raises(NotCompiled, match="sd35 compile --checkpoint sd35-mini --precision bf16"):
        compiled_graphs(compiled, other, "bf16")


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@contextmanager
def _rounded(network: nn.Module, largest: dict[str, float], block: int) -> Iterator[None]:
    """Round the FP8 layers of a block with PyTorch. This does not share code with `sd35.compile.calibration`."""

    def through_fp8(values: torch.Tensor, scale: float) -> torch.Tensor:
        return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    before, handles = {}, []
    layers = {name: layer for name, layer in fp8_layers(network).items() if f"blocks.{block}." in name}
    for name, layer in layers.items():
        before[layer] = layer.weight.data
        layer.weight.data = through_fp8(layer.weight.data, scale_of(float(layer.weight.data.abs().max())))
        if treatment_of(name) is Treatment.FP8:
            scale = scale_of(largest[name])
            handles.append(
                layer.register_forward_pre_hook(lambda _, inputs, scale=scale: (through_fp8(inputs[0], scale),))
            )
    yield
    for layer, weight in before.items():
        layer.weight.data = weight
    for handle in handles:
        handle.remove()
