"""The base class of the records of a result."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable record. Fields that it does not have are refused when a file is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
