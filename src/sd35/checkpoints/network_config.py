"""Read the configuration files of a checkpoint's parts, and validate the fields that this project uses."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt, ValidationError, create_model

from sd35.errors import CheckpointError
from sd35.parsing import read_json, shown

REMEDY = "Correct this file, or download or copy it again"
_WORDS = {"missing": "it is required", "unexpected_keyword_argument": "there is no such field"}  # by Pydantic's type
_OF_PYTHON = re.compile(r", got .*| or an instance of .*")  # parts of Pydantic's messages that mean nothing to a user
_Size = Annotated[StrictInt, Field(ge=1, lt=2**31)]
_Factor = Annotated[float, Field(strict=True, allow_inf_nan=False)]


_SIZES = (
    "attention_head_dim", "d_ff", "d_kv", "d_model", "hidden_size", "in_channels", "intermediate_size",
    "joint_attention_dim", "max_position_embeddings", "num_attention_heads", "num_heads", "num_layers", "patch_size",
    "pooled_projection_dim", "pos_embed_max_size", "projection_dim", "vocab_size",
)  # fmt: skip
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(_SIZES, (_Size, None)),
    **dict.fromkeys(("scaling_factor", "shift", "shift_factor"), (_Factor, None)),
    "block_out_channels": (Annotated[list[_Size], Field(min_length=1)], None),
    "dual_attention_layers": (list[Annotated[StrictInt, Field(ge=0)]], None),
}
_UsedFields = create_model("_UsedFields", **_FIELDS)  # all fields are optional, because each part has only some


class Config(dict[str, Any]):
    """A configuration. Looking up a missing key raises CheckpointError instead of KeyError."""

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        super().__init__(values)
        self._file = file

    def __missing__(self, name: str) -> Any:  # noqa: ANN401  it always raises
        raise CheckpointError(f"{self._file}: {name} is missing. {REMEDY}")


def read_config(file: Path) -> Config:
    """Read a part's configuration. Raises CheckpointError if it cannot be read or a used field is not valid."""
    content = read_object(file)
    try:
        _UsedFields.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{file}: {explain(error)}. {REMEDY}") from error
    return Config(content, file)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises CheckpointError if the file cannot be read or contains another value."""
    try:
        content = read_json(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}. {REMEDY}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}. {REMEDY}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {shown(content)}. {REMEDY}")
    return content


def explain(error: ValidationError) -> str:
    """Return a text for a validation error: for each wrong field, its name, its value, and the allowed values."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))}: got {'nothing' if item['type'] == 'missing' else shown(item['input'])};"
        f" {_WORDS.get(item['type']) or _OF_PYTHON.sub('', item['msg']).replace('Input should be', 'allowed:')}"
        for item in error.errors()
    )
