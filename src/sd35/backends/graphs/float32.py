"""Rewrite a graph in BF16 or FP8 to compute in float32. Needs `onnx`.

On a CPU, ONNX Runtime cannot multiply, add or convolve in BF16, and it does not support TensorRT's own FP8 operators.
The stored weights stay as they are. A new operator after each BF16 weight casts it to float32. Operators that round to
FP8 stay too, so values are still rounded to FP8.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}  # attributes of operators that name a number format
# Operators that NVIDIA's ModelOpt exports, and ONNX's own operators, which compute the same with a zero point in FP8.
_TENSORRT_OPERATORS = {"TRT_FP8QuantizeLinear": "QuantizeLinear", "TRT_FP8DequantizeLinear": "DequantizeLinear"}
_ZERO_POINT = "zero in FP8"  # the name of the constant in a graph
FP8_OPSET = 19  # the first version of ONNX's operators that supports FP8


def holds_fp8(model: onnx.ModelProto) -> bool:
    """Return whether a graph has FP8 (E4M3) operators or weights."""
    return any(
        node.op_type in _TENSORRT_OPERATORS
        or any(attribute.t.data_type == TensorProto.FLOAT8E4M3FN for attribute in node.attribute)
        for node in _nodes(model.graph)
    ) or any(weight.data_type == TensorProto.FLOAT8E4M3FN for weight in model.graph.initializer)


def to_float32(model: onnx.ModelProto) -> None:
    """Change a graph in place to compute in float32. BF16 inputs and outputs become float32 too."""
    if any(node.op_type in _TENSORRT_OPERATORS for node in _nodes(model.graph)):
        _to_standard_operators(model)
    for node in _nodes(model.graph):
        for attribute in node.attribute:
            _widen_attribute(attribute)
    for graph in _graphs(model.graph):
        del graph.value_info[:]  # runtimes infer these types
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        _cast_weights(graph)


def _cast_weights(graph: onnx.GraphProto) -> None:
    """Add a cast to float32 after each BF16 weight. The cast's output takes the weight's name, which operators use."""
    casts = []
    for weight in graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            name, weight.name = weight.name, f"{weight.name} in BF16"
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # ONNX requires an operator before those that use its output
    del graph.node[:]
    graph.node.extend(nodes)


def _widen_attribute(attribute: onnx.AttributeProto) -> None:
    """Replace BF16 by float32 in an operator's attribute: the name of a number format, or a constant tensor."""
    if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
        attribute.i = TensorProto.FLOAT
    elif attribute.HasField("t") and attribute.t.data_type == TensorProto.BFLOAT16:
        values = numpy_helper.to_array(attribute.t).astype(np.float32)
        attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _to_standard_operators(model: onnx.ModelProto) -> None:
    """Replace TensorRT's FP8 operators by ONNX's."""
    model.graph.initializer.append(helper.make_tensor(_ZERO_POINT, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    for node in _nodes(model.graph):
        if node.op_type in _TENSORRT_OPERATORS:
            node.op_type, node.domain = _TENSORRT_OPERATORS[node.op_type], ""
            node.input.append(_ZERO_POINT)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside its operators, such as branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Return the operators of a graph and of the graphs inside its operators."""
    return (node for inner in _graphs(graph) for node in inner.node)
