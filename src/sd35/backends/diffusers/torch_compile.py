"""Compile a transformer's blocks with `torch.compile`, for the `diffusers` backend.

Blocks are compiled separately, and equal blocks share their code, so the time to compile does not grow with the number
of blocks. The number of rows and the image size are symbolic, so later images need no compilation. Only a batch of a
single row has separate code.

Needs a C++ compiler, and Triton on CUDA. Not run on CUDA.
"""

from typing import Any

import torch
from torch import nn

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import BackendUnavailable
from sd35.request import SIZE_MULTIPLE_PX
from sd35.tensors import LATENT_CHANNELS, LATENT_PX

# Blocks of each kind, dtype and model are compiled separately. PyTorch's default limit of 8 is too low for them.
_RECOMPILE_LIMIT = 64


def compile_blocks(transformer: nn.Module, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Compile the blocks in place, for one row and for several. Takes tens of seconds to minutes.

    Raises BackendUnavailable if the compiler is missing or fails.
    """
    import torch._dynamo
    from torch._dynamo.exc import TorchDynamoException

    torch._dynamo.config.recompile_limit = max(_RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)  # noqa: SLF001
    blocks: Any = transformer.get_submodule("transformer_blocks")
    for block in blocks:
        block.compile(dynamic=True, fullgraph=True)
    try:
        for rows in (2, 1):  # 2 stands for any number above 1
            _call_with_zeros(transformer, checkpoint, rows, device, dtype)
    except TorchDynamoException as error:
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        remedy = "Install a C++ compiler (on CUDA, also Triton) if it is missing. Otherwise leave out --torch-compile."
        raise BackendUnavailable("diffusers", f"torch.compile failed: {reason}", remedy) from error


@torch.no_grad()
def _call_with_zeros(
    transformer: nn.Module, checkpoint: Checkpoint, rows: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Call the transformer once, so that PyTorch compiles its blocks.

    Height and width differ. If they were equal, the compiled code would require that they always are.
    """
    sizes, card = checkpoint.config("transformer"), checkpoint.card
    tokens = checkpoint.config("text_encoder")["max_position_embeddings"] + card.max_sequence_length
    height, width = (side // LATENT_PX for side in (card.side_px[0], card.side_px[0] + SIZE_MULTIPLE_PX))
    transformer(
        hidden_states=torch.zeros(rows, LATENT_CHANNELS, height, width, device=device, dtype=dtype),
        encoder_hidden_states=torch.zeros(rows, tokens, sizes["joint_attention_dim"], device=device, dtype=dtype),
        pooled_projections=torch.zeros(rows, sizes["pooled_projection_dim"], device=device, dtype=dtype),
        timestep=torch.zeros(rows, device=device),
        return_dict=False,
    )
