"""Sizes of images on the command line."""

from sd35.errors import InvalidSetting


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height in pixels of a text such as `1024x768`. Raises InvalidSetting, which names `--size`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidSetting(f"--size: got {text!r}; allowed: WIDTHxHEIGHT in pixels, such as 1024x1024")
    return int(width), int(height)
