"""JSON and TOML of others: a value that can be worked with, or an OSError or ValueError, whatever the bytes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.parsing import MAX_DEPTH, parse_json, read_json, read_toml, shown

DEEP = 200_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * DEEP, "values nested in more than 64 levels"),
        (b'{"a":' * DEEP, "values nested in more than 64 levels"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "values nested in more than 64 levels"),
        (b"[" + b"9" * 5000 + b"]", "a number of 5000 digits; allowed: 1000"),
        (b"[-" + b"9" * 5000 + b"]", "a number of 5001 digits; allowed: 1000"),
        (b"NaN", "NaN is not a number in JSON"),
        (b"[-Infinity]", "-Infinity is not a number in JSON"),
        (b'"\xff"', "can't decode byte 0xff"),
        (b"\xff\xfe[\x00]\x00", "can't decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_is_none_is_a_value_error_of_one_line(content: bytes, says: str):
    """Also what json itself lets through, or ends with RecursionError."""
    with pytest.raises(ValueError, match=says) as told:
        parse_json(content)
    assert len(str(told.value)) < 200
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = " + b"[" * DEEP, "values nested in more than 64 levels"),
        (b"a" + b".a" * 100 + b" = 1", "values nested in more than 64 levels"),
        (b"a = " + b"9" * 5000, "integer string conversion"),
        (b'a = "\xff"', "can't decode byte 0xff"),
        (b"a", "Expected"),
    ],
)
def test_toml_that_is_none_is_a_value_error_of_one_line(tmp_path: Path, content: bytes, says: str):
    """The same for TOML, whose dotted keys nest as well."""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=says) as told:
        read_toml(tmp_path / "file")
    assert len(str(told.value)) < 200


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path):
    """A directory, and one that is not there."""
    for path in (tmp_path, tmp_path / "nowhere"):
        for read in (read_json, read_toml):
            with pytest.raises(OSError, match=str(path)):
                read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON)
def test_what_json_writes_is_read_as_it_was(value: object):
    """All that is allowed stays what it is."""
    assert parse_json(json.dumps(value).encode()) == value


@given(content=st.binary() | st.text('[]{}":,0123456789truefalsn.e-+ \\u').map(str.encode))
def test_any_bytes_are_json_or_a_value_error(content: bytes):
    """No other exception comes out, and what comes out can be shown."""
    try:
        value = parse_json(content)
    except ValueError:
        return
    assert len(shown(value)) <= 80
