"""What image files are called, and where a store keeps them."""

import re

DIGEST_CHARACTERS = 64
_NAME = re.compile(r"[0-9a-f]{64}(-[a-z]+)?\.[a-z]+")


def name_of(digest: str, *, is_blurred: bool = False) -> str:
    """What an image's PNG file is called, by the digest of the request that made it."""
    return f"{digest}{'-blurred' if is_blurred else ''}.png"


def names_of(digest: str) -> tuple[str, ...]:
    """All names that an image's files may have."""
    return name_of(digest), name_of(digest, is_blurred=True)


def digest_of(name: str) -> str:
    """The digest in an image file's name."""
    return name[:DIGEST_CHARACTERS]


def place_of(name: str) -> str:
    """Where a store keeps a file: a folder by the name's first two digits, so that none grows too large to list.

    Raises ValueError for what is no name: another path than this can never come of one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no image's name: 64 hexadecimal digits and a suffix")
    return f"{name[:2]}/{name}"


def name_at(place: str) -> str | None:
    """Return the name of the file that a store keeps at a place; None where no image's file lies there."""
    name = place.rpartition("/")[2]
    return name if _NAME.fullmatch(name) and place == place_of(name) else None
