"""Headers of safetensors files are read as by the safetensors library, or refused with CheckpointError."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from sd35.checkpoints.weights.safetensors_file import ITEM_BYTES, header_bytes, read_tensors
from sd35.errors import CheckpointError

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header: Any, data: bytes = bytes(8)) -> bytes:
    """Return the content of a file with a header, which is given as bytes or as a JSON value."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors(b"[" * 200_000), "nested in more than 64 levels"),
        (safetensors(b'{"a": ' * 200_000), "nested in more than 64 levels"),
        (safetensors({"a": {**ONE, "shape": [int("9" * 4000)]}}), "a number of 4000 digits; allowed: at most 1000"),
        (safetensors({"a": {**ONE, "shape": [int("9" * 900)]}}), "expected dtype, shape and data_offsets of a, found"),
        (safetensors({"a": {**ONE, "shape": [2**62] * 5000}}), "expected a within the 8 bytes after the header"),
        (safetensors({"a": {**ONE, "shape": [-2, -1]}}), "expected dtype, shape and data_offsets of a"),
        (safetensors({"a": {**ONE, "shape": [True, 2]}}), "expected dtype, shape and data_offsets of a"),
        (safetensors({"a": {**ONE, "shape": [2.0]}}), "expected dtype, shape and data_offsets of a"),
        (safetensors({"a": {**ONE, "dtype": "F8_E8M0"}}), "expected dtype, shape and data_offsets of a"),
        (safetensors({"a": {**ONE, "data_offsets": [-8, 0]}}), "expected dtype, shape and data_offsets of a"),
        (safetensors({"a": {**ONE, "data_offsets": [8, 16]}}), "expected a to start at byte"),
        (safetensors({"a": {**ONE, "data_offsets": [8, 0]}}), "expected 8 bytes of a, found -8"),
        (safetensors({"a": {**ONE, "data_offsets": [2**62, 2**62 + 8]}}), "expected a within the 8 bytes"),
        (safetensors({"a": ONE, "b": ONE}), "expected b to start at byte"),
        (safetensors({"a": ONE}, bytes(12)), r"bytes, found \d+; download or copy the file again"),
        (safetensors({"a": ONE}, bytes(4)), "expected a within the 4 bytes"),
        (safetensors({"a": ONE, "__metadata__": 3}), "expected __metadata__ with strings as values, found 3"),
        (safetensors({"a": ONE, "__metadata__": {"x": 3}}), "expected __metadata__ with strings as values"),
        (safetensors({"\n" * 500: 3}), r"expected dtype, shape and data_offsets of '\\n\\n"),
        (safetensors([]), "expected a header that is a JSON object, found list"),
        (safetensors(b'{"a": NaN}'), "NaN is not a number in JSON"),
        (safetensors(b'{"\xff": 1}'), "can't decode byte 0xff"),
        (struct.pack("<Q", 2**63) + b"{}", "expected a safetensors file, found 10 bytes"),
        (struct.pack("<Q", 3) + b"{}", "expected a safetensors file, found 10 bytes"),
        (b"", "expected a safetensors file, found 0 bytes"),
    ],
)
def test_an_invalid_header_is_refused_in_one_short_line(tmp_path: Path, content: bytes, says: str):
    """The error has the file, what was expected and what was found."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as refused:
        read_tensors(file)
    assert str(refused.value).startswith(str(file))
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("read", [read_tensors, header_bytes])
def test_an_unreadable_file_is_refused(tmp_path: Path, read: Any):
    """The path does not exist, or it is a directory."""
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=f"{path} cannot be read as safetensors"):
            read(path)


SIZES = st.integers(-1, 5) | st.sampled_from([True, 2.0, 2**31, 2**62, 2**64, None, "1"])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*ITEM_BYTES, "F4", "?", 3]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(st.integers(0, 40), min_size=1, max_size=3),
    },
    optional={"more": st.integers()},
)
HEADER = st.dictionaries(
    st.text(max_size=3) | st.just("__metadata__"), ENTRY | st.none() | st.just({"a": "b"}), max_size=3
)


@given(
    content=st.binary(max_size=200) | st.builds(safetensors, HEADER | st.binary(max_size=60), st.binary(max_size=40))
)
def test_any_bytes_are_read_as_by_the_library_or_refused(tmp_path_factory: Any, content: bytes):
    """Accepted files have the same shapes and bytes in the safetensors library."""
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(content)
    try:
        found = read_tensors(file)
    except CheckpointError:
        return
    theirs = dict(deserialize(content))  # type: ignore[no-untyped-call]
    assert found.keys() == theirs.keys()
    for name, tensor in found.items():
        assert list(tensor.shape) == theirs[name]["shape"]
        assert content[tensor.start : tensor.start + tensor.nbytes] == bytes(theirs[name]["data"])


@given(data=st.data())
def test_files_that_the_library_accepts_are_accepted(tmp_path_factory: Any, data: st.DataObject):
    """The files have tensors of all types, stored without gaps."""
    header: dict[str, Any] = {}
    end = 0
    for index in range(data.draw(st.integers(0, 4))):
        dtype, shape = (
            data.draw(st.sampled_from(sorted(ITEM_BYTES))),
            data.draw(st.lists(st.integers(0, 4), max_size=3)),
        )
        nbytes = ITEM_BYTES[dtype]
        for size in shape:
            nbytes *= size
        header[f"t{index}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    content = safetensors(header, bytes(end))
    deserialize(content)  # type: ignore[no-untyped-call]
    file = tmp_path_factory.getbasetemp() / "valid.safetensors"
    file.write_bytes(content)
    assert {name: list(tensor.shape) for name, tensor in read_tensors(file).items()} == {
        name: entry["shape"] for name, entry in header.items()
    }
