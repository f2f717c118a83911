"""A model as callers of an engine see it: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

from sd35.checkpoints.card import Card, SkipLayers
from sd35.errors import InvalidRequest
from sd35.request import SIZE_MULTIPLE_PX, Request

TILED, COMPILED = "tiled", "compiled"  # parts of a profile
_WIDEST_FIRST = ("float32", "bfloat16")  # by range of values; all other precisions, float16 and FP8, are narrower


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint in a backend.

    Attributes:
        revision: The digest of the checkpoint's files.
        profile: Everything about the computation that changes pixels, such as "diffusers/bfloat16/compiled".
        card: The model's defaults and limits, from the checkpoint's `sd35.json`.
        versions: The versions of the libraries that compute, by name.
        created_s: When the checkpoint's directory was last modified, in seconds since 1970.
    """

    name: str
    revision: str
    profile: str
    backend: str
    precision: str
    card: Card
    versions: Mapping[str, str]
    can_skip_layers: bool
    created_s: float

    @property
    def key(self) -> tuple[str, str]:
        """The name and the profile, which identify the model in an engine."""
        return self.name, self.profile

    @property
    def skip_layers(self) -> SkipLayers | None:
        """The card's settings of skip-layer guidance; None if it lacks them, or if the backend cannot skip layers."""
        return self.card.skip_layers if self.can_skip_layers else None

    @property
    def narrowness(self) -> int:
        """The rank of the precision by its range of values: 0 is the widest."""
        return _WIDEST_FIRST.index(self.precision) if self.precision in _WIDEST_FIRST else len(_WIDEST_FIRST)

    def check(self, request: Request, width_px: int, height_px: int) -> None:
        """Raise InvalidRequest if the model cannot generate this size, or cannot skip layers as requested."""
        low, high = self.card.side_px
        for field, side_px in (("width", width_px), ("height", height_px)):
            if side_px % SIZE_MULTIPLE_PX or not low <= side_px <= high:
                raise InvalidRequest(field, side_px, f"multiples of {SIZE_MULTIPLE_PX} from {low} to {high}")
        if request.skip_layer_scale and self.skip_layers is None:
            lacking = f"model {request.model}" if self.card.skip_layers is None else f"{self.backend} backend"
            allowed = f"0, because the {lacking} does not support skip-layer guidance"
            raise InvalidRequest("skip_layer_scale", request.skip_layer_scale, allowed)
