"""Parsing JSON and TOML of others: any bytes give a value, an OSError or a ValueError."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.parsing import MAX_DEPTH, parse_json, read_json, read_toml, shown

DEEP = 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * DEEP, "values nested in more than 64 levels"),
        (b'{"a":' * DEEP, "values nested in more than 64 levels"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "values nested in more than 64 levels"),
        (b"[" + b"9" * 5000 + b"]", "a number of 5000 digits; allowed: at most 1000"),
        (b"[-" + b"9" * 5000 + b"]", "a number of 5001 digits; allowed: at most 1000"),
        (b"NaN", "NaN is not a number in JSON"),
        (b"[-Infinity]", "-Infinity is not a number in JSON"),
        (b'"\xff"', "can't decode byte 0xff"),
        (b"\xff\xfe[\x00]\x00", "can't decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)
def test_malformed_json_is_a_value_error_of_one_line(content: bytes, message: str):
    """Including input that `json` accepts, or for which it raises RecursionError."""
    with pytest.raises(ValueError, match=message) as error:
        parse_json(content)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = " + b"[" * DEEP, "values nested in more than 64 levels"),
        (b"a" + b".a" * 100 + b" = 1", "values nested in more than 64 levels"),
        (b"a = " + b"9" * 5000, "integer string conversion"),
        (b'a = "\xff"', "can't decode byte 0xff"),
        (b"a", "Expected"),
    ],
)
def test_malformed_toml_is_a_short_value_error(tmp_path: Path, content: bytes, message: str):
    """Dotted keys count as nesting too."""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_toml(tmp_path / "file")
    assert len(str(error.value)) < 200


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path):
    """A directory, or a missing file."""
    for path in (tmp_path, tmp_path / "nowhere"):
        for read in (read_json, read_toml):
            with pytest.raises(OSError, match=str(path)):
                read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON)
def test_values_that_json_writes_are_parsed_unchanged(value: object):
    assert parse_json(json.dumps(value).encode()) == value


@given(content=st.binary() | st.text('[]{}":,0123456789truefalsn.e-+ \\u').map(str.encode))
def test_any_bytes_are_json_or_a_value_error(content: bytes):
    """`shown` shortens every parsed value."""
    try:
        value = parse_json(content)
    except ValueError:
        return
    assert len(shown(value)) <= 80
