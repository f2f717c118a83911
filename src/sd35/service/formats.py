"""The file formats of pictures."""

from enum import StrEnum


class Format(StrEnum):
    """A picture's file format, by the name that requests use."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"

    @property
    def media_type(self) -> str:
        """As in `Content-Type`."""
        return f"image/{self}"
