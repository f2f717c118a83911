"""What a safetensors file holds, and where: its header, read and checked. No tensor library.

The format is a length of eight bytes, a JSON header of that length, then the tensors
(https://github.com/huggingface/safetensors#format).
"""

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
_MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MOST_NAME = 120
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
    with _read_errors(file):
        header, data_start = _read_header(file)
        size = file.stat().st_size
    tensors = {name: _stored(file, name, entry, data_start, size - data_start) for name, entry in header.items()}
    expected = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != expected:
            raise _broken(file, f"{_printable(name)} to begin at byte {expected}", f"byte {tensor.start}")
        expected += tensor.nbytes
    if size != expected:
        raise _broken(file, f"{expected} bytes", f"{size}; it was cut off or is another file's end")
    return tensors


def header_bytes(file: Path) -> bytes:
    """The length and the header as they stand. Raises CheckpointError like `read_tensors`."""
    with _read_errors(file):
        _, data_start = _read_header(file)
        with file.open("rb") as stream:
            return stream.read(data_start)


@contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a header, and where the data behind it begin. Raises CheckpointError, OSError, ValueError."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        begin = stream.read(32)
        length = int.from_bytes(begin[:8], "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            known = next((what for start, what in _BEGINNINGS.items() if begin.startswith(start)), None)
            raise _broken(file, "a safetensors file", known or f"{size} bytes that are none, or its beginning only")
        stream.seek(8)
        header = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise _broken(file, "a header that is a JSON object", type(header).__name__)
    metadata = header.pop("__metadata__", None) or {}
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise _broken(file, "__metadata__ of texts", shown(metadata))
    return header, 8 + length


def _stored(file: Path, name: str, entry: object, data_start: int, data_bytes: int) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if dtype in ITEM_BYTES and all(
            map(_is_size, (*shape, begin, end))
        ):
            nbytes = _bytes_of(shape, dtype, data_bytes)
            if nbytes is None or begin > data_bytes:
                raise _broken(file, f"{_printable(name)} within the {data_bytes} bytes behind the header", shown(entry))
            if end - begin != nbytes:
                raise _broken(file, f"{nbytes} bytes of {_printable(name)}", f"{end - begin}")
            return Stored(file, dtype, tuple(shape), data_start + begin, nbytes)
    raise _broken(file, f"dtype, shape and data_offsets of {_printable(name)}", shown(entry))


def _is_size(number: object) -> bool:
    """Whether it is a whole number that 64 bits hold; `bool` is a subclass of `int`."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _bytes_of(shape: Sequence[int], dtype: str, most: int) -> int | None:
    """What a tensor takes; None if that is more than `most`, however large the product is."""
    if 0 in shape:
        return 0
    nbytes = ITEM_BYTES[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > most:
            return None
    return nbytes if nbytes <= most else None


def _printable(name: str) -> str:
    """A tensor's name for an error message: as it is, unless that would be no line to read."""
    return name if name.isprintable() and len(name) <= _MOST_NAME else shown(name)


def _broken(file: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{file}: expected {expected}, found {found}")
