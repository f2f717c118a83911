"""What a safetensors file holds, and where: its header, read and checked. No tensor library.

The format is a length of eight bytes, a JSON header of that length, then the tensors
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35.errors import CheckpointError

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_BEGINNINGS: Mapping[bytes, str] = {
    b"PK": "a pickle in a zip file, as torch.save writes; pickles run code when they are read and are never opened",
    b"\x80": "a pickle; pickles run code when they are read and are never opened",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with: git lfs pull",
    b"<": "a web page, perhaps a refused download's",
}


@dataclass(frozen=True)
class Stored:
    """One tensor in a file. `dtype` is one of `ITEM_BYTES`; `start` counts in bytes from the file's beginning."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a file by name. Raises CheckpointError for what is no safetensors file, or not a whole one."""
    header, data_start = _read_header(file)
    tensors = {name: _stored(file, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"}
    expected = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != expected:
            raise _broken(file, f"{name} to begin at byte {expected}", f"byte {tensor.start}")
        expected += tensor.nbytes
    if (size := file.stat().st_size) != expected:
        raise _broken(file, f"{expected} bytes", f"{size}; it was cut off or is another file's end")
    return tensors


def header_bytes(file: Path) -> bytes:
    """The length and the header as they stand. Raises CheckpointError like `read_tensors`."""
    _, data_start = _read_header(file)
    with file.open("rb") as stream:
        return stream.read(data_start)


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """A header, and where the data behind it begin."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            begin = stream.read(32)
            length = int.from_bytes(begin[:8], "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
                known = next((what for start, what in _BEGINNINGS.items() if begin.startswith(start)), None)
                raise _broken(file, "a safetensors file", known or f"{size} bytes that are none, or its beginning only")
            stream.seek(8)
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise _broken(file, "a header that is a JSON object", type(header).__name__)
    return header, 8 + length


def _stored(file: Path, name: str, entry: object, data_start: int) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            dtype in ITEM_BYTES and all(isinstance(size, int) and size >= 0 for size in shape)
        ):
            nbytes = math.prod(shape) * ITEM_BYTES[dtype]
            if end - begin != nbytes:
                raise _broken(file, f"{nbytes} bytes of {name}", f"{end - begin}")
            return Stored(file, dtype, tuple(shape), data_start + begin, nbytes)
    raise _broken(file, f"dtype, shape and data_offsets of {name}", repr(entry))


def _broken(file: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{file}: expected {expected}, found {found}")
