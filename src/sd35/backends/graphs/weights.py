"""Finds a graph's weights, in the graph or in a file beside it, and checks that they are all there. Needs `onnx`."""

from math import prod
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, helper

from sd35.errors import CheckpointError


def find_weights(path: Path, model: onnx.ModelProto) -> Path:
    """The folder that the weights of `path`'s graph lie in; it is made to name their real files.

    In Hugging Face's cache, files are links to elsewhere, which the runtime refuses to follow. Raises CheckpointError
    where weights are missing, or cut off.
    """
    folders = {path.resolve().parent}
    for weight in model.graph.initializer:
        needed_bytes = prod(weight.dims) * helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        if weight.data_location == TensorProto.EXTERNAL:
            file = _file_of(path, weight, needed_bytes).resolve()
            next(entry for entry in weight.external_data if entry.key == "location").value = file.name
            folders.add(file.parent)
        elif weight.HasField("raw_data") and len(weight.raw_data) != needed_bytes:
            found = len(weight.raw_data)
            raise CheckpointError(f"{path}: weight {weight.name}: expected {needed_bytes} bytes, found {found}")
    if len(folders) > 1:
        raise CheckpointError(f"{path}: expected graph and weights in one folder, found {', '.join(map(str, folders))}")
    return folders.pop()


def _file_of(path: Path, weight: onnx.TensorProto, needed_bytes: int) -> Path:
    where = {entry.key: entry.value for entry in weight.external_data}
    name = where.get("location", "")
    if not name or PurePosixPath(name).name != name:
        raise CheckpointError(f"{path}: weight {weight.name}: expected a file beside the graph, found {name!r}")
    begin, length = (int(where.get(key) or 0) for key in ("offset", "length"))
    file = path.with_name(name)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {path.name} has its weights there")
    if length not in {0, needed_bytes}:
        raise CheckpointError(f"{path}: weight {weight.name}: expected {needed_bytes} bytes, found {length}")
    if begin + needed_bytes > (found := file.stat().st_size):
        raise CheckpointError(f"{file}: expected {begin + needed_bytes} bytes or more, found {found}: it is cut off")
    return file
