"""The request for an image, resolved: frozen, canonical, and its own identity.

An image is a pure function of its request. `Request.digest` is that identity: the SHA-256 of the request's canonical
JSON (RFC 8785). Cache key, artifact name, idempotency and replay all follow from it; nothing else invents an identity.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import cached_property

import rfc8785

from sd35.errors import InvalidRequest

SIZE_MULTIPLE_PX = 16  # 8x autoencoder times patch 2
STEPS = (1, 150)
GUIDANCE_SCALE = (0.0, 30.0)
SKIP_LAYER_SCALE = (0.0, 10.0)  # as in ComfyUI's node for it
SEED = (0, 2**32 - 1)
PROMPT_CHARACTERS = 10_000
PRIORITY = (-9, 9)  # how an image is scheduled, no part of what it is


@dataclass(frozen=True)
class Request:
    """One image, with nothing left open. Raises InvalidRequest where a value is outside what any model allows.

    `model`, `revision` and `profile` name what makes it: the served name, the digest of the checkpoint's files, and the
    numeric profile ("onnx/float32"), so that the same request always means the same image. `skip_layer_scale` is
    that of skip-layer guidance, 0 for none; the layers and the steps it is for are the model's.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    model: str
    revision: str
    profile: str
    skip_layer_scale: float = 0.0  # requests that were recorded before it was there have none

    def __post_init__(self) -> None:
        _check_prompt("prompt", self.prompt, 1)
        _check_prompt("negative_prompt", self.negative_prompt, 0)
        for field, size_px in (("width", self.width), ("height", self.height)):
            if size_px < SIZE_MULTIPLE_PX or size_px % SIZE_MULTIPLE_PX:
                raise InvalidRequest(field, size_px, f"multiples of {SIZE_MULTIPLE_PX}")
        for field, value, (low, high) in (
            ("steps", self.steps, STEPS),
            ("guidance_scale", self.guidance_scale, GUIDANCE_SCALE),
            ("skip_layer_scale", self.skip_layer_scale, SKIP_LAYER_SCALE),
            ("seed", self.seed, SEED),
        ):
            if not math.isfinite(value) or not low <= value <= high:
                raise InvalidRequest(field, value, f"{low} to {high}")

    @cached_property
    def canonical(self) -> bytes:
        """Canonical JSON (RFC 8785), UTF-8. A `skip_layer_scale` of 0 is left out: older digests stay what they are."""
        fields = asdict(self)
        if not self.skip_layer_scale:
            del fields["skip_layer_scale"]
        return rfc8785.dumps(fields)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical).hexdigest()


def _check_prompt(field: str, text: str, least: int) -> None:
    if not least <= len(text) <= PROMPT_CHARACTERS:
        raise InvalidRequest(field, f"{len(text)} characters", f"{least} to {PROMPT_CHARACTERS} characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, legal in JSON's \u escapes
        raise InvalidRequest(field, text[error.start : error.end], "Unicode text without lone surrogates") from error
