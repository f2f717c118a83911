"""Images in other formats: pixels, records, and the negotiation of the format."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sd35.errors import InvalidRequest, NotAcceptable, NotReplayable
from sd35.generation.replay import read_stored_image
from sd35.images.encode import encode
from sd35.images.formats import Format, check_quality, negotiate
from sd35.images.png import read_png, write_png
from sd35.images.record import MAKER_KEY, REQUEST_KEY, Maker, Record
from sd35.images.texts import format_of, read_record
from sd35.images.xmp import to_xmp
from sd35.request import Request

EXIFTOOL = shutil.which("exiftool")
LOSSY = [each for each in Format if each is not Format.PNG]
MAKER = Maker("5" * 64, "onnx", "float32", {"sd35": "1", "numpy": "2"}, 96, 64, ["prompt"])
REQUEST = Request("a cat & a <dog>", "", 96, 64, 4, 4.5, 7, "sd35-mini", "5" * 64, "onnx/float32")


def an_image(prompt: str = REQUEST.prompt, negative_prompt: str = "") -> tuple[bytes, Record]:
    """Return a PNG file of 96x64 pixels with soft shapes, and its record."""
    y, x = np.mgrid[:64, :96]
    pixels = np.stack([2 * x, 4 * y, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1).clip(0, 255).astype(np.uint8)
    record = Record(replace(REQUEST, prompt=prompt, negative_prompt=negative_prompt), MAKER)
    return write_png(pixels, record.to_text()), record


@pytest.mark.parametrize("output_format", LOSSY)
def test_an_image_looks_the_same_in_every_format(output_format: Format):
    """The average difference of pixels is less than 2 of 255."""
    png, _ = an_image()
    with Image.open(io.BytesIO(encode(png, output_format, has_metadata=True))) as image:
        assert (image.format, image.size) == (output_format.upper(), (96, 64))
        assert image.get_format_mimetype() == output_format.media_type
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels - read_png(png)[0]).mean() < 2


@pytest.mark.parametrize("output_format", LOSSY)
def test_a_higher_quality_gives_a_larger_file(output_format: Format):
    """The default is between the lowest and the highest quality."""
    png, _ = an_image()
    sizes = [len(encode(png, output_format, has_metadata=False, quality=quality)) for quality in (1, None, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("output_format", Format)
def test_an_unsupported_quality_is_refused(output_format: Format):
    """Lossy formats allow 1 to 100, and PNG allows none."""
    for quality in (0, 101) if output_format in LOSSY else (90,):
        with pytest.raises(InvalidRequest, match=f"quality: got {quality}; allowed: (1 to 100|no quality with png)"):
            check_quality(output_format, quality)
    check_quality(output_format, None)


@pytest.mark.parametrize("output_format", Format)
@settings(deadline=None)  # encoding is slow on a busy machine
@given(
    prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    negative_prompt=st.text('\\u"fe\ufffe\uffff', max_size=8),
)
@example(prompt="\U0001f431" * 10_000, negative_prompt="&" * 10_000)  # longer than two segments of a JPEG file
@example(prompt="<!DOCTYPE x [<!ENTITY y 'z'>]>&y;]]>", negative_prompt="\\ufffe")
def test_every_format_keeps_the_record(output_format: Format, prompt: str, negative_prompt: str):
    """For any prompts. Equal images give equal files."""
    png, record = an_image(prompt, negative_prompt)
    written = encode(png, output_format, has_metadata=True)
    assert format_of(written) == output_format
    assert read_record(written) == record
    assert encode(png, output_format, has_metadata=True) == written


@pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed (Debian: libimage-exiftool-perl)")
@pytest.mark.parametrize("output_format", LOSSY)
@pytest.mark.parametrize("prompt", ["a cat & a <dog> 日本", "\U0001f431" * 10_000])
def test_exiftool_reads_the_record(output_format: Format, prompt: str, tmp_path: Path):
    """Even a record that fills several segments of a JPEG file."""
    assert EXIFTOOL
    png, record = an_image(prompt, prompt)
    file = tmp_path / f"image.{output_format}"
    file.write_bytes(encode(png, output_format, has_metadata=True))
    result = subprocess.run([EXIFTOOL, "-json", "-b", "-XMP:all", file], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)[0]
    assert found["Request"].encode() == record.request.canonical
    assert found["Digest"] == record.request.digest
    assert found["CreatorTool"] == record.to_text()["Software"]
    assert "Warning" not in found


@pytest.mark.parametrize("output_format", Format)
def test_metadata_can_be_omitted(output_format: Format):
    """The file contains no text, and its pixels are the same."""
    png, _ = an_image("unmistakable")
    without, with_metadata = (encode(png, output_format, has_metadata=included) for included in (False, True))
    assert b"unmistakable" in with_metadata
    for word in (b"unmistakable", b"sd35", b"onnx"):
        assert word not in without
    with Image.open(io.BytesIO(without)) as bare, Image.open(io.BytesIO(with_metadata)) as complete:
        assert not {"xmp", "exif", *Record(REQUEST, MAKER).to_text()} & bare.info.keys()
        assert np.array_equal(np.asarray(bare), np.asarray(complete))
    with pytest.raises(NotReplayable, match=r"not say how it was generated, because its metadata has no sd35\.request"):
        read_record(without)


@pytest.mark.parametrize("output_format", LOSSY)
def test_replay_requires_the_png_file(output_format: Format):
    """The error for another format has the digest of the image."""
    png, record = an_image()
    with pytest.raises(NotReplayable, match=f"it is {output_format.upper()} instead of PNG.*{record.request.digest}"):
        read_stored_image(encode(png, output_format, has_metadata=True))
    with pytest.raises(NotReplayable, match="does not say how it was generated"):
        read_stored_image(encode(png, output_format, has_metadata=False))


def test_replay_refuses_other_formats_in_one_line(tmp_path: Path):
    """The command exits with 2, and names the file and its format."""
    (tmp_path / "cat.webp").write_bytes(encode(an_image()[0], Format.WEBP, has_metadata=True))
    command = [sys.executable, "-c", "from sd35.cli import main; main()", "replay", str(tmp_path / "cat.webp")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "cat.webp cannot be replayed: it is WEBP instead of PNG" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_edited_record_is_refused():
    """The request must match its digest."""
    png, record = an_image()
    _, text = read_png(png)
    edited = write_png(read_png(png)[0], {**text, REQUEST_KEY: text[REQUEST_KEY].replace("cat", "cow")})
    for output_format in Format:
        with pytest.raises(NotReplayable, match=r"its sd35\.request was edited"):
            read_record(encode(edited, output_format, has_metadata=True))
    assert record.to_text()[MAKER_KEY] == text[MAKER_KEY]


BOMB = b'<!DOCTYPE a [<!ENTITY b "b">]>' + to_xmp(Record(REQUEST, MAKER).to_text()).split(b"?>", 1)[1]


@pytest.mark.parametrize("packet", [b"", b"\xff\0<", BOMB, b"<x>" * 1000, "<x/>".encode("utf-16")])
def test_a_damaged_or_hostile_packet_has_no_texts(packet: bytes):
    """Malformed XML, a document type, and another encoding are ignored."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "WEBP", xmp=packet)
    with pytest.raises(NotReplayable, match="does not say how it was generated"):
        read_record(out.getvalue())


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image_is_refused(data: bytes):
    with pytest.raises(
        NotReplayable, match=r"it is (not an image in any of the formats png, jpeg, webp, avif|a damaged)"
    ):
        read_record(data)


# Headers of real clients (curl, Firefox and Chrome for an <img>, Safari, HTTP libraries), and unusual ones.
@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, Format.PNG),
        ("", Format.PNG),
        ("*/*", Format.PNG),
        ("image/*", Format.PNG),
        ("application/json, text/plain, */*", Format.PNG),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", Format.PNG),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", Format.WEBP),
        ("image/webp,image/avif,image/jxl,video/*;q=0.8,*/*;q=0.5", Format.WEBP),
        ("image/jpeg", Format.JPEG),
        ("image/jpeg, */*", Format.JPEG),
        ("IMAGE/AVIF ; Q=0.9 , image/webp;q=0.8", Format.AVIF),
        ("image/png;q=0, image/*", Format.JPEG),
        ("image/*;q=0.1, image/jpeg;q=0, image/png;q=0, image/avif;q=0", Format.WEBP),
        ("*/*;q=0, image/avif;q=0.001", Format.AVIF),
        ("image/webp;q=2, image/jpeg;q=x, image/avif;q=0.5", Format.AVIF),
        ("image/webp;q=0.1, image/webp, image/avif;q=0.5", Format.WEBP),
    ],
)
def test_the_accept_header_selects_the_format(accept: str | None, expected: Format):
    """The most specific range decides for each format. PNG is the default."""
    assert negotiate(accept, None) is expected


@pytest.mark.parametrize(
    "accept", ["text/html", "image/gif, image/jxl", "image/*;q=0", "*/*;q=0.0", ",;,", "image/png;q=-1"]
)
def test_a_header_that_accepts_no_format_is_refused(accept: str):
    """The error lists the four formats."""
    with pytest.raises(NotAcceptable, match=r"accept: got .*; allowed: image/png, image/jpeg, image/webp, image/avif"):
        negotiate(accept, None)


@given(st.text() | st.none(), st.sampled_from(Format))
def test_output_format_overrides_the_accept_header(accept: str | None, output_format: Format):
    """No header raises an error other than NotAcceptable."""
    assert negotiate(accept, output_format) is output_format
    with contextlib.suppress(NotAcceptable):
        assert negotiate(accept, None) in Format


@given(st.permutations(list(Format)), st.lists(st.integers(1, 1000), min_size=4, max_size=4, unique=True))
def test_the_named_format_with_the_largest_weight_is_selected(formats: list[Format], weights: list[int]):
    """The order in the header does not matter."""
    accept = ", ".join(f"{one.media_type};q={weight / 1000}" for one, weight in zip(formats, weights, strict=True))
    assert negotiate(accept, None) is max(zip(weights, formats, strict=True))[1]
