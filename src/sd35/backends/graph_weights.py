"""Checks that a graph's weights are all there, in the graph or in the file of weights beside it. Needs `onnx`."""

from math import prod
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, helper

from sd35.errors import CheckpointError


def check_weights(path: Path, model: onnx.ModelProto) -> None:
    """Raises CheckpointError where `path`'s graph asks for weights that are missing, elsewhere or cut off."""
    for weight in model.graph.initializer:
        needed_bytes = prod(weight.dims) * helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        if weight.data_location == TensorProto.EXTERNAL:
            _check_beside(path, weight, needed_bytes)
        elif weight.HasField("raw_data") and len(weight.raw_data) != needed_bytes:
            found = len(weight.raw_data)
            raise CheckpointError(f"{path}: weight {weight.name}: expected {needed_bytes} bytes, found {found}")


def _check_beside(path: Path, weight: onnx.TensorProto, needed_bytes: int) -> None:
    where = {entry.key: entry.value for entry in weight.external_data}
    name = where.get("location", "")
    if not name or PurePosixPath(name).name != name:
        raise CheckpointError(f"{path}: weight {weight.name}: expected a file beside the graph, found {name!r}")
    begin, length = (int(where.get(key) or 0) for key in ("offset", "length"))
    file = path.with_name(name)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the weights of {path.name}")
    if length not in {0, needed_bytes}:
        raise CheckpointError(f"{path}: weight {weight.name}: expected {needed_bytes} bytes, found {length}")
    if begin + needed_bytes > (found := file.stat().st_size):
        raise CheckpointError(f"{file}: expected {begin + needed_bytes} bytes or more, found {found}: it is cut off")
