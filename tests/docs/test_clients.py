"""docs/guide/clients.md: its examples save images, and there is one for each API."""

import re
from pathlib import Path

from PIL import Image

from tests.support.code_blocks import run_page
from tests.support.documentation import ROOT, Page

BLOCKS = [
    block
    for block in Page.read(ROOT / "docs/guide/clients.md").blocks
    if block.language in {"python", "console"} and block.reason is None
]


def test_each_example_saves_images(tmp_path: Path):
    """Each block names at least one file, and each file is an image."""
    run_page(BLOCKS, tmp_path)
    for block in BLOCKS:
        names = set(re.findall(r"[\w-]+\.(?:png|jpeg|webp)\b", block.code))
        assert names, f"line {block.line}"
        for name in names:
            with Image.open(tmp_path / "here" / name) as image:
                image.load()


def test_there_is_an_example_for_each_api():
    """By its own path or client."""
    code = "".join(block.code for block in BLOCKS)
    for part in ("/v1/txt2img", "OpenAI(", "/v1/images/generations", "WebUIApi(", "/sdapi/v1/txt2img", "/v2beta/"):
        assert part in code
