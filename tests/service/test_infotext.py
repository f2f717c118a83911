"""A1111's text form: what is written is read back, and its own files are read as it reads them."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd35.request import Request
from sd35.service.infotext import KEY, infotext, read_infotext
from sd35.service.png import read_png, with_text, write_png

REAL = """a photo of a cat, (masterpiece:1.2)
on a mat
Negative prompt: blurry, low quality,
ugly
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Lora hashes: "add_detail: 7c6bad76eb54", Version: v1.10.1"""
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


def request(prompt: str, negative_prompt: str = "") -> Request:
    """One of these prompts."""
    return Request(
        prompt, negative_prompt, 128, 96, 28, 4.5, 7, "sd35: mini, or so", "0123456789abcdef", "onnx/float32"
    )


def test_the_text_is_as_a1111_writes_it():
    """Prompt, negative prompt, and a line of pairs; what has a comma is quoted."""
    first, second, third = infotext(request("a cat", "a dog")).split("\n")
    assert (first, second) == ("a cat", "Negative prompt: a dog")
    assert third.startswith(
        "Steps: 28, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, Seed: 7, Size: 128x96,"
        ' Model hash: 0123456789, Model: "sd35: mini, or so", Version: sd35 '
    )


@given(st.lists(LINES, min_size=1).map("\n".join), LINES | st.just(""))
def test_what_is_written_is_read_back(prompt: str, negative_prompt: str):
    """Whatever the prompts, but for one that looks like the next part."""
    found = read_infotext(infotext(request(prompt, negative_prompt)))
    if "Negative prompt:" not in prompt:
        assert (found["Prompt"], found["Negative prompt"]) == (prompt, negative_prompt)
    assert (found["Seed"], found["Size"], found["Model"]) == ("7", "128x96", "sd35: mini, or so")


def test_a1111s_own_text_is_read():
    """Of several lines, with quoted pairs."""
    found = read_infotext(REAL)
    assert found["Prompt"] == "a photo of a cat, (masterpiece:1.2)\non a mat"
    assert found["Negative prompt"] == "blurry, low quality,\nugly"
    assert (found["Sampler"], found["Lora hashes"]) == ("DPM++ 2M", "add_detail: 7c6bad76eb54")
    assert read_infotext("a cat: a dog, 3: 4") == {"Prompt": "a cat: a dog, 3: 4", "Negative prompt": ""}


@given(LINES)
def test_a_text_in_a_png_file_is_read_by_other_tools(text: str):
    """Whatever its characters; pixels and the file's other texts stay."""
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    file = with_text(write_png(pixels, {"sd35.digest": "x"}), KEY, text)
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert image.info == {KEY: text, "sd35.digest": "x"}
    assert (read_png(file)[0] == pixels).all()
