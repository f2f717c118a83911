"""The rule that selects the linear layers for FP8. PyTorch, ONNX graphs and the memory planner all follow it.

The matrices of attention and feed-forward layers do most of the work and tolerate FP8. The first and last layers of the
transformer, and the layers that embed the prompt and the timestep, do not tolerate FP8. Norms and softmax have no
matrices. The modulation layers (AdaLN) hold a third of SD3.5 Medium's parameters, but are sensitive to rounded inputs.
Therefore, only their weights are in FP8. If the transformer is in FP8, T5 is the largest network. The precision
"fp8-storage" saves the most memory, because it also stores most of T5's weights in FP8.
"""

import re
from collections.abc import Collection
from enum import StrEnum

_LAYER = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_ATTENTION_OR_FEED_FORWARD = re.compile(r"(attn|attn2|ff|ff_context)\.")
_MODULATION = re.compile(r"norm1(_context)?\.linear")
# `wo`, the last matrix of a feed-forward layer, is not in this list: Transformers casts its input to the format of its
# weights, so FP8 weights would also round the input.
_T5 = re.compile(r"encoder\.block\.\d+\.layer\.\d\.(SelfAttention\.[qkvo]|DenseReluDense\.wi_[01])")

# The largest value of E4M3, the FP8 format with 4 bits of exponent and 3 of mantissa (Micikevicius et al., 2022).
FP8_MAX = 448.0


class Treatment(StrEnum):
    """Which tensors of a linear layer are in FP8."""

    FP8 = "fp8"
    """The weights, and also the inputs if the precision multiplies in FP8."""
    WEIGHTS = "weights"
    """Only the weights."""
    UNCHANGED = "unchanged"
    """None. Weights and inputs are in the network's precision."""


def treatment_of(layer: str, exempt_blocks: Collection[int] = ()) -> Treatment:
    """Return which tensors of a transformer's linear layer are in FP8.

    Args:
        layer: The name in Diffusers, such as `transformer_blocks.3.attn.to_q`.
        exempt_blocks: The indices of transformer blocks without FP8.
    """
    match = _LAYER.fullmatch(layer)
    if not match or int(match[1]) in exempt_blocks:
        return Treatment.UNCHANGED
    name_in_block = match[2]
    if _ATTENTION_OR_FEED_FORWARD.match(name_in_block):
        return Treatment.FP8
    return Treatment.WEIGHTS if _MODULATION.fullmatch(name_in_block) else Treatment.UNCHANGED


def treatment_in(part: str, layer: str, precision: str) -> Treatment:
    """Return which tensors of a linear layer of any network are in FP8 if `precision` is selected.

    Args:
        part: The network's name in the Diffusers layout, such as `transformer`.
        layer: The layer's name in the network.
        precision: A precision of the `diffusers` backend.
    """
    if part == "text_encoder_3" and precision == "fp8-storage" and _T5.fullmatch(layer):
        return Treatment.WEIGHTS
    if part == "transformer" and precision.startswith("fp8"):
        return treatment_of(layer)
    return Treatment.UNCHANGED
