"""The card of a checkpoint: the default values and limits of its images, from the file `sd35.json` or the registry."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sd35.checkpoints.network_config import REMEDY, explain, read_object
from sd35.errors import CheckpointError
from sd35.request import GUIDANCE_SCALE, SIZE_MULTIPLE_PX, SKIP_LAYER_SCALE, STEPS

_Side = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, multiple_of=SIZE_MULTIPLE_PX)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class SkipLayers:
    """Settings of skip-layer guidance.

    `layers` are the indices of the transformer layers to skip, counted from 0. Guidance applies to the steps strictly
    between `N * start` and `N * stop`, counted from 0, if an image has N steps. Diffusers does the same.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    scale: Annotated[float, Field(ge=SKIP_LAYER_SCALE[0], le=SKIP_LAYER_SCALE[1])]
    start: _Fraction
    stop: _Fraction


@dataclass(frozen=True)
class Card:
    """The contents of a checkpoint's `sd35.json`. The default values suit the SD3.5 models.

    The registry sets `steps` and `guidance_scale` for each of these models.

    Attributes:
        width: The default width in px. `height`, `steps` and `guidance_scale` are default values too.
        max_sequence_length: The length of T5's input in tokens.
        side_px: The smallest and the largest side of an image that the model can generate.
        enlarges: Whether an image with a side above the largest in `side_px` is generated with fewer pixels at the same
            aspect ratio, and then enlarged. Only for small test models.
        native_pixels: The approximate number of pixels (width x height) of an image before it is enlarged.
        skip_layers: None if skip-layer guidance is not recommended for the model. The published model card of SD3.5
            Medium recommends layers 7, 8 and 9, a scale of 2.8, start 0.01 and stop 0.2.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    width: _Side = 1024
    height: _Side = 1024
    steps: Annotated[int, Field(ge=STEPS[0], le=STEPS[1])] = 30
    guidance_scale: Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])] = 3.5
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 256
    side_px: tuple[_Side, _Side] = (256, 2048)
    native_pixels: Annotated[int, Field(ge=SIZE_MULTIPLE_PX**2)] = 1024 * 1024
    enlarges: bool = False
    skip_layers: SkipLayers | None = None
    licence: str = "see the checkpoint's model card"


def read_card(file: Path) -> Card | None:
    """Read a card, or return None if the file does not exist. Raises CheckpointError if it is not valid."""
    if not file.exists():
        return None
    try:
        return TypeAdapter(Card).validate_python(read_object(file))
    except ValidationError as error:
        raise CheckpointError(f"{file}: {explain(error)}. {REMEDY}") from error
