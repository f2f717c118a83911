"""A checkpoint's networks by ONNX Runtime on a CPU, in the place of TensorRT's engines, which need a GPU.

A double: it proves what the `tensorrt` backend does between its networks, and nothing of the engines.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from sd35.backends.onnx.backend import graphs_of
from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import NETWORKS

MOST = {"transformer": 3, "vae": 1}  # rows; small, so that the suites' batches take several calls


class OnnxNetworks:
    """The protocol `sd35.backends.tensorrt.backend.Networks`, with the limits of an engine: one caller, few rows."""

    device = torch.device("cpu")
    graph = None

    def __init__(self, checkpoint: Checkpoint, options: Options | None = None) -> None:
        self.versions = {"onnxruntime": version("onnxruntime")}
        graphs = graphs_of(checkpoint, options or Options(precision="float32"))
        self._graphs = {part: graphs.open(part, 1) for part in NETWORKS}
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock that computing needs."""
        with self._lock:
            yield

    def most(self, part: str) -> int:
        """Return the largest number of rows in a batch of a network."""
        return MOST.get(part, 2)

    def run(self, part: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a network and return its outputs in float32."""
        assert self._lock.locked(), "not within a turn"
        graph: Any = self._graphs[part]
        given = {
            name: (tensor if tensor.dtype == torch.int32 else tensor.float()).numpy() for name, tensor in inputs.items()
        }
        assert all(len(array) <= self.most(part) for array in given.values()), "more rows than an engine takes"
        names = [output.name for output in graph.get_outputs()]
        return {name: torch.from_numpy(array) for name, array in zip(names, graph.run(None, given), strict=True)}
