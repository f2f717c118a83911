"""The base class of results and of their parts."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable object that is written to JSON and read from it. Reading refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
