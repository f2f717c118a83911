"""The record in an image file: the request, and the conditions of the generation, so that it can be repeated."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from sd35.errors import InvalidRequest, NotReplayable
from sd35.request import Request

REQUEST_KEY = "sd35.request"
DIGEST_KEY = "sd35.digest"
MAKER_KEY = "sd35.maker"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Maker:
    """The conditions under which an image was generated, beyond its request.

    Attributes:
        revision: The digest of the checkpoint's files.
        backend: Name of the backend.
        precision: Precision of the computation.
        versions: Versions of this project and of the libraries that affect the image.
        drawn_width: Width in pixels before enlarging.
        drawn_height: Height in pixels before enlarging.
        cut_off: Names of the prompts that were truncated.
    """

    revision: str
    backend: str
    precision: str
    versions: dict[str, str]
    drawn_width: int
    drawn_height: int
    cut_off: list[str]


@dataclass(frozen=True)
class Record:
    """The request of an image, and the conditions under which the image was generated."""

    request: Request
    maker: Maker

    def to_text(self) -> dict[str, str]:
        """Return the texts for the PNG file. Equal records give equal texts."""
        return {
            "Software": f"sd35-fp8-mirror {own_version()}",
            REQUEST_KEY: self.request.canonical.decode(),
            DIGEST_KEY: self.request.digest,
            MAKER_KEY: json.dumps(asdict(self.maker), sort_keys=True),
        }


def from_text(text: Mapping[str, str]) -> Record:
    """Parse the record in a file's texts. Raises NotReplayable if it is missing, damaged or was edited."""
    if missing := [key for key in (REQUEST_KEY, DIGEST_KEY, MAKER_KEY) if key not in text]:
        raise NotReplayable(
            f"it does not record how it was generated: no {', '.join(missing)} in its metadata; use the unchanged PNG"
            " file"
        )
    canonical = text[REQUEST_KEY]
    if hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest() != text[DIGEST_KEY]:
        raise NotReplayable(f"its request was edited: {DIGEST_KEY} is not the digest of {REQUEST_KEY}")
    request = _typed(Request, canonical, REQUEST_KEY)
    if request.canonical.decode() != canonical:
        raise NotReplayable(f"its {REQUEST_KEY} has fields that this version does not know: {canonical[:200]}")
    return Record(request, _typed(Maker, text[MAKER_KEY], MAKER_KEY))


@cache
def own_version() -> str:
    """Return this project's version. Cached, because each image needs it twice, and a lookup takes 0.3 ms."""
    return version("sd35-fp8-mirror")


def _typed(kind: type[Part], content: str, key: str) -> Part:
    """Parse a dataclass from JSON. Types are strict, and fields without a default are required."""
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise NotReplayable(f"its {key} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except InvalidRequest as error:
        raise NotReplayable(f"its {key} is out of range: {error}") from error
