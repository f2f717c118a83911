"""The request in an uploaded image file."""

import json
from pathlib import Path

import numpy as np
import pytest

from sd35.errors import NotReplayable
from sd35.images.png import write_png
from sd35.images.record import MAKER_KEY, REQUEST_KEY, Maker, Record
from sd35.images.text_budget import MAX_TEXT_BYTES
from sd35.request import Request
from sd35.ui.read_request import read_request

REQUEST = Request("a cat \u2603", "", 64, 64, 4, 4.5, 7, "sd35-mini", "revision", "onnx/float32")
RECORD = Record(REQUEST, Maker("revision", "onnx", "float32", {}, 64, 64, [])).to_text()
LONG = "a" * (MAX_TEXT_BYTES + 1)
PIXELS = np.zeros((64, 64, 3), np.uint8)


def test_the_request_of_a_generated_file_is_read(tmp_path: Path):
    """The user interface and the service agree on the format, although neither imports the other."""
    file = tmp_path / "image.png"
    file.write_bytes(write_png(PIXELS, RECORD))
    assert read_request(file) == REQUEST


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GIF89a", "not a PNG, JPEG, WebP or AVIF file"),
        (write_png(PIXELS, RECORD)[:80], "damaged"),
        (write_png(PIXELS, {"parameters": "a cat"}), "another program made it, or it has no metadata"),
        (write_png(PIXELS, {**RECORD, REQUEST_KEY: "{"}), "damaged"),
        (write_png(PIXELS, {**RECORD, REQUEST_KEY: LONG}), f"longer than 262144 bytes: {REQUEST_KEY}"),
        (write_png(PIXELS, {**RECORD, MAKER_KEY: LONG}), f"longer than 262144 bytes: {MAKER_KEY}"),
        (write_png(PIXELS, {**RECORD, MAKER_KEY: json.dumps({"revision": "a"})}), "damaged"),
        (write_png(PIXELS, {**RECORD, REQUEST_KEY: RECORD[REQUEST_KEY].replace('"steps":4', '"steps":5')}), "edited"),
    ],
    ids=["other", "cut", "foreign", "no JSON", "long request", "long maker", "incomplete", "edited"],
)
def test_any_other_file_is_an_error_with_its_reason(tmp_path: Path, content: bytes, words: str):
    """The message is written for the user."""
    file = tmp_path / "file.png"
    file.write_bytes(content)
    with pytest.raises(NotReplayable, match=words):
        read_request(file)
