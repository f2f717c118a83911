"""Export a checkpoint's networks as graphs for ONNX Runtime: `python -m sd35.compile.onnx_export DIRECTORY`.

The graphs are next to the safetensors files and refer to them, so no weight is stored twice. ONNX allows this: external
data of a graph is a file name, an offset and a length, and a safetensors file contains raw little-endian tensors. The
graphs compute in float32, and use ONNX Runtime's own operators if those are faster. `sd35.compile.graphs` writes graphs
for all runtimes.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir

from sd35.backends.diffusers.loading import load_network
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.embedded import WEIGHTS_LAYOUT, embedded_graph_path
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.weights.parameters import weights_in
from sd35.checkpoints.weights.safetensors_file import weights_layout
from sd35.compile.networks import PREFIX, Graph, Wrapper, graphs_of, tidy, trace
from sd35.errors import CheckpointError

_DTYPES = {"F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16, "F32": ir.DataType.FLOAT}
_INLINE_LIMIT_BYTES = 65536  # enough for all constants: shapes, position ids, the mask of 77 x 77 tokens


def export(checkpoint: Checkpoint) -> list[Path]:
    """Write the five graphs into the checkpoint's directory and return their paths.

    Raises CheckpointError if a network's weights are not in its safetensors files.
    """
    return [_export_one(checkpoint, graph) for graph in graphs_of(checkpoint)]


def _export_one(checkpoint: Checkpoint, graph: Graph) -> Path:
    """Export a network next to its weights, and return the path of the graph."""
    part = checkpoint.directory / graph.part
    wrapper = graph.wrapper(load_network(checkpoint, graph.part, torch.float32), "onnxruntime")
    model = trace(wrapper, graph)
    point_into_files(model, _stored_weights(wrapper, part))
    # None leaves the decision to the optimizer. A folded weight would be copied into the graph.
    optimize_ir(model, should_fold=lambda node: False if reads_stored_weight(node) else None)
    tidy(model, graph)
    assert_only_small_inline(model)
    model.metadata_props[WEIGHTS_LAYOUT] = weights_layout(part)
    path = embedded_graph_path(checkpoint, graph.part)
    ir.save(model, path)
    return path


def _stored_weights(wrapper: Wrapper, part: Path) -> dict[str, ir.ExternalTensor]:
    """Return the tensors in the weight files, by their names in the graph.

    A tied weight, which several layers share, has several names in the graph but only one in the files. The names are
    matched by the address of the loaded weight.
    """
    stored = stored_tensors(part)
    weights = wrapper.state_dict()
    by_address = {
        weights[PREFIX + name].data_ptr(): tensor for name, tensor in stored.items() if PREFIX + name in weights
    }
    return {name: by_address[weight.data_ptr()] for name, weight in weights.items() if weight.data_ptr() in by_address}


def stored_tensors(part: Path) -> dict[str, ir.ExternalTensor]:
    """Return the floating-point tensors in the safetensors files of a checkpoint's part, by name.

    Raises CheckpointError if a file is missing, cannot be read, or is a link, which ONNX Runtime does not follow.
    """
    tensors: dict[str, ir.ExternalTensor] = {}
    for name, weight in weights_in(part.parent, part.name).items():
        stored = weight.stored
        if stored.file.resolve().parent != part.resolve():
            raise CheckpointError(
                f"{stored.file} is a link, as in Hugging Face's cache, and ONNX Runtime does not follow links out of"
                f" the graph's directory; export a copy instead, made with: cp -rL {part.parent} COPY"
            )
        if stored.dtype in _DTYPES:
            tensors[name] = ir.ExternalTensor(
                location=stored.file.name,
                offset=stored.start,
                length=stored.nbytes,
                dtype=_DTYPES[stored.dtype],
                shape=ir.Shape(stored.shape),
                name=name,
                base_dir=part,
            )
    return tensors


def point_into_files(model: ir.Model, stored: Mapping[str, ir.ExternalTensor]) -> None:
    """Replace each float32 weight of an exported graph by the tensor in its file and a cast to float32.

    `stored` has the tensors in files by their names in the graph. The runtime computes the casts once, when it loads
    the graph. Raises CheckpointError if the files lack a weight, or contain other values of it.
    """
    graph = model.graph
    casts = []
    for value in list(graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT or not value.uses():
            continue
        tensor = stored.get(str(value.name))
        assert value.const_value is not None
        if tensor is None or not np.array_equal(tensor.numpy().astype(np.float32), value.const_value.numpy()):
            raise CheckpointError(
                f"the safetensors files do not contain the values of {value.name}, so no graph can refer to them; build"
                " graphs with their own weights instead: sd35 compile --precision fp32 --checkpoint DIRECTORY"
            )
        del graph.initializers[str(value.name)]
        weight = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(weight)
        if tensor.dtype == ir.DataType.FLOAT:
            value.replace_all_uses_with(weight)
            continue
        cast = ir.node("Cast", [weight], {"to": int(ir.DataType.FLOAT)}, name=f"cast {tensor.name}")
        cast.outputs[0].name, cast.outputs[0].shape = f"{tensor.name} in float32", tensor.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        value.replace_all_uses_with(cast.outputs[0])
        casts.append(cast)
    graph.insert_before(graph[0], casts)


def reads_stored_weight(node: ir.Node) -> bool:
    """Return whether an input of a node is a weight in a safetensors file."""
    return any(value is not None and isinstance(value.const_value, ir.ExternalTensor) for value in node.inputs)


def assert_only_small_inline(model: ir.Model) -> None:
    """Assert that no tensor inside the graph's own file is large enough to be a weight."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor) or (tensor is not None and tensor.nbytes <= _INLINE_LIMIT_BYTES), (
            f"{value.name} would be stored inside the graph"
        )


def main() -> None:
    """Export the checkpoint that the command line names, and print the paths of the graphs."""
    parser = argparse.ArgumentParser(description="Export a checkpoint's networks as ONNX graphs next to its weights.")
    parser.add_argument("checkpoint", help="a directory in the Diffusers layout, or a registered name")
    for path in export(open_checkpoint(parser.parse_args().checkpoint)):
        print(path)  # noqa: T201  the command's output


if __name__ == "__main__":
    main()
