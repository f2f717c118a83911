"""A complete request for an image, and its digest.

A request determines the pixels of its image. `Request.digest`, the SHA-256 of the request's canonical JSON (RFC 8785),
identifies the request and its image. The result cache, the names of image files, and replay use this digest.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import cached_property

import rfc8785

from sd35.errors import InvalidRequest

SIZE_MULTIPLE_PX = 16  # a patch of the transformer has 2x2 latent positions, each of 8x8 pixels
STEPS = (1, 150)
GUIDANCE_SCALE = (0.0, 30.0)
SKIP_LAYER_SCALE = (0.0, 10.0)  # as in ComfyUI's node for skip-layer guidance
SEED = (0, 2**32 - 1)
PROMPT_CHARACTERS = 10_000
PRIORITY = (-9, 9)  # affects scheduling only, so it is not part of the request


@dataclass(frozen=True)
class Request:
    """A request for one image, with every parameter specified.

    Attributes:
        model: The name of the served model.
        revision: The digest of the checkpoint's files.
        profile: The backend, the precision, and other choices that change pixels slightly, such as "onnx/float32".
        skip_layer_scale: The scale of skip-layer guidance; 0 turns it off. The layers and steps are in the model's
            card, the file `sd35.json`.

    Raises:
        InvalidRequest: A value is outside the range that applies to all models.
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
    skip_layer_scale: float = 0.0  # missing in older records

    def __post_init__(self) -> None:
        """Check all values. Raises InvalidRequest for the first one outside its range."""
        _check_prompt("prompt", self.prompt, 1)
        _check_prompt("negative_prompt", self.negative_prompt, 0)
        for field, size_px in (("width", self.width), ("height", self.height)):
            if size_px < SIZE_MULTIPLE_PX or size_px % SIZE_MULTIPLE_PX:
                raise InvalidRequest(field, size_px, f"positive multiples of {SIZE_MULTIPLE_PX}")
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
        """Canonical JSON (RFC 8785) in UTF-8. A `skip_layer_scale` of 0 is omitted, so older digests stay valid."""
        fields = asdict(self)
        if not self.skip_layer_scale:
            del fields["skip_layer_scale"]
        return rfc8785.dumps(fields)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical`, as 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical).hexdigest()


def _check_prompt(field: str, text: str, min_length: int) -> None:
    """Raise InvalidRequest if a prompt is too short, too long, or cannot be encoded as UTF-8."""
    if not min_length <= len(text) <= PROMPT_CHARACTERS:
        raise InvalidRequest(field, f"{len(text)} characters", f"{min_length} to {PROMPT_CHARACTERS} characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # lone surrogates can come from JSON's \u escapes
        raise InvalidRequest(field, text[error.start : error.end], "Unicode text without lone surrogates") from error
