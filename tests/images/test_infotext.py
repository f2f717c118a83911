"""Infotext: formatting, parsing texts of the web UI, and reading by other programs."""

import contextlib
import io
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sd35.errors import NotReplayable
from sd35.images.exif import USER_COMMENT
from sd35.images.infotext import KEYWORD, format_infotext, infotext, parse_infotext
from sd35.images.png import read_png, with_text, without_text, write_png
from sd35.images.record import Maker, own_version
from sd35.images.texts import read_texts
from sd35.request import Request

EXIFTOOL = shutil.which("exiftool")
PIXELS = np.zeros((16, 16, 3), np.uint8)
REQUEST = Request("a cat", "a dog", 96, 64, 4, 4.5, 7, "mini", "5" * 64, "onnx/float32")
MAKER = Maker("5" * 64, "onnx", "float32", {}, 96, 64, [])

WEB_UI_INFOTEXT = """masterpiece, (a castle:1.2), <lora:stone:0.8>
by the sea
Negative prompt: lowres, bad: hands
worst quality
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Clip skip: 2, \
ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, Resize Mode: Crop and Resize", \
Lora hashes: "stone: 0f1e2d3c4b5a", Version: v1.9.4"""


def test_infotext_has_the_web_uis_format():
    """Prompt, negative prompt, and the settings in the web UI's order."""
    assert infotext(REQUEST, MAKER) == (
        "a cat\nNegative prompt: a dog\n"
        "Steps: 4, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, Seed: 7, Size: 96x64,"
        f" Model hash: 5555555555, Model: mini, Version: sd35-fp8-mirror {own_version()}"
    )
    without_negative = replace(REQUEST, negative_prompt="", guidance_scale=7.0)
    assert infotext(without_negative, MAKER).startswith(
        "a cat\nSteps: 4, Sampler: Euler, Schedule type: Automatic, CFG scale: 7,"
    )


def test_infotext_mentions_enlarging_truncation_skipped_layers_and_blurring():
    """Each has its own setting."""
    request = replace(REQUEST, skip_layer_scale=2.8)
    enlarged = replace(MAKER, drawn_width=48, drawn_height=32, cut_off=["prompt", "negative_prompt"])
    settings = parse_infotext(infotext(request, enlarged))
    assert settings["Skip layer scale"] == "2.8"
    assert (settings["Drawn size-1"], settings["Drawn size-2"]) == ("48", "32")
    assert settings["Cut off"] == "prompt, negative_prompt"
    assert parse_infotext(infotext(REQUEST, None))["Content filtered"] == "blurred"


def test_infotexts_of_the_web_ui_are_parsed():
    """With several lines, colons in prompts, sizes, and quoted settings with commas."""
    assert parse_infotext(WEB_UI_INFOTEXT) == {
        "Prompt": "masterpiece, (a castle:1.2), <lora:stone:0.8>\nby the sea",
        "Negative prompt": "lowres, bad: hands\nworst quality",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "7",
        "Seed": "1234567890",
        "Size-1": "512",
        "Size-2": "768",
        "Model hash": "6ce0161689",
        "Model": "v1-5-pruned-emaonly",
        "Denoising strength": "0.7",
        "Clip skip": "2",
        "ControlNet 0": "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1,"
        " Resize Mode: Crop and Resize",
        "Lora hashes": "stone: 0f1e2d3c4b5a",
        "Version": "v1.9.4",
    }


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", {"Prompt": "a cat", "Negative prompt": ""}),
        ("a cat: fat, a dog: thin", {"Prompt": "a cat: fat, a dog: thin", "Negative prompt": ""}),
        ("", {"Prompt": "", "Negative prompt": ""}),
        (
            'Steps: 20, Sampler: Euler a, CFG scale: 7, Face: , Name: "un"closed',
            {
                "Prompt": "",
                "Negative prompt": "",
                "Steps": "20",
                "Sampler": "Euler a",
                "CFG scale": "7",
                "Face": "",
                "Name": '"un"closed',
            },
        ),
    ],
)
def test_incomplete_infotexts_are_parsed(text: str, parts: dict[str, str]):
    """A last line with fewer than three settings belongs to the prompt."""
    assert parse_infotext(text) == parts


lines = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda line: line == line.strip() and "\n" not in line and not line.startswith("Negative prompt:")
)
values = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "x" not in text)


@given(
    st.lists(lines, min_size=1, max_size=3),
    st.lists(lines, max_size=3),
    st.lists(values, min_size=3, max_size=6),
)
@example(["Steps: 1, Seed: 2, Size: 3"], [], ["a", "b", "c"])
@example(["a"], [], ['"quoted"', ' spaced, "and": more\n', "\\"])
def test_a_formatted_infotext_parses_to_the_same_parts(prompt: list[str], negative: list[str], values: list[str]):
    """For any prompts and settings."""
    settings = {f"Setting {index}": value for index, value in enumerate(values)}
    parts = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    assert parse_infotext(format_infotext(parts["Prompt"], parts["Negative prompt"], settings)) == {**parts, **settings}


@given(st.text(st.sampled_from('ab:, "\\\n1x')))
@example('aa: "\\ud800", bb: 1, cc: 2')
def test_any_text_can_be_parsed(text: str):
    """The result can be encoded in a response."""
    parts = parse_infotext(text)
    assert parts.keys() >= {"Prompt", "Negative prompt"}
    assert "".join(parts.values()).encode() or not text.strip()


@pytest.mark.parametrize("piece", ["a", "a:", 'a:"', 'a:"\\",', "a, ", ": "])
def test_parsing_takes_linear_time(piece: str):
    """Clients may send long lines."""
    began_s = time.process_time()
    parse_infotext(piece * 200_000)
    assert time.process_time() - began_s < 5


@pytest.mark.parametrize("text", ["a cat\nSteps: 1", "Katze, größer\n©", "a 猫 🐈\nSteps: 1"])
def test_a_text_can_be_added_to_a_png_file(text: str):
    """Other texts and the pixels stay the same. The type of the chunk is the one that Pillow uses."""
    png = with_text(write_png(PIXELS, {"Software": "sd35"}), KEYWORD, text)
    pixels, texts = read_png(png)
    assert (pixels == PIXELS).all()
    assert texts == {"Software": "sd35", KEYWORD: text}
    assert (b"tEXt" in png) == all(ord(character) < 256 for character in text)


def test_nul_characters_are_removed_from_added_texts():
    """PNG does not allow them in texts."""
    assert read_png(with_text(write_png(PIXELS, {}), KEYWORD, "a\0b"))[1] == {KEYWORD: "ab"}


@pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed")
@pytest.mark.parametrize("prompt", ["a cat", "größer", "a 猫 🐈"])
def test_exiftool_reads_the_infotext(tmp_path: Path, prompt: str):
    """It prints no warning."""
    text = infotext(replace(REQUEST, prompt=prompt), MAKER)
    file = tmp_path / "image.png"
    file.write_bytes(with_text(write_png(PIXELS, {}), KEYWORD, text))
    result = subprocess.run(
        [str(EXIFTOOL), "-json", "-charset", "utf8", "-Parameters", "-Warning", str(file)],
        capture_output=True,
        check=True,
    )
    (read,) = json.loads(result.stdout)
    assert read["Parameters"].replace("\r\n", "\n") == text
    assert "Warning" not in read


def jpeg(comment: bytes) -> bytes:
    """Return a JPEG file with an EXIF user comment."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def texts(file: bytes) -> dict[str, str]:
    """Return the texts of a file."""
    return read_texts(file).texts


def test_a_user_comment_in_exif_is_read():
    """The web UI writes UTF-16 after a character code of eight bytes into JPEG and WebP files."""
    assert texts(jpeg(b"UNICODE\0" + "a 猫\nSteps: 1".encode("utf-16-be")))[USER_COMMENT] == "a 猫\nSteps: 1"
    assert texts(jpeg(b"ASCII\0\0\0a cat"))[USER_COMMENT] == "a cat"
    assert USER_COMMENT not in texts(jpeg(b""))


@given(st.data())
def test_damaged_exif_raises_no_other_error(data: st.DataObject):
    """It is read as far as possible, or raises NotReplayable."""
    damaged = bytearray(jpeg(b"UNICODE\0" + "a cat".encode("utf-16-be")))
    start = damaged.index(b"Exif\0\0") + 6
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(start, start + 60))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotReplayable):
        texts(bytes(damaged))


def test_texts_can_be_removed():
    png = write_png(PIXELS, {"Software": "sd35"})
    assert read_png(without_text(png))[1] == {}
