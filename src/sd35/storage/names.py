"""Names of image files, and their paths in a blob store."""

import re

DIGEST_CHARACTERS = 64
_NAME = re.compile(r"[0-9a-f]{64}(-[a-z]+)?\.[a-z]+")


def name_of(digest: str, *, is_blurred: bool = False) -> str:
    """Return the name of an image's PNG file. `digest` is the digest of the request that generated the image."""
    return f"{digest}{'-blurred' if is_blurred else ''}.png"


def names_of(digest: str) -> tuple[str, ...]:
    """Return all names that the files of an image may have: of the original and of the blurred image."""
    return name_of(digest), name_of(digest, is_blurred=True)


def digest_of(name: str) -> str:
    """Return the digest in the name of an image file."""
    return name[:DIGEST_CHARACTERS]


def path_of(name: str) -> str:
    """Return the path of an image file in a store: `FOLDER/NAME`.

    The first two digits of the name are the folder, so that no folder has too many files. Raises ValueError if `name`
    is not the name of an image file. A name therefore cannot lead to a path outside the store.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: got {name!r}; allowed: 64 hexadecimal digits and a suffix such as .png")
    return f"{name[:2]}/{name}"


def name_at(path: str) -> str | None:
    """Return the name of the image file at a path in a store. Returns None if no image file can have this path."""
    name = path.rpartition("/")[2]
    return name if _NAME.fullmatch(name) and path == path_of(name) else None
