"""Whether a stored image file is whole: by its recorded checksums, or by its own CRCs and record."""

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
    """Contents that are nearly a file: cut short, with a changed byte, with more behind its end."""
    cut = PLACES.map(lambda place: png[:place])
    changed = st.builds(
        lambda place, bits: png[:place] + bytes([png[place] ^ bits]) + png[place + 1 :], PLACES, st.integers(1, 255)
    )
    zeroed = PLACES.map(lambda place: png[:place] + bytes(len(png) - place)).filter(lambda content: content != png)
    longer = st.binary(min_size=1, max_size=50).map(lambda more: png + more)
    return cut | changed | zeroed | longer


@pytest.mark.parametrize("checksums", [{}, {checksum_of(PNG), "0" * 64}], ids=["stored before", "recorded"])
def test_a_whole_file_passes(checksums: set[str]):
    """With or without a recorded checksum."""
    check_file(NAME, PNG, checksums)


@given(damages(PNG))
def test_no_damage_passes_without_a_checksum(content: bytes):
    """A file that was cut short, changed or lengthened anywhere fails by what the PNG file says of itself."""
    with pytest.raises(DamagedFile):
        check_file(NAME, content, ())


@given(damages(PNG))
def test_no_damage_passes_the_checksum(content: bytes):
    """The same damages fail against the recorded checksum."""
    with pytest.raises(DamagedFile):
        check_file(NAME, content, {checksum_of(PNG)})


def test_a_file_of_another_image_fails_without_a_checksum():
    """The record in the file must be that of the digest in its name; a file without a record is no image of ours."""
    for name, content in ((name_of("ab" * 32), PNG), (NAME, without_text(PNG))):
        with pytest.raises(DamagedFile, match="record"):
            check_file(name, content, ())


def test_a_blurred_image_needs_no_record():
    """It does not say how it was made; its CRCs are checked all the same."""
    png = write_png(PIXELS, {})
    check_file(BLURRED, png, ())
    with pytest.raises(DamagedFile, match="ends too early"):
        check_file(BLURRED, png[:-1], ())


def test_a_file_without_image_data_fails():
    """A valid end alone is no image."""
    end = b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")
    with pytest.raises(DamagedFile, match="no image data"):
        check_file(BLURRED, SIGNATURE + end, ())


def test_files_that_pillow_writes_pass():
    """The reader of chunks follows the specification, not only this project's own writer."""
    out = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(out, "PNG")  # several IDAT chunks
    assert out.getvalue().count(b"IDAT") > 1
    check_file(BLURRED, out.getvalue(), ())


def test_a_file_of_too_many_chunks_is_damaged():
    """The reader of chunks gives up; for the store, that is damage like any other."""
    empty = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    with pytest.raises(DamagedFile, match="chunks"):
        check_file(BLURRED, SIGNATURE + 65_537 * empty, ())
