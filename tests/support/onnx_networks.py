"""A checkpoint's networks in ONNX Runtime on a CPU, instead of TensorRT's engines, which need a GPU.

This test double covers the code of the `tensorrt` backend around the engines, not the engines.
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

MAX_BATCHES = {"transformer": 3, "vae": 1}  # small, so that the test suites' batches need several calls


class OnnxNetworks:
    """Implements `sd35.backends.tensorrt.backend.Networks` with the limits of an engine: one caller, few rows."""

    device = torch.device("cpu")
    graph = None

    def __init__(self, checkpoint: Checkpoint, options: Options | None = None) -> None:
        self.versions = {"onnxruntime": version("onnxruntime")}
        graphs = graphs_of(checkpoint, options or Options(precision="float32"))
        self._graphs = {part: graphs.open(part, 1) for part in NETWORKS}
        self._lock = threading.Lock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock that computing needs."""
        with self._lock:
            yield

    def max_batch(self, part: str) -> int:
        """Return the largest number of rows in a batch of a network."""
        return MAX_BATCHES.get(part, 2)

    def run(self, part: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a network and return its outputs in float32."""
        assert self._lock.locked(), "called outside of exclusive()"
        graph: Any = self._graphs[part]
        given = {
            name: (tensor if tensor.dtype == torch.int32 else tensor.float()).numpy() for name, tensor in inputs.items()
        }
        assert all(len(array) <= self.max_batch(part) for array in given.values()), "more rows than an engine accepts"
        names = [output.name for output in graph.get_outputs()]
        return {name: torch.from_numpy(array) for name, array in zip(names, graph.run(None, given), strict=True)}
