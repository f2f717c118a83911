"""Texts in image files: agreement with other readers, and limits for hostile files."""

import io
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd35.errors import NotReplayable
from sd35.images.encode import encode
from sd35.images.exif import USER_COMMENT
from sd35.images.formats import Format
from sd35.images.infotext import KEYWORD, infotext, parse_infotext
from sd35.images.png import read_png, with_text, write_png
from sd35.images.record import Maker, Record
from sd35.images.text_budget import MAX_TEXT_BYTES
from sd35.images.texts import read_record, read_texts
from sd35.images.xmp import NAMESPACE, from_xmp
from sd35.request import PROMPT_CHARACTERS, Request

EXIFTOOL = shutil.which("exiftool")
PIXELS = np.zeros((16, 16, 3), np.uint8)
PLAIN = write_png(PIXELS, {})
IMAGE_END = len(PLAIN) - 12  # the start of the IEND chunk
HEADER_END = 33
MAX_MEMORY_BYTES = 32 * 1024 * 1024
TEXT = "a 猫 🐈\nSteps: 1"
MAKER = Maker("5" * 64, "onnx", "float32", {"sd35": "1"}, 96, 64, ["prompt", "negative_prompt"])


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*before: bytes, after: bytes = b"") -> bytes:
    """Return a PNG file with chunks before and after its image data."""
    return PLAIN[:HEADER_END] + b"".join(before) + PLAIN[HEADER_END:IMAGE_END] + after + PLAIN[IMAGE_END:]


def text_chunk(kind: str, keyword: str, text: str) -> bytes:
    """Return a text chunk: tEXt, zTXt, iTXt, or for any other `kind` a compressed iTXt chunk."""
    start = keyword.encode("latin-1") + b"\0"
    if kind == "tEXt":
        return chunk(b"tEXt", start + text.encode("latin-1"))
    if kind == "zTXt":
        return chunk(b"zTXt", start + b"\0" + zlib.compress(text.encode("latin-1")))
    if kind == "iTXt":
        return chunk(b"iTXt", start + b"\0\0en\0other\0" + text.encode())
    return chunk(b"iTXt", start + b"\1\0\0\0" + zlib.compress(text.encode()))


Written = list[tuple[str, str, str]]
latin = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=50)
keywords = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=79)
written = st.lists(st.tuples(st.sampled_from(["tEXt", "zTXt", "iTXt", "compressed"]), keywords, latin), max_size=4)


@given(written, written)
def test_png_texts_equal_those_of_pillow(before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]):
    """Compressed or not, before and after the image data."""
    file = png(*(text_chunk(*each) for each in before), after=b"".join(text_chunk(*each) for each in after))
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        expected = {key: str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]
    assert read_texts(file).texts == expected


def exif(comment: bytes, order: str = "<") -> bytes:
    """Return EXIF data with a user comment, in a byte order."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    pack = struct.pack
    first = pack(f"{order}IHHHIIIH", 8, 1, 0x8769, 4, 1, 26, 0, 1)[:18]
    entry = pack(f"{order}HHHII", 1, 0x9286, 7, len(comment), 44) + pack(f"{order}I", 0)
    return start + first + bytes(26 - 4 - len(first)) + entry + comment


COMMENTS = {
    "ASCII": (b"ASCII\0\0\0Steps: 1", "Steps: 1"),
    "no code": (bytes(8) + TEXT.encode(), TEXT),
    "UTF-16 BE": (b"UNICODE\0" + TEXT.encode("utf-16-be"), TEXT),
    "UTF-16 LE": (b"UNICODE\0" + TEXT.encode("utf-16-le"), TEXT),
    "UTF-16 BE with a mark": (b"UNICODE\0\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
    "UTF-16 LE with a mark": (b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"), TEXT),
    "UTF-8": (b"UNICODE\0" + TEXT.encode(), TEXT),
    "UTF-8 with a mark": (b"UNICODE\0\xef\xbb\xbf" + TEXT.encode(), TEXT),
    "UTF-16 BE without ASCII": (b"UNICODE\0" + "кошка и собака".replace(" ", "").encode("utf-16-be"), "кошкаисобака"),
    "UTF-16 LE without ASCII": (b"UNICODE\0" + "кошкаисобака".encode("utf-16-le"), "кошкаисобака"),
    "UTF-16 LE, Chinese": (b"UNICODE\0" + "一只坐在垫子上的猫".encode("utf-16-le"), "一只坐在垫子上的猫"),
    "UTF-16 LE with a mark, Chinese": (b"UNICODE\0\xff\xfe" + "猫".encode("utf-16-le"), "猫"),
    "ended by a zero": (b"UNICODE\0" + "a cat\0".encode("utf-16-le"), "a cat"),
    "UTF-8 ended by a zero": (b"UNICODE\0a cat\0", "a cat"),
    "short": (b"ASCII\0\0\0a", "a"),
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("case", COMMENTS)
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "avif"])
def test_user_comments_are_read_in_every_encoding(image_format: str, case: str, order: str):
    """In all four formats and both byte orders."""
    comment, text = COMMENTS[case]
    data = exif(comment, order)
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, image_format, exif=b"Exif\0\0" + data)
    assert read_texts(out.getvalue()).texts == {USER_COMMENT: text}
    if image_format == "png":
        assert read_texts(png(after=chunk(b"eXIf", data))).texts == {USER_COMMENT: text}


@given(
    st.text(st.characters(codec="utf-8", min_codepoint=32), max_size=80),
    st.sampled_from(["utf-16-be", "utf-16-le", "utf-8"]),
)
def test_the_encoding_of_infotexts_is_detected(prompt: str, encoding: str):
    """The settings of an infotext have letters and digits, so the encodings can be distinguished."""
    text = f"{prompt}\nSteps: 20, Sampler: Euler, Seed: 1"
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=b"Exif\0\0" + exif(b"UNICODE\0" + text.encode(encoding)))
    assert read_texts(out.getvalue()).texts == {USER_COMMENT: text}


@pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed (Debian: libimage-exiftool-perl)")
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "avif"])
def test_comments_from_exiftool_are_read(tmp_path: Path, image_format: str, order: str):
    """ExifTool writes UTF-16 in the byte order of the EXIF data, and an eXIf chunk in PNG files."""
    assert EXIFTOOL
    file = tmp_path / f"image.{image_format}"
    Image.new("RGB", (16, 16)).save(file)
    command = [EXIFTOOL, "-q", f"-ExifByteOrder={order}", f"-UserComment={TEXT}", "-overwrite_original", str(file)]
    subprocess.run(command, check=True)
    assert read_texts(file.read_bytes()).texts[USER_COMMENT] == TEXT


@pytest.mark.parametrize("output_format", Format)
@pytest.mark.parametrize("character", ["a", "\x01", '"', "&", "<", "é", "猫", "\U0001f431", "\ufffe"])
def test_the_largest_record_fits_the_text_budget(output_format: Format, character: str):
    """Two prompts of 10,000 characters in every format, and in PNG also the infotext."""
    prompt = character * PROMPT_CHARACTERS
    record = Record(Request(prompt, prompt, 96, 64, 4, 4.5, 7, "m" * 200, "5" * 64, "onnx/float32"), MAKER)
    file = encode(write_png(PIXELS, record.to_text()), output_format, has_metadata=True)
    if output_format is Format.PNG:
        file = with_text(file, KEYWORD, infotext(record.request, MAKER))
    assert read_texts(file).left_out == []
    assert read_record(file) == record


def texts_within_limits(file: bytes) -> dict[str, str]:
    """Return the texts of a file, or {} if it is refused, and check the memory and the amount of text."""
    tracemalloc.start()
    try:
        texts = read_texts(file).texts
    except NotReplayable:
        texts = {}
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < MAX_MEMORY_BYTES + 2 * len(file)
    assert sum(map(len, texts.values())) <= MAX_TEXT_BYTES
    return texts


BOMB = zlib.compress(b"a" * 60_000_000)


@pytest.mark.parametrize(
    "bomb", [chunk(b"zTXt", b"bomb\0\0" + BOMB), chunk(b"iTXt", b"bomb\0\1\0\0\0" + BOMB)], ids=["zTXt", "iTXt"]
)
def test_a_decompression_bomb_is_skipped(bomb: bytes):
    """The texts before it are read."""
    assert texts_within_limits(png(text_chunk("tEXt", "parameters", "a cat"), bomb)) == {"parameters": "a cat"}
    found = read_texts(png(bomb))
    assert (found.texts, found.left_out) == ({}, ["bomb"])


def test_many_bombs_cost_no_more_than_one():
    """A damaged or too long stream uses up the budget."""
    decompressed = 0
    original = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self._stream = original()
            self.eof = False

        def decompress(self, content: bytes, max_bytes: int) -> bytes:
            nonlocal decompressed
            decompressed += max_bytes
            text = self._stream.decompress(content, max_bytes)
            self.eof = self._stream.eof
            return text

    stream = zlib.compress(b"a" * MAX_TEXT_BYTES)
    bombs = [
        chunk(b"zTXt", b"bomb\0\0" + content) for content in (BOMB[:400], stream[:-4] + b"\0\0\0\0") for _ in range(500)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zlib, "decompressobj", Counting)
        assert read_texts(png(*bombs)).texts == {}
    assert decompressed <= 2 * MAX_TEXT_BYTES + 1000


def test_a_too_long_text_is_named():
    """If the record cannot be read, the error names the text. Shorter texts are still read."""
    long = text_chunk("tEXt", "workflow", "a" * (MAX_TEXT_BYTES + 1))
    found = read_texts(png(long, text_chunk("tEXt", "parameters", "a cat")))
    assert (found.texts, found.left_out) == ({"parameters": "a cat"}, ["workflow"])
    with pytest.raises(NotReplayable, match=r"no sd35\.request.*At most 262144 bytes of text .* skipped: workflow"):
        read_record(png(long))


def overlapping_exif() -> bytes:
    """Return 60 KB of EXIF data with 5,000 overlapping entries. A reader that copies all of them needs 300 MB."""
    entries = b"".join(struct.pack("<HHII", 0x1000 + number, 7, 60_000, 0) for number in range(4998))
    return b"II*\0" + struct.pack("<IH", 8, 4998) + entries + bytes(4)


def overlapping_extents() -> bytes:
    """Return an AVIF file with an EXIF item of 65,000 extents, each of which is the same megabyte."""
    infe = struct.pack(">I", 21) + b"infe\2\0\0\0" + struct.pack(">HH", 1, 0) + b"Exif\0"
    iinf = struct.pack(">I4sIH", 14 + len(infe), b"iinf", 0, 1) + infe
    extents = struct.pack(">II", 0, 1_000_000) * 65_000
    iloc = struct.pack(">IHHHHH", 0, 0x4400, 1, 1, 0, 65_000) + extents
    iloc = struct.pack(">I4s", 8 + len(iloc), b"iloc") + iloc
    meta = struct.pack(">I4sI", 12 + len(iinf) + len(iloc), b"meta", 0) + iinf + iloc
    return struct.pack(">I", 16) + b"ftypavif\0\0\0\0" + meta + bytes(1_000_000)


def packet_file(packet: bytes) -> bytes:
    """Return a WebP file with an XMP packet."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "WEBP", xmp=packet)
    return out.getvalue()


JPEG_START = b"\xff\xd8"
HOSTILE: dict[str, Callable[[], bytes]] = {
    "chunks": lambda: PLAIN[:HEADER_END] + chunk(b"aaAa", b"") * 1_000_000 + PLAIN[HEADER_END:],
    "texts": lambda: png(*[chunk(b"tEXt", b"%d\0" % number) for number in range(60_000)]),
    "segments": lambda: JPEG_START + b"\xff\xe1\0\2" * 1_000_000,
    "fill bytes": lambda: JPEG_START + b"\xff" * 4_000_000,
    "WebP chunks": lambda: b"RIFF\0\0\0\0WEBP" + b"aaaa\0\0\0\0" * 1_000_000,
    "boxes": lambda: struct.pack(">I", 16) + b"ftypavif\0\0\0\0" + b"\0\0\0\x08free" * 1_000_000,
    "EXIF in PNG": lambda: png(chunk(b"eXIf", overlapping_exif())),
    "EXIF in JPEG": lambda: JPEG_START + b"\xff\xe1\xea\x6a" + b"Exif\0\0" + overlapping_exif() + b"\xff\xda",
    "AVIF pieces": overlapping_extents,
    "AVIF pieces of nothing": lambda: overlapping_extents().replace(b"\x44\0\0\1", b"\0\0\0\1"),
    "nested XMP": lambda: packet_file(b"<a>" * 1_000_000),
    "nested XMP within the limit": lambda: packet_file(b"<a>" * 30_000 + b"</a>" * 30_000),
    "long namespace": lambda: packet_file(b'<a:a xmlns:a="' + b"n" * 100_000 + b'">' + b"<a:a/>" * 20_000 + b"</a:a>"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_little_memory(name: str):
    """Repetition and nesting do not increase the memory, and the texts stay within the limit."""
    texts_within_limits(HOSTILE[name]())


def test_xmp_names_are_resolved_by_their_namespace():
    """With any prefix, and for attributes, too. Names of other namespaces are ignored."""
    packet = f"""<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:o="urn:other">
      <r:Description xmlns:p="{NAMESPACE}" p:digest="1" o:maker="2">
        <p:request>one<!-- no text -->&amp;two</p:request><o:request>three</o:request>
        <sd35:maker xmlns:sd35="urn:other">four</sd35:maker>
      </r:Description><p:maker>five</p:maker></r:RDF>"""
    assert from_xmp(packet.encode()) == {"sd35.digest": "1", "sd35.request": "one&two"}


@given(st.data())
@settings(deadline=None)
def test_a_damaged_file_is_read_or_refused(data: st.DataObject):
    """Changed bytes in a file of any format raise no error other than NotReplayable."""
    record = Record(Request("a cat", "", 96, 64, 4, 4.5, 7, "mini", "5" * 64, "onnx/float32"), MAKER)
    output_format = data.draw(st.sampled_from(list(Format)))
    file = bytearray(encode(write_png(PIXELS, record.to_text()), output_format, has_metadata=True))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    truncated = bytes(file[: data.draw(st.integers(0, len(file)))])
    try:
        texts = read_texts(truncated).texts
    except NotReplayable:
        return
    assert all(isinstance(text, str) for text in texts.values())


def test_a_text_with_a_wrong_crc_is_refused():
    file = png(text_chunk("tEXt", "parameters", "a cat"))
    with pytest.raises(NotReplayable, match="a wrong CRC of its tEXt chunk"):
        read_texts(file.replace(b"a cat", b"a cow"))


def test_pixels_are_read_despite_a_decompression_bomb():
    """Pillow alone would refuse the file."""
    pixels, texts = read_png(png(chunk(b"zTXt", b"bomb\0\0" + BOMB)))
    assert (pixels == PIXELS).all()
    assert texts == {}


@pytest.mark.parametrize("piece", ["a: b, ", 'a: "' + "\\" * 1000, "ab: ", 'aa:"', ","])
def test_a_text_of_maximum_length_is_parsed(piece: str):
    """Longer texts never reach the parser."""
    text = piece * (MAX_TEXT_BYTES // len(piece))
    assert parse_infotext(text)["Prompt"] is not None
