"""What a transformer's graph holds in bytes, and how much of it is FP8."""

import re
from dataclasses import dataclass

import onnx_ir as ir

from sd35.backends.fp8_layers import Treatment, treatment_of

_FP8 = ir.DataType.FLOAT8E4M3FN
_FROM_FP8 = re.compile(r"(.+)\.weight in FP8")


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights, and what the same weights are in BF16.

    `layers_*`: of the matrices that are in FP8. `products_fp8_share`: of the numbers in the matrices of attention and
    inner layers, those in FP8.
    """

    total_bytes: int
    total_bf16_bytes: int
    layers_bytes: int
    layers_bf16_bytes: int
    products_fp8_share: float


def sizes_of(model: ir.Model) -> Sizes:
    """Of a graph that `sd35.compile.quantise` rewrote."""
    total = total_values = fp8_values = products = fp8_products = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not value.uses() or tensor.dtype not in {_FP8, ir.DataType.BFLOAT16}:
            continue
        total, total_values = total + tensor.nbytes, total_values + tensor.size
        found = _FROM_FP8.fullmatch(str(value.name))
        layer = found[1] if found else str(value.name).removesuffix(".weight")
        is_product = treatment_of(layer) is Treatment.FP8 and len(tensor.shape) == 2
        fp8_values += tensor.size if found else 0
        products += tensor.size if is_product else 0
        fp8_products += tensor.size if is_product and found else 0
    return Sizes(total, 2 * total_values, fp8_values, 2 * fp8_values, fp8_products / max(1, products))
