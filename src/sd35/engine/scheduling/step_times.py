"""The step times of a model on a device, by batch size and image size.

`sd35 measure` writes them to a file, and `sd35 simulate` reads the file.

The batch size counts transformer rows: one for each image, or two with guidance.
"""

import json
from bisect import bisect_left
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sd35.engine.scheduling.cost_model import Shape
from sd35.errors import InvalidSetting
from sd35.request import GUIDANCE_SCALE, STEPS
from sd35.tensors import LATENT_PX

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ShapeTimes(BaseModel):
    """The costs of one image size.

    Attributes:
        step_s: Seconds of a step, by number of transformer rows.
        decode_s: Seconds to decode one latent.
        row_bytes: Peak memory of a step per transformer row.
        decode_bytes: Peak memory of decoding one latent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width_px: int = Field(gt=0)
    height_px: int = Field(gt=0)
    step_s: dict[Annotated[int, Field(ge=1)], _Seconds] = Field(min_length=1)
    decode_s: _Seconds
    row_bytes: int = Field(ge=0)
    decode_bytes: int = Field(ge=0)

    def step_time_s(self, rows: int) -> float:
        """Return the seconds of a step: linear between measured numbers of rows, and extrapolated beyond them.

        If only one number of rows was measured, the time is proportional to the rows.
        """
        if rows in self.step_s:
            return self.step_s[rows]
        known = sorted(self.step_s)
        proportional_s = self.step_s[known[0]] * rows / known[0]
        if len(known) == 1:
            return proportional_s
        upper = min(max(bisect_left(known, rows), 1), len(known) - 1)
        low, high = known[upper - 1], known[upper]
        slope = (self.step_s[high] - self.step_s[low]) / (high - low)
        linear_s = self.step_s[low] + slope * (rows - low)
        return max(proportional_s / 10, linear_s)  # noisy times could extrapolate to 0 or less


class StepTimes(BaseModel):
    """The step times of a model on a device.

    Attributes:
        profile: The backend, the precision and whatever else changes pixels, such as "onnx/float32".
        machine: The operating system and the processor.
        memory_bytes: The memory that was free for steps and decoding.
        steps, guidance_scale: The model's defaults.
        encode_s: Seconds to encode one prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    profile: str
    machine: str
    memory_bytes: int = Field(gt=0)
    steps: int = Field(ge=STEPS[0], le=STEPS[1])
    guidance_scale: float = Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])
    encode_s: _Seconds
    shapes: list[ShapeTimes] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a table from a JSON file. Raises InvalidSetting if it cannot be read or is invalid."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InvalidSetting(
                f"--step-times: {path} cannot be read ({error.strerror}); `sd35 measure` writes such a file"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise InvalidSetting(
                f"--step-times: {path} is not a table of step times, because {where} is invalid ({first['msg']});"
                " use a file that `sd35 measure` wrote"
            ) from error

    def write(self, path: Path) -> None:
        """Write the table as JSON. Raises InvalidSetting if the file cannot be written."""
        try:
            path.write_text(json.dumps(self.model_dump(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidSetting(f"--output: {path} cannot be written ({error.strerror}); use another path") from error

    def shape(self, times: ShapeTimes) -> Shape:
        """Return the key of an image size in the cost model: the model, the profile, and the latent's sides."""
        return Shape((self.model, self.profile), times.height_px // LATENT_PX, times.width_px // LATENT_PX)
