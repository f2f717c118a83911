"""The offloads "encoders" and "model" on a CPU.

A network is read from disk when it is called, and freed before the next one is read.
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from sd35.backends.base import Memory


def weights_of(network: nn.Module) -> Iterator[Tensor]:
    """Yield a network's parameters and its buffers, which may be large, such as the transformer's position table."""
    yield from network.parameters()
    yield from network.buffers()


def bytes_of(weights: Iterable[Tensor]) -> int:
    """Return the bytes of tensors in memory. A quantised tensor only wraps other tensors, which are counted instead."""
    total = 0
    for weight in weights:
        if hasattr(weight, "__tensor_flatten__"):  # PyTorch's protocol for tensors that wrap others
            names, _ = weight.__tensor_flatten__()
            total += sum(getattr(weight, name).nbytes for name in names)
        else:
            total += weight.nbytes
    return total


class DiskOffload:
    """Keeps at most one of several networks in memory. Not thread-safe.

    Args:
        names: The names of the networks.
        read: Reads a network from disk by its name.
        dtype: The format of the networks' inputs and outputs.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], nn.Module], dtype: object) -> None:
        self._read = read
        self._name = ""
        self._network: nn.Module | None = None
        self.lazy_networks = {name: LazyNetwork(self, name, dtype) for name in names}

    @property
    def held_bytes(self) -> int:
        """The bytes of the weights that are in memory now."""
        return bytes_of(weights_of(self._network)) if self._network else 0

    def load(self, name: str) -> nn.Module:
        """Return a network, and read it from disk if it is not in memory. Frees another network first."""
        if self._name != name or self._network is None:
            self.free()
            self._network = self._read(name)
            self._name = name
        return self._network

    def free(self) -> None:
        """Free the network in memory. On Linux with glibc, the memory also goes back to the system."""
        self._network = None
        gc.collect()  # networks contain reference cycles
        if sys.platform == "linux":
            with suppress(OSError, AttributeError):  # the C library is not glibc
                ctypes.CDLL(None).malloc_trim(0)


class LazyNetwork:
    """A proxy for a network in a pipeline. A call loads the network and is forwarded to it.

    `dtype` is available without loading, because the pipeline reads it while it computes with other networks.
    """

    def __init__(self, offload: DiskOffload, name: str, dtype: object) -> None:
        self._offload, self._name, self.dtype = offload, name, dtype

    def __call__(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401  networks return different types
        """Load and call the network."""
        return self._offload.load(self._name)(*arguments, **named)

    def decode(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401  see above
        """Load the autoencoder and call its decoder."""
        network: Any = self._offload.load(self._name)
        return network.decode(*arguments, **named)


class WorkingMemory:
    """Measures the memory that a call needs in addition to weights, even if the call loads weights.

    Wraps a `Memory`, and subtracts the weights that were loaded since `watch` from its peaks. `weights_bytes` returns
    the size of the weights in memory that an offload loaded on demand.
    """

    def __init__(self, memory: Memory, weights_bytes: Callable[[], int]) -> None:
        self._memory, self._weights_bytes = memory, weights_bytes
        self.is_host = memory.is_host
        self._held_bytes = 0

    def free_bytes(self) -> int:
        """Return how much more memory this process can take now."""
        return self._memory.free_bytes()

    def held_bytes(self) -> int:
        """Return how much memory this process holds now."""
        return self._memory.held_bytes()

    def watch(self) -> None:
        """Start measuring the peak of the memory that this process holds."""
        self._memory.watch()
        self._held_bytes = self._weights_bytes()

    def peak_bytes(self) -> int:
        """Return the peak since `watch`, minus the memory held at that time and the weights loaded since."""
        return max(0, self._memory.peak_bytes() - max(0, self._weights_bytes() - self._held_bytes))
