"""Rewrite a graph in BF16 or FP8 to compute in float32. Needs `onnx`.

On a CPU, ONNX Runtime cannot multiply, add or convolve in BF16, and it does not support TensorRT's own FP8 operators.
The stored weights stay as they are, each followed by a cast. FP8 operators stay too, so values are rounded to FP8.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}
# Written by ModelOpt's exporter. ONNX's operators are equivalent if their zero point is in FP8.
_TENSORRT_OPERATORS = {"TRT_FP8QuantizeLinear": "QuantizeLinear", "TRT_FP8DequantizeLinear": "DequantizeLinear"}
_ZERO = "zero in FP8"
FP8_OPSET = 19  # the first in which ONNX's operators support FP8


def holds_fp8(model: onnx.ModelProto) -> bool:
    """Return whether a graph has FP8 (E4M3) operators or weights."""
    return any(
        node.op_type in _TENSORRT_OPERATORS
        or any(each.t.data_type == TensorProto.FLOAT8E4M3FN for each in node.attribute)
        for node in _nodes(model.graph)
    ) or any(weight.data_type == TensorProto.FLOAT8E4M3FN for weight in model.graph.initializer)


def to_float32(model: onnx.ModelProto) -> None:
    """Rewrite a graph in place, including its inputs and outputs."""
    if any(node.op_type in _TENSORRT_OPERATORS for node in _nodes(model.graph)):
        _to_standard_operators(model)
    for node in _nodes(model.graph):
        for attribute in node.attribute:
            _widen(attribute)
    for graph in _graphs(model.graph):
        del graph.value_info[:]  # runtimes infer these types
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        _cast_weights(graph)


def _cast_weights(graph: onnx.GraphProto) -> None:
    casts = []
    for weight in graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            name, weight.name = weight.name, f"{weight.name} in BF16"
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _widen(attribute: onnx.AttributeProto) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
        attribute.i = TensorProto.FLOAT
    elif attribute.HasField("t") and attribute.t.data_type == TensorProto.BFLOAT16:
        values = numpy_helper.to_array(attribute.t).astype(np.float32)
        attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _to_standard_operators(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor(_ZERO, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    for node in _nodes(model.graph):
        if node.op_type in _TENSORRT_OPERATORS:
            node.op_type, node.domain = _TENSORRT_OPERATORS[node.op_type], ""
            node.input.append(_ZERO)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside its operators, such as branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for each in _graphs(graph) for node in each.node)
