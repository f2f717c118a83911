"""`torch.compile` of a transformer's blocks, for the `diffusers` backend. Needs torch, a C++ compiler, on CUDA Triton.

Block by block: blocks that are alike share their code, so that compiling takes as long for 38 of them as for a few.
Rows and sizes are symbols in it: no image waits for a compiler. Only one row alone is code of its own. On CUDA not
run.
"""

from typing import Any

import torch
from torch import nn

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import BackendUnavailable
from sd35.request import SIZE_MULTIPLE_PX
from sd35.tensors import LATENT_CHANNELS, LATENT_PX

_CODES = 64  # of one block's code for how many kinds of block, formats and models; PyTorch gives up at 8


def compile_blocks(transformer: nn.Module, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Compile now, in place, for 1 row and for more: tens of seconds to minutes. Raises BackendUnavailable."""
    import torch._dynamo
    from torch._dynamo.exc import TorchDynamoException

    torch._dynamo.config.recompile_limit = max(_CODES, torch._dynamo.config.recompile_limit)  # noqa: SLF001
    blocks: Any = transformer.get_submodule("transformer_blocks")
    for block in blocks:
        block.compile(dynamic=True, fullgraph=True)
    try:
        for rows in (2, 1):
            _call(transformer, checkpoint, rows, device, dtype)
    except TorchDynamoException as error:
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise BackendUnavailable(
            "diffusers", f"torch.compile failed: {said}", "Install a C++ compiler, or leave out --torch-compile."
        ) from error


@torch.no_grad()
def _call(transformer: nn.Module, checkpoint: Checkpoint, rows: int, device: torch.device, dtype: torch.dtype) -> None:
    """A call with zeros of the least size. Its sides differ: what is equal by chance would be compiled as equal."""
    sizes, card = checkpoint.config("transformer"), checkpoint.card
    tokens = checkpoint.config("text_encoder")["max_position_embeddings"] + card.max_sequence_length
    least, more = (side // LATENT_PX for side in (card.side_px[0], card.side_px[0] + SIZE_MULTIPLE_PX))
    transformer(
        hidden_states=torch.zeros(rows, LATENT_CHANNELS, least, more, device=device, dtype=dtype),
        encoder_hidden_states=torch.zeros(rows, tokens, sizes["joint_attention_dim"], device=device, dtype=dtype),
        pooled_projections=torch.zeros(rows, sizes["pooled_projection_dim"], device=device, dtype=dtype),
        timestep=torch.zeros(rows, device=device),
        return_dict=False,
    )
