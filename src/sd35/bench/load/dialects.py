"""The dialects: how to request an image from each kind of server, and how to read the response.

A dialect refuses a workload with a field that it cannot send, so that no field is silently ignored.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import httpx2

from sd35.bench.load.workload import BenchRequest, RequestClass, Workload, mixed_workload, plain_workload
from sd35.errors import InvalidSetting

Status: TypeAlias = Literal["completed", "refused", "failed"]
RequestArguments: TypeAlias = dict[str, Any]
"""Keyword arguments of `httpx2.AsyncClient.post`."""
_OK = 200
_REFUSALS = frozenset({429, 503})
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"\x00\x00\x00")  # PNG, JPEG, WebP, AVIF
_STABILITY_RATIOS = ("16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21")
_MAX_MESSAGE = 200  # characters


class ImageResponse(NamedTuple):
    """A response: the image file if the status is "completed", otherwise the error message."""

    status: Status
    image: bytes = b""
    message: str = ""


@dataclass(frozen=True)
class Dialect:
    """The API of one kind of server.

    Attributes:
        name: The value of `--dialect`.
        path: The route that generates an image.
        build_request: Returns the arguments of `httpx2.AsyncClient.post` for a request.
        extract_image: Returns the image file in a response with status 200.
        default_workload: Returns the workload for runs without `--workload`.
        unsupported: Fields of a request class that the dialect cannot send.
        check_class: Raises InvalidSetting if a request class has values that the dialect does not allow.
        has_metrics: Whether the server has this project's `/metrics`, `/readyz` and `/v1/models`.
        authorization: Returns the `Authorization` header for an API key.
    """

    name: str
    path: str
    build_request: Callable[[BenchRequest], RequestArguments]
    extract_image: Callable[[httpx2.Response], bytes]
    default_workload: Callable[[], Workload] = mixed_workload
    unsupported: frozenset[str] = frozenset()
    check_class: Callable[[RequestClass], None] = lambda _: None
    has_metrics: bool = False
    authorization: Callable[[str], str] = "Bearer {}".format

    def headers(self, key: str | None) -> dict[str, str]:
        """Return the headers that carry an API key."""
        return {"Authorization": self.authorization(key)} if key else {}

    def check(self, workload: Workload) -> None:
        """Check that the dialect can send a workload. Raises InvalidSetting if it cannot."""
        for request_class in workload.classes:
            for field in sorted(self.unsupported):
                if getattr(request_class, field):
                    others = ", ".join(dialect.name for dialect in _TABLE if field not in dialect.unsupported)
                    raise InvalidSetting(
                        f"--workload: class {request_class.name!r} sets {field}, which --dialect {self.name} cannot"
                        f" send. Remove {field} from the class, or use one of these dialects: {others}"
                    )
            self.check_class(request_class)

    def parse_response(self, response: httpx2.Response) -> ImageResponse:
        """Read a response. Status 429 and 503 count as refused, any other response without an image as failed."""
        if response.status_code in _REFUSALS:
            return ImageResponse("refused", message=_error_message(response))
        if response.status_code != _OK:
            return ImageResponse("failed", message=_error_message(response))
        try:
            image = self.extract_image(response)
        except (KeyError, IndexError, TypeError, ValueError, binascii.Error) as error:
            message = f"200, but no image is in the response ({type(error).__name__}: {error})"
            return ImageResponse("failed", message=message[:_MAX_MESSAGE])
        if not image.startswith(_SIGNATURES):
            message = f"200, but the response is not a PNG, JPEG, WebP or AVIF file: it begins with {image[:20]!r}"
            return ImageResponse("failed", message=message)
        return ImageResponse("completed", image)


def _error_message(response: httpx2.Response) -> str:
    """Return the status and the error message of a response: "503: the service is loading".

    Each dialect has its own JSON layout for errors. If the layout is unknown, returns the whole body, shortened.
    """
    try:
        content: Any = json.loads(response.content)
    except ValueError:
        content = response.text
    if isinstance(content, dict):
        content = content.get("detail") or content.get("errors") or content.get("error") or content
        content = content.get("message", content) if isinstance(content, dict) else content
    return f"{response.status_code}: {' '.join(str(content).split())}"[:_MAX_MESSAGE]


def _without_none(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  fields have different types
    """Return the fields that are not None. The server chooses the others."""
    return {name: value for name, value in fields.items() if value is not None}


def _json_body(request: BenchRequest, **more: Any) -> RequestArguments:  # noqa: ANN401  see above
    """Build the JSON body of the dialects that have two fields for width and height, and add `more` fields."""
    width, height = request.size_px or (None, None)
    return {
        "json": _without_none(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            width=width,
            height=height,
            steps=request.steps,
            seed=request.seed,
            **more,
        )
    }


def _build_txt2img_request(request: BenchRequest) -> RequestArguments:
    return _json_body(request, guidance_scale=request.guidance)


def _build_openai_request(request: BenchRequest) -> RequestArguments:
    """Build the JSON body of OpenAI's dialect, with the extensions that several servers share.

    docs/guide/benchmarking.md lists the extensions.
    """
    return {
        "json": _without_none(
            model="gpt-image-1",
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            n=1,
            size="{}x{}".format(*request.size_px) if request.size_px else "auto",
            seed=request.seed,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            response_format="b64_json",
        )
    }


def _build_automatic1111_request(request: BenchRequest) -> RequestArguments:
    return _json_body(request, cfg_scale=request.guidance, sampler_name="Euler")


def _build_stability_request(request: BenchRequest) -> RequestArguments:
    """Build the multipart form of Stability's dialect."""
    fields = _without_none(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        aspect_ratio=_aspect_ratio(*request.size_px) if request.size_px else None,
        cfg_scale=request.guidance,
        seed=request.seed,
        output_format="png",
    )
    parts = {name: (None, str(value)) for name, value in fields.items()}  # None: not a file, so without a file name
    return {"files": parts, "headers": {"Accept": "image/*"}}


def _check_stability_class(request_class: RequestClass) -> None:
    """Raise InvalidSetting for an aspect ratio or a guidance that Stability's API does not allow."""
    name, allowed = repr(request_class.name), "allowed with --dialect stability"
    for size in request_class.sizes:
        width, _, height = size.partition("x")
        ratio = _aspect_ratio(int(width), int(height))
        if ratio not in _STABILITY_RATIOS:
            raise InvalidSetting(
                f"--workload: class {name} has the size {size}, which has the aspect ratio {ratio}; {allowed}:"
                f" {', '.join(_STABILITY_RATIOS)}"
            )
    for guidance in request_class.guidance:
        if not 1 <= guidance <= 10:
            raise InvalidSetting(f"--workload: class {name} has the guidance {guidance:g}; {allowed}: 1 to 10")


def _aspect_ratio(width: int, height: int) -> str:
    """Return the aspect ratio in lowest terms, such as "3:2"."""
    divisor = gcd(width, height) or 1  # the divisor of 0x0, which a workload may contain, is 0
    return f"{width // divisor}:{height // divisor}"


def _extract_openai_image(response: httpx2.Response) -> bytes:
    return base64.b64decode(json.loads(response.content)["data"][0]["b64_json"])


def _extract_automatic1111_image(response: httpx2.Response) -> bytes:
    return base64.b64decode(json.loads(response.content)["images"][0])


def _basic_authorization(key: str) -> str:
    """Return the header of HTTP Basic authentication for "user:password", or for a password alone."""
    return "Basic " + base64.b64encode((key if ":" in key else f"user:{key}").encode()).decode()


_TABLE = (
    Dialect("sd35", "/v1/txt2img", _build_txt2img_request, attrgetter("content"), has_metrics=True),
    Dialect("openai", "/v1/images/generations", _build_openai_request, _extract_openai_image),
    Dialect(
        "a1111",
        "/sdapi/v1/txt2img",
        _build_automatic1111_request,
        _extract_automatic1111_image,
        authorization=_basic_authorization,
    ),
    Dialect(
        "stability",
        "/v2beta/stable-image/generate/sd3",
        _build_stability_request,
        attrgetter("content"),
        default_workload=plain_workload,
        unsupported=frozenset({"steps"}),
        check_class=_check_stability_class,
    ),
    Dialect("plain", "/v1/txt2img", _build_txt2img_request, attrgetter("content")),
)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in _TABLE})


def dialect_of(name: str) -> Dialect:
    """Look up a dialect by name. Raises InvalidSetting if it is unknown."""
    if name not in DIALECTS:
        raise InvalidSetting(f"--dialect: got {name!r}; allowed: {', '.join(DIALECTS)}")
    return DIALECTS[name]
