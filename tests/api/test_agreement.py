"""`png-info`, the user interface and `sd35 replay` find the same request in a file, or all find none."""

import base64
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sd35.errors import NotReplayable
from sd35.generation.model_pool import ModelPool
from sd35.generation.replay import read_stored_image
from sd35.images.encode import encode
from sd35.images.formats import Format
from sd35.images.png import write_png
from sd35.images.record import MAKER_KEY, REQUEST_KEY, Maker, Record, from_text
from sd35.images.texts import read_record
from sd35.request import Request
from sd35.ui.read_request import read_request
from tests.images.test_texts import BOMB, chunk, exif, png, text_chunk
from tests.support.serving import serving

PIXELS = np.zeros((16, 16, 3), np.uint8)
REQUEST = Request("a 猫 \U0001f431", "a dog", 96, 64, 4, 4.5, 7, "mini", "5" * 64, "onnx/float32")
TEXTS = Record(REQUEST, Maker("5" * 64, "onnx", "float32", {"sd35": "1"}, 96, 64, [])).to_text()
OWN = write_png(PIXELS, TEXTS)
_DIGEST = re.compile("/v1/artifacts/([0-9a-f]{64})")


def without(key: str) -> bytes:
    """Return a PNG file without one of the texts of the record."""
    return write_png(PIXELS, {name: text for name, text in TEXTS.items() if name != key})


def chunks(kind: str = "iTXt") -> list[bytes]:
    """Return the record in PNG text chunks of a kind."""
    return [text_chunk(kind, key, text) for key, text in TEXTS.items()]


WITH_REQUEST: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: OWN,
    **{each.name: partial(encode, OWN, each, has_metadata=True) for each in Format},
    "behind the image data": lambda: png(after=b"".join(chunks())),
    "compressed": lambda: png(*chunks("compressed")),
    "with a user comment": lambda: png(*chunks(), chunk(b"eXIf", exif(b"UNICODE\0" + "a cow".encode("utf-16-le")))),
    "with AUTOMATIC1111's text": lambda: png(text_chunk("tEXt", "parameters", "a cow\nSteps: 1"), *chunks()),
    "with a bomb behind": lambda: png(*chunks(), chunk(b"zTXt", b"bomb\0\0" + BOMB)),
    "with a long text before": lambda: png(text_chunk("tEXt", "workflow", "a" * 1_000_000), *chunks()),
    "cut off in the image data": lambda: OWN[:-30],
    "gray": lambda: png(*chunks()).replace(b"\x08\x02\0\0\0", b"\x08\0\0\0\0"),
}
WITHOUT_REQUEST: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a text": lambda: b"a cat",
    "another PNG file": lambda: png(text_chunk("tEXt", "parameters", "a cow\nSteps: 1, Seed: 2, Size: 8x8")),
    "without metadata": lambda: encode(OWN, Format.PNG, has_metadata=False),
    **{f"without {key}": partial(without, key) for key in TEXTS if key != "Software"},
    "edited": lambda: write_png(PIXELS, {**TEXTS, REQUEST_KEY: TEXTS[REQUEST_KEY].replace("dog", "cow")}),
    "with a damaged maker": lambda: write_png(PIXELS, {**TEXTS, MAKER_KEY: "{}"}),
    "with a wrong checksum": lambda: OWN.replace(b"a dog", b"a cow"),
    "cut off in the texts": lambda: OWN[:100],
    "behind a bomb": lambda: png(chunk(b"zTXt", b"bomb\0\0" + BOMB), *chunks()),
    "behind a damaged stream": lambda: png(chunk(b"zTXt", b"bomb\0\0" + zlib.compress(b"a")[:-1]), *chunks()),
}


@pytest.fixture
def client(pool: ModelPool) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    with serving(pool) as client:
        yield client


def of_png_info(client: TestClient, file: bytes) -> str | None:
    """Return the digest of the request that `png-info` finds in a file, or None."""
    answer = client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file).decode()})
    if answer.status_code == 422:
        return None
    assert answer.status_code == 200, answer.text
    try:
        return from_text(answer.json()["items"]).request.digest
    except NotReplayable:
        return None


def of_ui(file: bytes, directory: Path) -> str | None:
    """Return the digest of the request that the user interface reads from a file, or None."""
    path = directory / "dropped"
    path.write_bytes(file)
    try:
        return read_request(path).digest
    except NotReplayable:
        return None


def of_replay(file: bytes) -> str | None:
    """Return the digest of the request that replay finds, even if it refuses the pixels; else None."""
    try:
        return read_stored_image(file).record.request.digest
    except NotReplayable as error:
        if found := _DIGEST.search(str(error)):
            return found[1]
        if "its pixels" in str(error):
            return read_record(file).request.digest
        return None


@pytest.mark.parametrize("name", WITH_REQUEST)
def test_all_readers_find_the_request(client: TestClient, tmp_path: Path, name: str):
    file = WITH_REQUEST[name]()
    assert [of_png_info(client, file), of_ui(file, tmp_path), of_replay(file)] == [REQUEST.digest] * 3


@pytest.mark.parametrize("name", WITHOUT_REQUEST)
def test_no_reader_finds_a_request_in_other_files(client: TestClient, tmp_path: Path, name: str):
    file = WITHOUT_REQUEST[name]()
    assert [of_png_info(client, file), of_ui(file, tmp_path), of_replay(file)] == [None] * 3


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_readers_agree_on_any_file(client: TestClient, tmp_path: Path, data: st.DataObject):
    file = bytearray(encode(OWN, data.draw(st.sampled_from(list(Format))), has_metadata=True))
    for _ in range(data.draw(st.integers(0, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(file[: data.draw(st.integers(0, len(file)))])
    found = of_png_info(client, changed)
    assert (of_ui(changed, tmp_path), of_replay(changed)) == (found, found)
