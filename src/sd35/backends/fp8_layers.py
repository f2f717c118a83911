"""Which linear layers are in FP8: the one rule, whatever computes it.

Matrices of attention and of the inner layers are most of the work and bear FP8 well. What makes and takes in the
conditioning does not, nor do the first and last layers of the whole; norms and softmax have no matrices. Modulations
(AdaLN) are a third of SD3.5 Medium and are sensitive in their inputs: their weights alone are stored in FP8. Beside a
transformer in FP8 the largest network is T5: where memory is what counts ("fp8-storage"), its are stored so, too.
"""

import re
from collections.abc import Collection
from enum import StrEnum

_LAYER = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_PRODUCTS = re.compile(r"(attn|attn2|ff|ff_context)\.")
_MODULATION = re.compile(r"norm1(_context)?\.linear")
# But for the inner layer's last matrix, `wo`: Transformers casts what goes into it to the format it is stored in.
_T5 = re.compile(r"encoder\.block\.\d+\.layer\.\d\.(SelfAttention\.[qkvo]|DenseReluDense\.wi_[01])")

LARGEST = 448.0  # of E4M3, the format: 4 bits of exponent, 3 of mantissa, no infinity (Micikevicius et al., 2022)


class Treatment(StrEnum):
    """FP8: weights and what they are multiplied with. WEIGHTS: weights alone. HIGH: as the rest of the network."""

    FP8 = "fp8"
    WEIGHTS = "weights"
    HIGH = "high"


def treatment_of(layer: str, exempt_blocks: Collection[int] = ()) -> Treatment:
    """How a linear layer is treated, by its name in Diffusers: `transformer_blocks.3.attn.to_q`.

    `exempt_blocks`: numbers of transformer blocks that stay as they are.
    """
    found = _LAYER.fullmatch(layer)
    if not found or int(found[1]) in exempt_blocks:
        return Treatment.HIGH
    if _PRODUCTS.match(found[2]):
        return Treatment.FP8
    return Treatment.WEIGHTS if _MODULATION.fullmatch(found[2]) else Treatment.HIGH


def treatment_in(part: str, layer: str, precision: str) -> Treatment:
    """The same for any network of a pipeline, in a precision of the `diffusers` backend."""
    if part == "text_encoder_3" and precision == "fp8-storage" and _T5.fullmatch(layer):
        return Treatment.WEIGHTS
    return treatment_of(layer) if part == "transformer" and precision.startswith("fp8") else Treatment.HIGH
