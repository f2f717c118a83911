"""Read the JSON files of a checkpoint's parts, and validate the fields that this project uses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sd35.errors import CheckpointError
from sd35.parsing import read_json, shown

_Size = Annotated[StrictInt, Field(ge=1, lt=2**31)]
_Factor = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _UsedFields(TypedDict, total=False):
    """The fields of the networks' configurations that this project uses."""

    attention_head_dim: _Size
    block_out_channels: Annotated[list[_Size], Field(min_length=1)]
    d_ff: _Size
    d_kv: _Size
    d_model: _Size
    dual_attention_layers: list[Annotated[StrictInt, Field(ge=0)]]
    hidden_size: _Size
    in_channels: _Size
    intermediate_size: _Size
    joint_attention_dim: _Size
    max_position_embeddings: _Size
    num_attention_heads: _Size
    num_heads: _Size
    num_layers: _Size
    patch_size: _Size
    pooled_projection_dim: _Size
    pos_embed_max_size: _Size
    projection_dim: _Size
    scaling_factor: _Factor
    shift: _Factor
    shift_factor: _Factor
    vocab_size: _Size


_USED_FIELDS = TypeAdapter(_UsedFields)


class Config(dict[str, Any]):
    """A configuration. Looking up a key that is missing raises CheckpointError, not KeyError."""

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        super().__init__(values)
        self._file = file

    def __missing__(self, name: str) -> Any:  # noqa: ANN401  it never returns
        raise CheckpointError(f"{self._file}: {name} is missing")


def read_config(file: Path) -> Config:
    """Read a part's configuration. Raises CheckpointError if it cannot be read or a used field is not valid."""
    content = read_object(file)
    try:
        _USED_FIELDS.validate_python({name: content[name] for name in _UsedFields.__annotations__ if name in content})
    except ValidationError as error:
        raise CheckpointError(f"{file}: {explain(error)}") from error
    return Config(content, file)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises CheckpointError if the file cannot be read or holds something else."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def explain(error: ValidationError) -> str:
    """Describe a validation error: each field, its value, and the reason."""
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: got {shown(detail['input'])}; {detail['msg']}"
        for detail in error.errors()
    )
