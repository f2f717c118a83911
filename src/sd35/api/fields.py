"""Types of the fields that the bodies of several dialects share, and descriptions of their allowed values."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, SEED, SIZE_MULTIPLE_PX, STEPS

Prompt: TypeAlias = Annotated[str, Field(min_length=1, max_length=PROMPT_CHARACTERS)]
NegativePrompt: TypeAlias = Annotated[str, Field(max_length=PROMPT_CHARACTERS)]
Side: TypeAlias = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, multiple_of=SIZE_MULTIPLE_PX)]
Steps: TypeAlias = Annotated[int, Field(ge=STEPS[0], le=STEPS[1])]
GuidanceScale: TypeAlias = Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])]
Seed: TypeAlias = Annotated[int, Field(ge=SEED[0], le=SEED[1])]
OutputFormat: TypeAlias = Literal["png", "jpeg", "webp", "avif"]

PROMPT_ALLOWED = f"text of 1 to {PROMPT_CHARACTERS} characters"
NEGATIVE_PROMPT_ALLOWED = f"text of at most {PROMPT_CHARACTERS} characters"
SIDE_ALLOWED = f"an integer, a multiple of {SIZE_MULTIPLE_PX}, in the model's range"
STEPS_ALLOWED = f"an integer from {STEPS[0]} to {STEPS[1]}"
GUIDANCE_SCALE_ALLOWED = f"a number from {GUIDANCE_SCALE[0]:g} to {GUIDANCE_SCALE[1]:g}"
SEED_ALLOWED = f"an integer from {SEED[0]} to {SEED[1]}"
