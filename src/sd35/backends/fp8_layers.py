"""The rule that selects the linear layers for FP8. PyTorch, ONNX graphs and the memory planner all follow it.

The matrices of attention and feed-forward layers do most of the work and tolerate FP8. The layers that embed the
conditioning do not, nor do the transformer's first and last layers. Norms and softmax have no matrices. The modulation
layers (AdaLN) hold a third of SD3.5 Medium's parameters, but are sensitive to rounded inputs: only their weights are in
FP8. Next to a transformer in FP8, T5 is the largest network. The precision "fp8-storage" saves the most memory: it also
stores T5's weights in FP8.
"""

import re
from collections.abc import Collection
from enum import StrEnum

_LAYER = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_PRODUCTS = re.compile(r"(attn|attn2|ff|ff_context)\.")
_MODULATION = re.compile(r"norm1(_context)?\.linear")
# Without `wo`, the last matrix of a feed-forward layer: Transformers casts its input to the format of its weights.
_T5 = re.compile(r"encoder\.block\.\d+\.layer\.\d\.(SelfAttention\.[qkvo]|DenseReluDense\.wi_[01])")

FP8_MAX = 448.0  # of E4M3: 4 bits of exponent, 3 of mantissa, no infinity (Micikevicius et al., 2022)


class Treatment(StrEnum):
    """How a linear layer computes.

    FP8: weights and inputs are in FP8. WEIGHTS: only the weights are. UNCHANGED: both are in the network's precision.
    """

    FP8 = "fp8"
    WEIGHTS = "weights"
    UNCHANGED = "unchanged"


def treatment_of(layer: str, exempt_blocks: Collection[int] = ()) -> Treatment:
    """Return the treatment of a transformer's linear layer.

    Args:
        layer: The name in Diffusers, such as `transformer_blocks.3.attn.to_q`.
        exempt_blocks: The indices of transformer blocks without FP8.
    """
    found = _LAYER.fullmatch(layer)
    if not found or int(found[1]) in exempt_blocks:
        return Treatment.UNCHANGED
    if _PRODUCTS.match(found[2]):
        return Treatment.FP8
    return Treatment.WEIGHTS if _MODULATION.fullmatch(found[2]) else Treatment.UNCHANGED


def treatment_in(part: str, layer: str, precision: str) -> Treatment:
    """Return the treatment of a linear layer of any network, in a precision of the `diffusers` backend."""
    if part == "text_encoder_3" and precision == "fp8-storage" and _T5.fullmatch(layer):
        return Treatment.WEIGHTS
    return treatment_of(layer) if part == "transformer" and precision.startswith("fp8") else Treatment.UNCHANGED
