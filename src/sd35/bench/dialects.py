"""How each kind of server is asked for an image, and what its answer means: one entry each, in one table.

A field that a dialect has no word for is never passed over: a workload that names it is refused.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import httpx2

from sd35.bench.workload import BenchRequest, Kind, Workload, mixed, plain
from sd35.errors import InvalidSetting

End: TypeAlias = Literal["made", "refused", "failed"]
_OK = 200
_REFUSALS = frozenset({429, 503})
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"\x00\x00\x00")  # PNG, JPEG, WebP, AVIF
_RATIOS = ("16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21")
_SAID = 200  # characters of what a server said
Arguments: TypeAlias = dict[str, Any]


class Answer(NamedTuple):
    """What came of a request: an image's file, or the server's words."""

    end: End
    image: bytes = b""
    said: str = ""


@dataclass(frozen=True)
class Dialect:
    """`ask`: a request as httpx's arguments. `image`: the file in an answer. `lacks`: what it has no word for.

    `check_kind` raises InvalidSetting for what it has words for and does not allow.
    """

    name: str
    path: str
    ask: Callable[[BenchRequest], Arguments]
    image: Callable[[httpx2.Response], bytes]
    default: Callable[[], Workload] = mixed
    lacks: frozenset[str] = frozenset()
    check_kind: Callable[[Kind], None] = lambda _: None
    has_metrics: bool = False
    key_header: Callable[[str], str] = "Bearer {}".format

    def headers(self, key: str | None) -> dict[str, str]:
        """What shows an API key."""
        return {"Authorization": self.key_header(key)} if key else {}

    def check(self, workload: Workload) -> None:
        """Raises InvalidSetting where the dialect has no words for what the workload asks."""
        for kind in workload.classes:
            for field in ("sizes", "steps", "guidance", "negative_prompt"):
                if field in self.lacks and getattr(kind, field):
                    raise InvalidSetting(
                        f"--workload: classes: {kind.name!r} has {field}; allowed with --dialect {self.name}:"
                        f" none, for it has no word for {field}"
                    )
            self.check_kind(kind)

    def answer(self, response: httpx2.Response) -> Answer:
        """A response, read."""
        if response.status_code in _REFUSALS:
            return Answer("refused", said=_said(response))
        if response.status_code != _OK:
            return Answer("failed", said=_said(response))
        try:
            image = self.image(response)
        except (KeyError, IndexError, TypeError, ValueError, binascii.Error) as error:
            return Answer("failed", said=f"200, without an image: {type(error).__name__}: {error}"[:_SAID])
        if not image.startswith(_SIGNATURES):
            return Answer("failed", said=f"200, with no image's file: {image[:20]!r}")
        return Answer("made", image)


def _said(response: httpx2.Response) -> str:
    """The status, and of a JSON object the part that is for a person: each dialect has its own."""
    try:
        told: Any = json.loads(response.content)
    except ValueError:
        told = response.text
    if isinstance(told, dict):
        told = told.get("detail") or told.get("errors") or told.get("error") or told
        told = told.get("message", told) if isinstance(told, dict) else told
    return f"{response.status_code}: {' '.join(str(told).split())}"[:_SAID]


def _given(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  whatever a field holds
    """Without what is left to the server."""
    return {name: value for name, value in fields.items() if value is not None}


def _sized(wanted: BenchRequest, **more: Any) -> Arguments:  # noqa: ANN401  see above
    """What the dialects call alike that take width and height apart, and `more`."""
    width, height = wanted.size_px or (None, None)
    return {
        "json": _given(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt or None,
            width=width,
            height=height,
            steps=wanted.steps,
            seed=wanted.seed,
            **more,
        )
    }


def _ask_txt2img(wanted: BenchRequest) -> Arguments:
    return _sized(wanted, guidance_scale=wanted.guidance)


def _ask_openai(wanted: BenchRequest) -> Arguments:
    """With the extensions that several servers of this dialect share: see docs/benchmarking.md."""
    return {
        "json": _given(
            model="gpt-image-1",
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt or None,
            n=1,
            size="{}x{}".format(*wanted.size_px) if wanted.size_px else "auto",
            seed=wanted.seed,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance,
            response_format="b64_json",
        )
    }


def _ask_automatic1111(wanted: BenchRequest) -> Arguments:
    return _sized(wanted, cfg_scale=wanted.guidance, sampler_name="Euler")


def _ask_stability(wanted: BenchRequest) -> Arguments:
    fields = _given(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt or None,
        aspect_ratio=_ratio(*wanted.size_px) if wanted.size_px else None,
        cfg_scale=wanted.guidance,
        seed=wanted.seed,
        output_format="png",
    )
    parts = {name: (None, str(value)) for name, value in fields.items()}
    return {"files": parts, "headers": {"Accept": "image/*"}}


def _check_stability(kind: Kind) -> None:
    for size in kind.sizes:
        width, _, height = size.partition("x")
        if (ratio := _ratio(int(width), int(height))) not in _RATIOS:
            raise InvalidSetting(
                f"--workload: classes: {kind.name!r}: sizes: got {size}, {ratio}; allowed with --dialect stability:"
                f" {', '.join(_RATIOS)}"
            )
    for guidance in kind.guidance:
        if not 1 <= guidance <= 10:
            raise InvalidSetting(
                f"--workload: classes: {kind.name!r}: guidance: got {guidance:g}; allowed with --dialect stability:"
                " 1 to 10"
            )


def _ratio(width: int, height: int) -> str:
    divisor = gcd(width, height) or 1
    return f"{width // divisor}:{height // divisor}"


def _body(response: httpx2.Response) -> bytes:
    return response.content


def _openai_image(response: httpx2.Response) -> bytes:
    return base64.b64decode(json.loads(response.content)["data"][0]["b64_json"])


def _automatic1111_image(response: httpx2.Response) -> bytes:
    return base64.b64decode(json.loads(response.content)["images"][0])


def _basic(key: str) -> str:
    """A key, or "user:password", as HTTP Basic."""
    return "Basic " + base64.b64encode((key if ":" in key else f"user:{key}").encode()).decode()


_TABLE = (
    Dialect("sd35", "/v1/txt2img", _ask_txt2img, _body, has_metrics=True),
    Dialect("openai", "/v1/images/generations", _ask_openai, _openai_image),
    Dialect("a1111", "/sdapi/v1/txt2img", _ask_automatic1111, _automatic1111_image, key_header=_basic),
    Dialect(
        "stability",
        "/v2beta/stable-image/generate/sd3",
        _ask_stability,
        _body,
        default=plain,
        lacks=frozenset({"steps"}),
        check_kind=_check_stability,
    ),
    Dialect("plain", "/v1/txt2img", _ask_txt2img, _body),
)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({each.name: each for each in _TABLE})


def dialect_of(name: str) -> Dialect:
    """One of the table. Raises InvalidSetting."""
    if name not in DIALECTS:
        raise InvalidSetting(f"--dialect: got {name!r}; allowed: {', '.join(DIALECTS)}")
    return DIALECTS[name]
