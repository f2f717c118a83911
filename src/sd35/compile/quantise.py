"""Quantise a transformer's graph to FP8 (E4M3), with ONNX's QuantizeLinear and DequantizeLinear for TensorRT.

A layer's weights are stored in FP8 with one scale, and a DequantizeLinear converts them back. The layer's inputs are
rounded to FP8 with a scale from the calibration: QuantizeLinear, then DequantizeLinear. `sd35.backends.fp8_layers`
selects the layers. Needs onnx_ir.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sd35.backends.fp8_layers import FP8_MAX, Treatment, treatment_of

_FP8 = ir.DataType.FLOAT8E4M3FN
_MIN_LARGEST = 1e-30  # instead of 0, if all inputs of a layer were zero: a scale of 0 is not allowed
_FROM_FP8 = re.compile(r"(.+)\.weight in FP8")
_Scales = dict[tuple[str, float], ir.Value]  # the constants in the graph, by type and value


def quantise(model: ir.Model, largest_inputs: Mapping[str, float], exempt_blocks: Collection[int] = ()) -> list[str]:
    """Rewrite a transformer's graph in place, and return the names of the layers with FP8 weights.

    Args:
        model: A graph of `sd35.compile.networks`, in which a layer is a Gemm with the weight `<layer>.weight`.
        largest_inputs: The largest input magnitude by layer.
        exempt_blocks: The indices of the blocks that are not quantised.
    """
    rounded: dict[tuple[ir.Value, float], ir.Value] = {}  # shared by layers with the same input
    scales: _Scales = {}
    layers = []
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or not (name := str(weight.name)).endswith(".weight"):
            continue
        layer = name.removesuffix(".weight")
        treatment = treatment_of(layer, exempt_blocks)
        if treatment is Treatment.UNCHANGED:
            continue
        layers.append(layer)
        node.replace_input_with(1, _insert_fp8_weight(model.graph, node, weight, scales))
        if treatment is Treatment.FP8:
            values = node.inputs[0]
            assert values is not None
            scale = scale_of(largest_inputs[layer])
            if (values, scale) not in rounded:
                constant = _scale_constant(model.graph, weight, scale, scales)
                rounded[values, scale] = _insert_rounding(model.graph, node, values, constant)
            node.replace_input_with(0, rounded[values, scale])
    return layers


def scale_of(largest: float) -> float:
    """Return the scale that maps the magnitude `largest` to FP8's largest number.

    It is rounded up to a BF16 number, because BF16 graphs store it in BF16. If it were rounded down, the largest value
    would not fit.
    """
    scale = np.float32(max(largest, _MIN_LARGEST) / FP8_MAX)
    rounded = ml_dtypes.bfloat16(scale)
    return float(rounded if np.float32(rounded) >= scale else np.nextafter(rounded, ml_dtypes.bfloat16(math.inf)))


def _insert_fp8_weight(graph: ir.Graph, user: ir.Node, weight: ir.Value, scales: _Scales) -> ir.Value:
    """Add a weight in FP8 and its dequantisation before the node `user`. Return the dequantised weight.

    The values in FP8 are computed when the graph is saved, one weight at a time.
    """
    tensor = weight.const_value
    assert tensor is not None
    scale = scale_of(float(np.abs(tensor.numpy().astype(np.float32)).max()))

    def rounded() -> ir.TensorProtocol:
        values = tensor.numpy().astype(np.float32) / np.float32(scale)
        return ir.tensor(np.clip(values, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn), dtype=_FP8)

    shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
    in_fp8 = ir.LazyTensor(rounded, dtype=_FP8, shape=shape, name=f"{weight.name} in FP8")
    stored = ir.Value(name=in_fp8.name, shape=shape, type=ir.TensorType(_FP8), const_value=in_fp8)
    graph.register_initializer(stored)
    constant = _scale_constant(graph, weight, scale, scales)
    dequantise = ir.node("DequantizeLinear", [stored, constant], name=f"{weight.name} from FP8")
    dequantise.outputs[0].name = f"{weight.name} from FP8"
    graph.insert_before(user, dequantise)
    return dequantise.outputs[0]


def _insert_rounding(graph: ir.Graph, user: ir.Node, values: ir.Value, scale: ir.Value) -> ir.Value:
    """Add nodes that round values to FP8 before the node `user`. Return the rounded values."""
    name = str(values.name)
    to_fp8 = ir.node("QuantizeLinear", [values, scale], {"output_dtype": int(_FP8)}, name=f"{name} to FP8")
    to_fp8.outputs[0].name = f"{name} in FP8"
    dequantise = ir.node("DequantizeLinear", [to_fp8.outputs[0], scale], name=f"{name} from FP8")
    dequantise.outputs[0].name = f"{name} from FP8"
    graph.insert_before(user, [to_fp8, dequantise])
    return dequantise.outputs[0]


def _scale_constant(graph: ir.Graph, weight: ir.Value, scale: float, scales: _Scales) -> ir.Value:
    """Return the constant of a scale, and add it to the graph if it is new.

    The constant has the type of the weight, because DequantizeLinear returns values of the type of its scale.
    """
    dtype = weight.dtype
    assert dtype is not None
    key = (dtype.name, scale)
    if key not in scales:
        name = f"scale {scale!r}"
        tensor = ir.tensor(np.array(scale, dtype=dtype.numpy()), dtype=dtype, name=name)
        scales[key] = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(dtype), const_value=tensor)
        graph.register_initializer(scales[key])
    return scales[key]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a graph's weights.

    Attributes:
        total_bytes: The size of all weights.
        total_bf16_bytes: The size that all weights would have in BF16.
        layers_bytes: The size of the matrices in FP8.
        layers_bf16_bytes: The size that the matrices in FP8 would have in BF16.
        products_fp8_share: The share of the parameters in FP8 among the matrices of attention and feed-forward layers.
    """

    total_bytes: int
    total_bf16_bytes: int
    layers_bytes: int
    layers_bf16_bytes: int
    products_fp8_share: float


def sizes_of(model: ir.Model) -> Sizes:
    """Add up the sizes of the weights of a graph from `quantise`."""
    total_bytes = total_values = fp8_values = products = fp8_products = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not value.uses() or tensor.dtype not in {_FP8, ir.DataType.BFLOAT16}:
            continue
        total_bytes, total_values = total_bytes + tensor.nbytes, total_values + tensor.size
        fp8_name = _FROM_FP8.fullmatch(str(value.name))
        layer = fp8_name[1] if fp8_name else str(value.name).removesuffix(".weight")
        is_product = treatment_of(layer) is Treatment.FP8 and len(tensor.shape) == 2
        fp8_values += tensor.size if fp8_name else 0
        products += tensor.size if is_product else 0
        fp8_products += tensor.size if is_product and fp8_name else 0
    # A value takes two bytes in BF16 and one in FP8.
    return Sizes(total_bytes, 2 * total_values, fp8_values, 2 * fp8_values, fp8_products / max(1, products))
