"""The record in an image file: its request, and the versions that generated it, so that it can be generated again."""

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
USE_ORIGINAL = "use the original PNG file that the service or `sd35 generate` wrote"
_USE_VERSION = "use the version that generated it"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Maker:
    """What an image depends on besides its request: the checkpoint, the backend and the versions of libraries.

    Attributes:
        revision: The SHA-256 over the checkpoint's files.
        backend: Name of the backend.
        precision: Precision of the computation.
        versions: Versions of this project and of the libraries that affect the image.
        drawn_width, drawn_height: The size in pixels at which the image was generated. It was then enlarged to the
            requested size, if that is larger.
        cut_off: The prompts that exceeded the tokenizers' lengths and were truncated: "prompt", "negative_prompt".
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
    """The request of an image, and the versions that generated it."""

    request: Request
    maker: Maker

    def to_text(self) -> dict[str, str]:
        """Return the texts of the PNG file by keyword. Equal records give equal texts."""
        return {
            "Software": f"sd35-fp8-mirror {own_version()}",
            REQUEST_KEY: self.request.canonical.decode(),
            DIGEST_KEY: self.request.digest,
            MAKER_KEY: json.dumps(asdict(self.maker), sort_keys=True),
        }


def from_text(text: Mapping[str, str]) -> Record:
    """Return the record in a file's texts, which are given by keyword.

    Raises NotReplayable if the record is missing, damaged or edited, or if this version of sd35 does not support it.
    """
    if missing := [key for key in (REQUEST_KEY, DIGEST_KEY, MAKER_KEY) if key not in text]:
        raise NotReplayable(
            f"it does not say how it was generated, because its metadata has no {', '.join(missing)}; {USE_ORIGINAL},"
            " if that has metadata"
        )
    canonical = text[REQUEST_KEY]
    if hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest() != text[DIGEST_KEY]:
        raise NotReplayable(f"its {REQUEST_KEY} was edited and no longer matches its {DIGEST_KEY}; {USE_ORIGINAL}")
    request = _parse_json(Request, canonical, REQUEST_KEY)
    if request.canonical.decode() != canonical:
        raise NotReplayable(
            f"its {REQUEST_KEY} has fields that this version of sd35 does not know ({canonical[:200]}); {_USE_VERSION}"
        )
    return Record(request, _parse_json(Maker, text[MAKER_KEY], MAKER_KEY))


@cache
def own_version() -> str:
    """Return this project's version. Cached, because each image needs it twice, and a lookup takes 0.3 ms."""
    return version("sd35-fp8-mirror")


def _parse_json(kind: type[Part], content: str, key: str) -> Part:
    """Parse the text of a key as JSON of a dataclass. Types are strict, and fields without a default are required.

    Raises NotReplayable if the text is not valid.
    """
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = f" at {'.'.join(map(str, first['loc']))}" if first["loc"] else ""
        raise NotReplayable(f"its {key} is damaged{place} ({first['msg']}); {USE_ORIGINAL}") from error
    except InvalidRequest as error:
        raise NotReplayable(f"its {key} is not valid in this version of sd35 ({error}); {_USE_VERSION}") from error
