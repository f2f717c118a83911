"""Load a checkpoint once, and print time and memory as JSON: `python -m benchmarks.load_once SIDE DIRECTORY`.

SIDE is `ours` (this project), `from_pretrained` (Diffusers), or `bytes`, which only reads the files. Weights are loaded
in the data type of the stored transformer. Loading ends when every page of every parameter has been read.
"""

import json
import mmap
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from sd35.backends.diffusers.loading import load_pipeline
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.host import HostMemory

PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_BUFFER_BYTES = 1 << 24


def read_bytes(checkpoint: Checkpoint) -> None:
    """Read all files of weights into one small buffer."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    files = {weight.stored.file for part in PARTS for weight in checkpoint.weights(part).values()}
    for file in sorted(files):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def touch(pipeline: Any) -> None:  # noqa: ANN401  Diffusers' class
    """Read a byte of every page of every parameter, so that mapped pages are loaded from the files."""
    for part in PARTS:
        for value in getattr(pipeline, part).state_dict().values():
            if value.numel():
                value.view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()


def weights_bytes(checkpoint: Checkpoint) -> int:
    """Return the size of all parameters on disk in bytes."""
    return sum(weight.stored.nbytes for part in PARTS for weight in checkpoint.weights(part).values())


def main() -> None:
    """Load with the side of the command line, and print the figures as JSON."""
    side, directory = sys.argv[1:]
    checkpoint = open_checkpoint(str(Path(directory)))
    dtype = _DTYPES[next(iter(checkpoint.weights("transformer").values())).stored.dtype]
    began_s = time.perf_counter()
    if side == "bytes":
        read_bytes(checkpoint)
    elif side == "ours":
        touch(load_pipeline(checkpoint, dtype))
    else:
        touch(StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=dtype))
    took_s = time.perf_counter() - began_s
    print(
        json.dumps(
            {"took_s": took_s, "peak_bytes": HostMemory().peak_bytes(), "weights_bytes": weights_bytes(checkpoint)}
        )
    )


if __name__ == "__main__":
    main()
