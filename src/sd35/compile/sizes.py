"""The size of a transformer's graph in bytes, and the share of FP8."""

import re
from dataclasses import dataclass

import onnx_ir as ir

from sd35.backends.fp8_layers import Treatment, treatment_of

_FP8 = ir.DataType.FLOAT8E4M3FN
_FROM_FP8 = re.compile(r"(.+)\.weight in FP8")


@dataclass(frozen=True)
class Sizes:
    """The size of a graph's weights, and their size in BF16.

    `layers_*` count only the matrices in FP8. `products_fp8_share` is the share of the parameters in FP8 among the
    matrices of attention and feed-forward layers.
    """

    total_bytes: int
    total_bf16_bytes: int
    layers_bytes: int
    layers_bf16_bytes: int
    products_fp8_share: float


def sizes_of(model: ir.Model) -> Sizes:
    """Measure a graph that `sd35.compile.quantise` rewrote."""
    total = total_values = fp8_values = products = fp8_products = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not value.uses() or tensor.dtype not in {_FP8, ir.DataType.BFLOAT16}:
            continue
        total, total_values = total + tensor.nbytes, total_values + tensor.size
        fp8_name = _FROM_FP8.fullmatch(str(value.name))
        layer = fp8_name[1] if fp8_name else str(value.name).removesuffix(".weight")
        is_product = treatment_of(layer) is Treatment.FP8 and len(tensor.shape) == 2
        fp8_values += tensor.size if fp8_name else 0
        products += tensor.size if is_product else 0
        fp8_products += tensor.size if is_product and fp8_name else 0
    return Sizes(total, 2 * total_values, fp8_values, 2 * fp8_values, fp8_products / max(1, products))
