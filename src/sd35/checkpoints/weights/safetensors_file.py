"""Read and validate the header of a safetensors file, without a tensor library.

A file consists of a length in eight bytes, a JSON header of that length, and the data of the tensors
(https://github.com/huggingface/safetensors#format).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35.errors import CheckpointError
from sd35.parsing import parse_json, shown

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_NAME_LENGTH = 120
# By the first bytes of a file: a format that is often mistaken for safetensors, for the error.
_OTHER_FORMATS: Mapping[bytes, str] = {
    b"PK": "a pickle in a zip file, as torch.save writes; pickles can execute code, so convert it to safetensors",
    b"\x80": "a pickle; pickles can execute code, so convert it to safetensors",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file; fetch the file with: git lfs pull",
    b"<": "a web page, possibly from a failed download; download the file again",
}


@dataclass(frozen=True)
class Stored:
    """The location of a tensor in a file.

    `dtype` is a key of `ITEM_BYTES`. `start` is the offset of the tensor's data in the file, in bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_tensors(file: Path) -> dict[str, Stored]:
    """Return the locations of a file's tensors, by name. Raises CheckpointError if the file is damaged."""
    with _read_errors(file):
        header, data_start = _read_header(file)
        size = file.stat().st_size
    tensors = {name: _stored(file, name, entry, data_start, size - data_start) for name, entry in header.items()}
    # The format requires that the tensors fill the file without gaps and overlaps.
    expected = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != expected:
            raise _broken(file, f"{_printable(name)} to start at byte {expected}", f"byte {tensor.start}")
        expected += tensor.nbytes
    if size != expected:
        raise _broken(file, f"{expected} bytes", f"{size}")
    return tensors


def header_bytes(file: Path) -> bytes:
    """Return the bytes of a file before the tensors' data. Raises CheckpointError if its header is not valid."""
    with _read_errors(file):
        _, data_start = _read_header(file)
        with file.open("rb") as stream:
            return stream.read(data_start)


def weights_layout(folder: Path) -> str:
    """Return a SHA-256 over the names and headers of a folder's safetensors files.

    Raises CheckpointError if a header is not valid.
    """
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode() + header_bytes(path))
    return total.hexdigest()


@contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    """Convert OSError and ValueError (not valid JSON) to CheckpointError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{file} cannot be read as safetensors: {reason}; check or replace this file") from error


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header's entries by name, and the offset of the data in bytes.

    Raises CheckpointError if the header is not valid, and OSError or ValueError if it cannot be read or parsed.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(32)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            known = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
            if known:
                raise CheckpointError(f"{file}: expected a safetensors file, found {known}")
            raise _broken(file, "a safetensors file", f"{size} bytes of another or a truncated file")
        stream.seek(8)
        header = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise _broken(file, "a header that is a JSON object", type(header).__name__)
    metadata = header.pop("__metadata__", None) or {}
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise _broken(file, "__metadata__ with strings as values", shown(metadata))
    return header, 8 + length


def _stored(file: Path, name: str, entry: object, data_start: int, data_bytes: int) -> Stored:
    """Convert a tensor's entry in the header to its location in the file. The entry counts offsets from `data_start`.

    Raises CheckpointError if the entry is not valid.
    """
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if dtype in ITEM_BYTES and all(
            map(_is_size, (*shape, begin, end))
        ):
            nbytes = _bytes_of(shape, dtype, data_bytes)
            if nbytes is None or begin > data_bytes:
                raise _broken(file, f"{_printable(name)} within the {data_bytes} bytes after the header", shown(entry))
            if end - begin != nbytes:
                raise _broken(file, f"{nbytes} bytes of {_printable(name)}", f"{end - begin}")
            return Stored(file, dtype, tuple(shape), data_start + begin, nbytes)
    raise _broken(file, f"dtype, shape and data_offsets of {_printable(name)}", shown(entry))


def _is_size(number: object) -> bool:
    """Return whether a value is a non-negative integer of at most 63 bits. In Python, a `bool` is also an `int`."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _bytes_of(shape: Sequence[int], dtype: str, limit: int) -> int | None:
    """Return a tensor's size in bytes, or None if it exceeds `limit`. Never computes with huge numbers."""
    if 0 in shape:
        return 0
    nbytes = ITEM_BYTES[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > limit:
            return None
    return nbytes if nbytes <= limit else None


def _printable(name: str) -> str:
    """Format a tensor's name for an error message. Shortens and escapes it if it is long or not printable."""
    return name if name.isprintable() and len(name) <= _MAX_NAME_LENGTH else shown(name)


def _broken(file: Path, expected: str, found: str) -> CheckpointError:
    """Build the error for a damaged file."""
    return CheckpointError(f"{file}: expected {expected}, found {found}; download or copy the file again")
