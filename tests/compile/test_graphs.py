"""Portable graphs match PyTorch, and have only standard ONNX operators."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from sd35.backends.diffusers.loading import load_network
from sd35.checkpoints.graphs.compiled import compiled_graphs
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.compile.networks import graphs_of

CHECKPOINT = open_checkpoint(EMBEDDED)
GRAPHS = {graph.part: graph for graph in graphs_of(CHECKPOINT)}
SIZES = {"R": 3, "B": 2, "T": 20, "h": 14, "w": 20}


def inputs_of(part: str, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    """Create a network's inputs with the given sizes."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, dimensions in GRAPHS[part].inputs.items():
        shape = [size if isinstance(size, int) else sizes[size] for size in dimensions]
        if name == "input_ids":
            found[name] = torch.randint(3, 100, shape, generator=generator, dtype=torch.int32)
        elif name == "timestep":
            found[name] = torch.rand(shape, generator=generator) * 1000
        else:
            found[name] = torch.randn(shape, generator=generator)
    return found


@pytest.mark.parametrize("part", GRAPHS)
def test_a_graph_in_fp32_equals_pytorch(compiled: Path, part: str) -> None:
    """At sizes other than the traced ones, outputs differ by less than 1e-4 of the largest value."""
    graph = GRAPHS[part]
    inputs = inputs_of(part, SIZES)
    original = SimpleNamespace(network=load_network(CHECKPOINT, part, torch.float32))  # not rewritten
    with torch.inference_mode():
        expected = graph.wrapper.forward(original, **inputs)
    path = compiled_graphs(compiled, CHECKPOINT, "fp32").path(part)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
    for ours, theirs in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("part", GRAPHS)
def test_graphs_have_standard_operators_and_one_type(compiled: Path, part: str, precision: str) -> None:
    """Weights are in separate files, in the graph's type. Only timesteps (FP32) and tokens (INT32) have other types."""
    path = compiled_graphs(compiled, CHECKPOINT, precision).path(part)  # type: ignore[arg-type]
    model = onnx.load(path, load_external_data=False)
    assert {each.domain for each in model.opset_import if each.version} <= {"", "pkg.onnxscript.torch_lib.common"}
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    wide = TensorProto.FLOAT if precision == "fp32" else TensorProto.BFLOAT16
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types.pop("input_ids", TensorProto.INT32) == TensorProto.INT32
    assert types.pop("timestep", TensorProto.FLOAT) == TensorProto.FLOAT
    assert set(types.values()) == {wide}
    weights = [each for each in model.graph.initializer if each.data_location == TensorProto.EXTERNAL]
    allowed = {wide, TensorProto.FLOAT8E4M3FN} if (part, precision) == ("transformer", "fp8") else {wide}
    assert {each.data_type for each in weights if each.data_type != TensorProto.BOOL} == allowed
    assert b"site-packages" not in path.read_bytes()
