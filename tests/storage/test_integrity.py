"""Integrity checks of image files, by recorded checksums, or by PNG CRCs and the record in the file."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd35.images.png import without_text, write_png
from sd35.images.png_chunks import SIGNATURE
from sd35.images.record import Maker, Record
from sd35.storage.integrity import DamagedFile, check_file, checksum_of
from sd35.storage.names import name_of
from tests.support.job_specs import REQUEST

MAKER = Maker("0" * 64, "double", "float32", {}, 64, 64, [])
NAME, BLURRED = name_of(REQUEST.digest), name_of(REQUEST.digest, is_blurred=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
PNG = write_png(PIXELS, Record(REQUEST, MAKER).to_text())
PLACES = st.integers(0, len(PNG) - 1)


def damages(png: bytes) -> st.SearchStrategy[bytes]:
    """Damaged versions of a file: truncated, changed, zeroed or extended."""
    cut = PLACES.map(lambda place: png[:place])
    changed = st.builds(
        lambda place, bits: png[:place] + bytes([png[place] ^ bits]) + png[place + 1 :], PLACES, st.integers(1, 255)
    )
    zeroed = PLACES.map(lambda place: png[:place] + bytes(len(png) - place)).filter(lambda content: content != png)
    longer = st.binary(min_size=1, max_size=50).map(lambda more: png + more)
    return cut | changed | zeroed | longer


@pytest.mark.parametrize("checksums", [{}, {checksum_of(PNG), "0" * 64}], ids=["stored before", "recorded"])
def test_an_undamaged_file_passes(checksums: set[str]):
    check_file(NAME, PNG, checksums)


@given(damages(PNG))
def test_no_damage_passes_without_a_checksum(content: bytes):
    """The structure and the CRCs of the PNG file reveal it."""
    with pytest.raises(DamagedFile):
        check_file(NAME, content, ())


@given(damages(PNG))
def test_no_damage_passes_the_checksum(content: bytes):
    with pytest.raises(DamagedFile):
        check_file(NAME, content, {checksum_of(PNG)})


def test_a_file_of_another_image_fails_without_a_checksum():
    """The file needs a record, and its digest must be the one in the file's name."""
    for name, content in ((name_of("ab" * 32), PNG), (NAME, without_text(PNG))):
        with pytest.raises(DamagedFile, match="record"):
            check_file(name, content, ())


def test_a_blurred_image_needs_no_record():
    """Its CRCs are still checked."""
    png = write_png(PIXELS, {})
    check_file(BLURRED, png, ())
    with pytest.raises(DamagedFile, match="ends too early"):
        check_file(BLURRED, png[:-1], ())


def test_a_file_without_image_data_fails():
    end = b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")
    with pytest.raises(DamagedFile, match="no image data"):
        check_file(BLURRED, SIGNATURE + end, ())


def test_files_that_pillow_writes_pass():
    """The chunk reader follows the PNG specification, not only this project's writer."""
    out = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(out, "PNG")  # several IDAT chunks
    assert out.getvalue().count(b"IDAT") > 1
    check_file(BLURRED, out.getvalue(), ())


def test_a_file_with_too_many_chunks_is_damaged():
    empty = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    with pytest.raises(DamagedFile, match="chunks"):
        check_file(BLURRED, SIGNATURE + 65_537 * empty, ())
