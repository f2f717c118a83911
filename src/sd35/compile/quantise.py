"""Puts FP8 (E4M3) into a transformer's graph: ONNX's QuantizeLinear and DequantizeLinear, as TensorRT reads them.

A layer's weights are stored in FP8 with one scale; what they are multiplied with is rounded to FP8 with a scale that
calibration found. Which layers: `sd35.backends.fp8_layers`. Needs onnx_ir.
"""

import math
from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sd35.backends.fp8_layers import LARGEST, Treatment, treatment_of

_FP8 = ir.DataType.FLOAT8E4M3FN
_TINY = 1e-30  # a layer that only ever saw zeros needs a scale, too
_Scales = dict[tuple[str, float], ir.Value]


def quantise(model: ir.Model, largest_inputs: Mapping[str, float], exempt_blocks: Collection[int] = ()) -> list[str]:
    """Rewrites the graph of a transformer in place; the names of the layers whose weights are in FP8 now.

    The graph is one of `sd35.compile.networks`: a layer is a Gemm of the weight `<layer>.weight`. `largest_inputs`: by
    layer, the largest magnitude that it is multiplied with.
    """
    rounded: dict[tuple[ir.Value, float], ir.Value] = {}  # layers that share an input share its rounding
    scales: _Scales = {}
    layers = []
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or not (name := str(weight.name)).endswith(".weight"):
            continue
        layer = name.removesuffix(".weight")
        treatment = treatment_of(layer, exempt_blocks)
        if treatment is Treatment.HIGH:
            continue
        layers.append(layer)
        node.replace_input_with(1, _stored_in_fp8(model.graph, node, weight, scales))
        if treatment is Treatment.FP8:
            values = node.inputs[0]
            assert values is not None
            scale = scale_of(largest_inputs[layer])
            if (values, scale) not in rounded:
                rounded[values, scale] = _rounded(
                    model.graph, node, values, _constant(model.graph, weight, scale, scales)
                )
            node.replace_input_with(0, rounded[values, scale])
    return layers


def scale_of(largest: float) -> float:
    """What FP8's largest number stands for the given one with: rounded up to BF16, which a graph may hold it in."""
    scale = np.float32(max(largest, _TINY) / LARGEST)
    rounded = ml_dtypes.bfloat16(scale)
    return float(rounded if np.float32(rounded) >= scale else np.nextafter(rounded, ml_dtypes.bfloat16(math.inf)))


def _stored_in_fp8(graph: ir.Graph, user: ir.Node, weight: ir.Value, scales: _Scales) -> ir.Value:
    """The weight as it comes out of FP8. Computed when the graph is written, one at a time."""
    tensor = weight.const_value
    assert tensor is not None
    scale = scale_of(float(np.abs(tensor.numpy().astype(np.float32)).max()))

    def rounded() -> ir.TensorProtocol:
        values = tensor.numpy().astype(np.float32) / np.float32(scale)
        return ir.tensor(np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn), dtype=_FP8)

    shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
    small = ir.LazyTensor(rounded, dtype=_FP8, shape=shape, name=f"{weight.name} in FP8")
    stored = ir.Value(name=small.name, shape=shape, type=ir.TensorType(_FP8), const_value=small)
    graph.register_initializer(stored)
    whole = ir.node(
        "DequantizeLinear", [stored, _constant(graph, weight, scale, scales)], name=f"{weight.name} from FP8"
    )
    whole.outputs[0].name = f"{weight.name} from FP8"
    graph.insert_before(user, whole)
    return whole.outputs[0]


def _rounded(graph: ir.Graph, user: ir.Node, values: ir.Value, scale: ir.Value) -> ir.Value:
    """The values as they come out of FP8."""
    name = str(values.name)
    small = ir.node("QuantizeLinear", [values, scale], {"output_dtype": int(_FP8)}, name=f"{name} to FP8")
    small.outputs[0].name = f"{name} in FP8"
    whole = ir.node("DequantizeLinear", [small.outputs[0], scale], name=f"{name} from FP8")
    whole.outputs[0].name = f"{name} from FP8"
    graph.insert_before(user, [small, whole])
    return whole.outputs[0]


def _constant(graph: ir.Graph, weight: ir.Value, scale: float, scales: _Scales) -> ir.Value:
    """A scale, in the number format of the weights: what comes out of FP8 is of its scale's."""
    dtype = weight.dtype
    assert dtype is not None
    key = (dtype.name, scale)
    if key not in scales:
        name = f"scale {scale!r}"
        tensor = ir.tensor(np.array(scale, dtype=dtype.numpy()), dtype=dtype, name=name)
        scales[key] = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(dtype), const_value=tensor)
        graph.register_initializer(scales[key])
    return scales[key]
